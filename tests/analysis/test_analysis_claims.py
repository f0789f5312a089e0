"""The six claims on records made for the purpose, and what is said where they are lacking."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from analysis_records import EXPERIMENTS, done, make_record, missing
from scipy import stats

from repro.analysis.claims import ClaimWord, claim_runs, judge_claims
from repro.analysis.effects import measured
from repro.analysis.rules import Rules, read_rules
from repro.analysis.verdict_text import claims_text
from repro.config import Preset
from repro.errors import RegistryError
from repro.experiments import Row
from repro.record_state import RunState
from repro.registry import Registry, Run

CONTROLS = ("logit-scale-s2", "cross-entropy+bias=false")
NAMES = (
    "beats-cross-entropy",
    "beats-margin-losses",
    "narrower-logits",
    "smaller-class-weights",
    "larger-late-gradient",
    "scaling-alone-does-not-help",
)


@pytest.fixture(scope="module")
def registry() -> Registry:
    """The project's, whose tables also have the control of claim 6 (here another cross-entropy by name)."""
    real = Registry.load(EXPERIMENTS)
    tables = []
    for table in real.tables:
        control = Row(name=CONTROLS[0], label="z · 2", loss="cross-entropy", parameters=(("bias", False),))
        known = {row.name for row in table.rows}
        rows = table.rows if CONTROLS[0] in known else (*table.rows, control)
        tables.append(table.model_copy(update={"rows": rows}))
    return Registry([table for table in tables if table.of_paper], real.presets)


@pytest.fixture(scope="module")
def rules() -> Rules:
    return read_rules(EXPERIMENTS / "claims.toml")


@pytest.fixture(scope="module")
def paper(registry) -> Preset:
    return registry.preset("paper")


@pytest.fixture(scope="module")
def states(registry, rules, paper) -> tuple[RunState, ...]:
    """Every run that the claims need, near the paper's means; the controls as accurate as cross-entropy."""
    return tuple(
        done(make_record(registry, paper, run, accuracy(registry, run)), registry)
        for run in claim_runs(rules, registry, paper)
    )


def accuracy(registry: Registry, run: Run) -> float | None:
    row = (
        "cross-entropy"
        if f"{run.cell.row}{'+' * bool(run.cell.axes)}" in (CONTROLS[0], "cross-entropy+")
        else None
    )
    if row is None:
        return None
    random = np.random.default_rng(
        [run.seed, len(run.id), ord(run.cell.network[-1]), ord(run.cell.dataset[0])]
    )
    reported = registry.table(run.cell.table).row("cross-entropy").reported[run.cell.network]
    return reported.mean + float(random.normal(0, 0.1))


def judge(states, registry, preset, rules):
    return dict(zip(NAMES, judge_claims(states, registry, preset, rules), strict=True))


def runs_of_claim_1(registry: Registry, rules: Rules, preset: Preset) -> list[Run]:
    return [
        run
        for run in claim_runs(rules, registry, preset)
        if not run.cell.axes and run.cell.row.startswith(("scaled", "cross"))
    ]


def column_of(state: RunState) -> tuple[str, str]:
    return state.run.cell.dataset, state.run.cell.network


def test_the_projects_claims_are_the_six_of_the_specification(rules):
    assert tuple(claim.name for claim in rules.claims) == NAMES


def test_the_rivals_settings_are_the_better_ones_by_the_papers_own_means(registry, rules):
    (claim,) = [claim for claim in rules.claims if claim.name == "beats-margin-losses"]
    chosen = []
    for loss in ("am-softmax", "pedcc"):
        names = [row.name for row in registry.table(1).rows if row.loss == loss]
        totals = {
            name: sum(value.mean for table in registry.tables for value in table.row(name).reported.values())
            for name in names
        }
        chosen.append(max(totals, key=totals.get))
    assert claim.over == tuple(chosen)


def test_the_margin_of_claim_6_is_under_every_gain_of_scaled_bn_in_the_paper(registry, rules, states, paper):
    verdicts = judge(states, registry, paper, rules)
    gains = [column.reported for column in verdicts["beats-cross-entropy"].effect.columns]
    assert len(gains) == 9
    assert min(gains) == pytest.approx(0.55, abs=0.005)
    assert verdicts["scaling-alone-does-not-help"].claim.margin < min(gains)


def test_records_like_the_papers_support_every_claim(registry, rules, states, paper):
    for name, verdict in judge(states, registry, paper, rules).items():
        assert verdict.word is ClaimWord.SUPPORTED, (name, verdict.sentence)
        assert (verdict.complete, verdict.needed) == (9, 9)
        assert verdict.support.p == 1 / 512
        family = {"primary": 2, "secondary": 4}[verdict.claim.family]
        assert verdict.support.p_adjusted == pytest.approx(family / 512)
        assert verdict.opposite.p_adjusted == 1.0
        assert verdict.sentence.startswith("Supported: p = 0.0020, after Holm ")
        assert verdict.missing == ()
        assert verdict.title == verdict.claim.statement
        assert "not about the paper" not in verdict.sentence


def test_the_effect_is_the_mean_of_the_columns_paired_differences(registry, rules, states, paper):
    by_id = {state.run.id: state.record.result.accuracy for state in states}
    columns = []
    for table in registry.tables:
        for network in table.networks:
            place = f"{table.dataset}/{network}"
            pairs = [
                np.mean([by_id[f"{place}/scaled-bn-m{m}/seed{k}"] for m in ("0.8", "0.9", "1")])
                - by_id[f"{place}/cross-entropy/seed{k}"]
                for k in range(3)
            ]
            columns.append(pairs)
    effect = judge(states, registry, paper, rules)["beats-cross-entropy"].effect
    assert effect.value == pytest.approx(np.mean(columns), rel=1e-12)
    assert [column.by_seed for column in effect.columns] == [pytest.approx(pairs) for pairs in columns]
    error = math.sqrt(sum(np.var(pairs, ddof=1) / 3 for pairs in columns)) / 9
    half = stats.t.ppf(0.975, 18) * error
    assert (effect.low, effect.high) == pytest.approx((effect.value - half, effect.value + half), rel=0.05)
    assert effect.reported == pytest.approx(1.3914814814814776)


def test_the_rival_is_the_better_of_both_in_each_column(registry, rules, states, paper):
    effect = judge(states, registry, paper, rules)["beats-margin-losses"].effect
    by_id = {state.run.id: state.record.result.accuracy for state in states}
    for column in effect.columns:
        means = {
            row: np.mean([by_id[f"{column.dataset}/{column.network}/{row}/seed{k}"] for k in range(3)])
            for row in ("am-softmax-s7.5-m0.35", "pedcc-s7.5-m0.35")
        }
        assert column.over_rows == (max(means, key=means.get),)
        assert column.over_value == pytest.approx(max(means.values()))


def test_factors_are_geometric_means_over_columns(registry, rules, states, paper):
    effect = judge(states, registry, paper, rules)["narrower-logits"].effect
    assert effect.unit == "factor"
    logs = [math.log(column.value) for column in effect.columns]
    assert effect.value == pytest.approx(math.exp(sum(logs) / 9))
    assert effect.low <= effect.value <= effect.high < 1
    weights = judge(states, registry, paper, rules)["smaller-class-weights"].effect
    assert weights.low < weights.value < weights.high < 1
    assert 4 < effect.columns[0].over_value < 7, "half of the central 95 % under cross-entropy"


def test_late_in_training_is_from_the_last_drop_of_the_learning_rate_on(registry, paper):
    record = make_record(registry, paper, registry.parse("cifar100/vgg16/cross-entropy/seed0"))
    late = [epoch for epoch in record.curve if epoch.epoch >= 90]
    assert len(late) == 10
    for measure, field in (
        ("late-gradient-times-feature", "gradient_times_feature"),
        ("late-gradient-at-features", "gradient_at_features"),
        ("late-feature-norm", "feature_norm"),
    ):
        mean = np.mean([getattr(epoch, field) for epoch in late])
        assert measured(record, measure, "last-lr-drop") == pytest.approx(mean)
    assert measured(record, "late-gradient-at-logits", "last-epoch") == record.curve[-1].gradient_at_logits


def test_pairing_by_seed_is_shown_as_the_seeds_correlation_and_narrows_the_interval(registry, rules, paper):
    """A shift that all losses of a seed share cancels out within pairs."""
    found = []
    for shared in (0.0, 1.0):
        random = np.random.default_rng(2)
        shifts = {}
        made = []
        for run in runs_of_claim_1(registry, rules, paper):
            key = (run.cell.dataset, run.cell.network, run.seed)
            shift = shifts.setdefault(key, shared * random.normal(0, 1.0))
            base = 80.0 if run.cell.row.startswith("scaled") else 78.0
            noise = random.normal(0, 0.1)
            made.append(done(make_record(registry, paper, run, base + shift + noise), registry))
        found.append(judge(made, registry, paper, rules)["beats-cross-entropy"].effect)
    apart, paired = found
    assert paired.correlation > 0.95 > abs(apart.correlation)
    assert paired.high - paired.low == pytest.approx(apart.high - apart.low, rel=0.5)


def at(rules: Rules, columns: Sequence[str]) -> Rules:
    """The rules with the verdict given at these columns."""
    tests = rules.tests.model_copy(update={"columns": {"some": tuple(columns)}, "verdict_at": "some"})
    return rules.model_copy(update={"tests": tests})


def only(states: Sequence[RunState], columns: Sequence[str]) -> list[RunState]:
    return [state for state in states if "/".join(column_of(state)) in columns]


def changed(registry, preset, states, choose, **values) -> list[RunState]:
    """The states with new records where `choose(run)`: `values` of `make_record`, `shift` in points."""
    shift = values.pop("shift", 0.0)
    made = []
    for state in states:
        if choose(state.run):
            lifted = state.record.result.accuracy + shift
            record = make_record(registry, preset, state.run, lifted, **values)
            made.append(done(record, registry))
        else:
            made.append(state)
    return made


def test_the_columns_of_the_verdict_are_the_papers_and_six_without_table_3(registry, rules):
    columns = {t.name: [f"{t.dataset}/{network}" for network in t.networks] for t in registry.tables}
    assert rules.tests.verdict_at == "all"
    assert list(rules.tests.verdict_columns) == columns[1] + columns[2] + columns[3]
    assert list(rules.tests.columns["without-table-3"]) == columns[1] + columns[2]


def test_two_claims_are_primary_and_four_secondary_and_need_six_and_seven_columns(rules):
    families = [(claim.family, rules.minimum_columns(claim)) for claim in rules.claims]
    assert families == [("primary", 6)] * 2 + [("secondary", 7)] * 4
    for size, fewest in ((2, 6), (4, 7)):
        assert size * 2.0**-fewest <= 0.05 < size * 2.0 ** -(fewest - 1)


@pytest.mark.parametrize("count", [5, 6, 7, 8])
def test_before_all_nine_columns_are_complete_every_claim_is_interim_and_has_no_p(
    registry, rules, states, paper, count
):
    some = only(states, rules.tests.verdict_columns[:count])
    for verdict in judge(some, registry, paper, rules).values():
        assert (verdict.word, verdict.support.p, verdict.opposite.p) == (ClaimWord.INTERIM, None, None)
        assert len(verdict.effect.columns) == count
        assert verdict.effect.low is not None
        expected = f"Interim: {count} of 9 columns complete; the verdict is given at 9."
        assert verdict.sentence.startswith(expected)


@pytest.mark.parametrize(
    ("count", "primary", "secondary"),
    [
        (5, ClaimWord.UNDECIDED, ClaimWord.UNDECIDED),
        (6, ClaimWord.SUPPORTED, ClaimWord.UNDECIDED),
        (7, ClaimWord.SUPPORTED, ClaimWord.SUPPORTED),
    ],
)
def test_where_the_verdict_is_at_fewer_columns_six_support_a_primary_claim_and_seven_a_secondary(
    registry, rules, states, paper, count, primary, secondary
):
    """The rules name the columns; further ones are then in no test."""
    chosen = at(rules, rules.tests.verdict_columns[:count])
    for verdict in judge(states, registry, paper, chosen).values():
        expected = primary if verdict.claim.family == "primary" else secondary
        assert (verdict.word, len(verdict.effect.columns)) == (expected, count)
        if expected is ClaimWord.UNDECIDED:
            assert verdict.support.p is None
            fewest = rules.minimum_columns(verdict.claim)
            assert f"a {verdict.claim.family} claim needs at least {fewest}" in verdict.sentence
        else:
            assert verdict.support.p == 2.0**-count


def test_a_column_with_a_run_to_come_is_shown_and_leaves_the_claim_interim(registry, rules, states, paper):
    gone = "cifar100/vgg16/cross-entropy/seed2"
    rest = [state for state in states if state.run.id != gone] + missing([registry.parse(gone)])
    verdict = judge(rest, registry, paper, rules)["beats-cross-entropy"]
    assert (verdict.complete, len(verdict.effect.columns)) == (8, 9)
    assert verdict.effect.columns[0].seeds == (0, 1)
    assert verdict.missing == ("cross-entropy: 1 of 27 runs (not run yet: 1)",)
    assert verdict.word is ClaimWord.INTERIM


def test_a_diverged_run_counts_at_chance_and_the_verdict_without_its_column_is_given_too(
    registry, rules, states, paper
):
    """100 classes, so 1 %: on the side of the baseline it is no help to have it."""
    diverged = changed(
        registry, paper, states, lambda run: run.id == "cifar100/vgg16/cross-entropy/seed2", diverged_in=3
    )
    verdict = judge(diverged, registry, paper, rules)["beats-cross-entropy"]
    column = verdict.effect.columns[0]
    assert (column.seeds, column.whole, column.diverged, column.over_diverged) == ((0, 1, 2), True, 1, 1)
    of = [state for state in states if state.run.id.startswith("cifar100/vgg16/scaled")]
    last = [state.record.result.accuracy for state in of if state.run.seed == 2 and not state.run.cell.axes]
    assert column.by_seed[2] == pytest.approx(np.mean(last) - 1.0)
    assert "1 of 108 runs diverged; they count at chance accuracy." in verdict.sentence
    assert (verdict.word, verdict.without) == (ClaimWord.SUPPORTED, ClaimWord.SUPPORTED)
    assert "Without the columns in which a run of the other side diverged: supported, p = 0.0039" in (
        verdict.sentence
    )


def test_scaled_bn_that_mostly_diverged_is_not_supported(registry, rules, states, paper):
    """54 of its 81 runs: those that trained are ahead, and say nothing of the loss."""
    diverged = changed(
        registry,
        paper,
        states,
        lambda run: run.cell.row.startswith("scaled") and run.seed > 0,
        diverged_in=3,
    )
    verdicts = judge(diverged, registry, paper, rules)
    for name in ("beats-cross-entropy", "beats-margin-losses"):
        assert verdicts[name].word is ClaimWord.CONTRADICTED, verdicts[name].sentence
        assert "54 of " in verdicts[name].sentence
        assert verdicts[name].without is None, "no run of the other side diverged"


def test_a_rival_that_diverged_is_not_the_better_one(registry, rules, states, paper):
    """AM-Softmax at chance in six columns, PEDCC trained and ahead of scaled BN in all of them."""
    six = rules.tests.verdict_columns[:6]
    made = changed(
        registry,
        paper,
        states,
        lambda run: run.cell.row.startswith("am-") and "/".join(run.id.split("/")[:2]) in six,
        diverged_in=3,
    )
    made = changed(registry, paper, made, lambda run: run.cell.row.startswith("pedcc"), shift=4.0)
    verdict = judge(made, registry, paper, rules)["beats-margin-losses"]
    assert len(verdict.effect.columns) == 9
    assert {column.over_rows for column in verdict.effect.columns} == {("pedcc-s7.5-m0.35",)}
    assert all(column.value < 0 for column in verdict.effect.columns)
    assert verdict.word is not ClaimWord.SUPPORTED
    assert verdict.without is ClaimWord.UNDECIDED, "three columns are left"
    assert "undecided, 3 columns can be tested, and a primary claim needs at least 6" in verdict.sentence


@pytest.mark.parametrize("row", ["scaled-bn-m1", "cross-entropy"])
@pytest.mark.parametrize("columns", [1, 9])
def test_a_diverged_run_makes_its_column_the_largest_effect_against_either_test(
    registry, rules, states, paper, row, columns
):
    """With one such column of nine p is that of eight smaller effects in favour."""
    some = rules.tests.verdict_columns[:columns]
    made = changed(
        registry,
        paper,
        states,
        lambda run: run.cell.row == row and not run.cell.axes and "/".join(run.id.split("/")[:2]) in some,
        diverged_in=3,
    )
    for name in ("smaller-class-weights", "larger-late-gradient"):
        verdict = judge(made, registry, paper, rules)[name]
        against = stats.wilcoxon([*range(1, 10 - columns), *[-100] * columns], alternative="greater")
        assert verdict.support.p == pytest.approx(against.pvalue)
        assert verdict.opposite.p == 1.0
        assert verdict.word is ClaimWord.UNDECIDED
        assert f"{3 * columns} of 54 runs diverged; their columns count as the largest" in verdict.sentence
        assert (verdict.effect.columns[0].value, verdict.effect.value is None) == (None, columns == 9)


def test_a_column_in_which_a_control_diverged_is_left_out_of_claim_6(registry, rules, states, paper):
    for columns, p in ((1, 1 / 256), (2, 1 / 128), (3, None)):
        some = rules.tests.verdict_columns[:columns]
        made = changed(
            registry,
            paper,
            states,
            lambda run, some=some: (
                run.cell.row == CONTROLS[0] and run.seed == 0 and "/".join(run.id.split("/")[:2]) in some
            ),
            diverged_in=3,
        )
        verdict = judge(made, registry, paper, rules)["scaling-alone-does-not-help"]
        assert (verdict.support.columns, verdict.support.p) == (9 - columns, p)
        assert verdict.opposite.columns == 9 - columns
        assert verdict.word is (ClaimWord.UNDECIDED if p is None else ClaimWord.SUPPORTED)
        assert "their columns are left out of the test" in verdict.sentence


def test_one_column_far_behind_among_eight_ahead_contradicts_nothing(registry, rules, states, paper):
    made = changed(
        registry,
        paper,
        states,
        lambda run: run.cell.row.startswith("scaled") and run.id.startswith("facescrub/vgg16"),
        shift=-8.0,
    )
    verdict = judge(made, registry, paper, rules)["beats-cross-entropy"]
    assert sorted(column.value < 0 for column in verdict.effect.columns) == [False] * 8 + [True]
    assert verdict.support.p == pytest.approx(33 / 512)
    assert verdict.word is ClaimWord.UNDECIDED
    assert "mirrored test p = 0.9" in verdict.sentence


def test_the_mirrored_test_of_claim_2_has_the_rival_that_is_better_in_the_papers_column(
    registry, rules, states, paper
):
    """Ours have the other one ahead in every column, which the claim's own test takes."""
    ours = {}
    for table in registry.tables:
        for network in table.networks:
            rows = ("am-softmax-s7.5-m0.35", "pedcc-s7.5-m0.35")
            means = {row: table.row(row).reported[network].mean for row in rows}
            ours[f"{table.dataset}/{network}"] = min(means, key=means.get)
    made = changed(
        registry,
        paper,
        states,
        lambda run: run.cell.row == ours["/".join(run.id.split("/")[:2])],
        shift=6.0,
    )
    verdict = judge(made, registry, paper, rules)["beats-margin-losses"]
    for column in verdict.effect.columns:
        assert column.over_rows == (ours[f"{column.dataset}/{column.network}"],)
    for column in verdict.mirror.columns:
        assert column.over_rows != (ours[f"{column.dataset}/{column.network}"],)
    assert all(column.value < 0 for column in verdict.effect.columns)
    assert all(column.value > 0 for column in verdict.mirror.columns)
    assert verdict.word is ClaimWord.UNDECIDED


def test_the_papers_better_row_cannot_be_taken_where_the_paper_reports_none(registry, rules, states, paper):
    claims = [claim.model_copy(update={"over_combined": "best-reported"}) for claim in rules.claims[5:]]
    claims = [
        claim.model_copy(update={"over": ("cross-entropy", "cross-entropy+bias=false")}) for claim in claims
    ]
    with pytest.raises(RegistryError, match="reports no mean of cross-entropy\\+bias=false on vgg16"):
        judge_claims(states, registry, paper, rules.model_copy(update={"claims": tuple(claims)}))


def test_the_mirrored_test_of_claim_6_has_one_control_fixed_beforehand(registry, rules, states, paper):
    """Without a bias everything is a point better; the control is z · 2, which is not."""
    made = changed(registry, paper, states, lambda run: bool(run.cell.axes), shift=2.0)
    verdict = judge(made, registry, paper, rules)["scaling-alone-does-not-help"]
    assert {column.of_rows for column in verdict.mirror.columns} == {(CONTROLS[0],)}
    assert {column.of_rows for column in verdict.effect.columns} == {(CONTROLS[1],)}
    assert verdict.word is ClaimWord.UNDECIDED


def test_runs_on_other_data_are_not_compared(registry, rules, states, paper):
    run = registry.parse("cifar100/vgg16/cross-entropy/seed2")
    other = done(make_record(registry, paper, run, fingerprint="e" * 64), registry)
    changed = [other if state.run.id == run.id else state for state in states]
    verdict = judge(changed, registry, paper, rules)["beats-cross-entropy"]
    assert "VGG on CIFAR-100" not in [column.label for column in verdict.effect.columns]


def test_the_opposite_of_a_claim_is_said_to_contradict_it(registry, rules, states, paper):
    made = []
    for state in states:
        lower = -3.0 if state.run.cell.row.startswith("scaled") else 0.0
        mean = state.record.result.accuracy + lower
        made.append(done(make_record(registry, paper, state.run, mean), registry))
    verdicts = judge(made, registry, paper, rules)
    assert verdicts["beats-cross-entropy"].word is ClaimWord.CONTRADICTED
    assert verdicts["beats-cross-entropy"].support.p == 1.0
    assert verdicts["beats-cross-entropy"].opposite.p == 1 / 512
    assert verdicts["beats-cross-entropy"].opposite.p_adjusted == 2 / 512
    assert verdicts["beats-cross-entropy"].sentence.startswith(
        "Contradicted: mirrored test p = 0.0020, after"
    )
    assert verdicts["narrower-logits"].word is ClaimWord.SUPPORTED


def test_a_control_that_helps_by_more_than_the_margin_is_no_support(registry, rules, states, paper):
    made = []
    for state in states:
        record = state.record
        if state.run.cell.row == CONTROLS[0]:
            record = make_record(registry, paper, state.run, record.result.accuracy + 1.0)
        made.append(done(record, registry))
    verdict = judge(made, registry, paper, rules)["scaling-alone-does-not-help"]
    assert verdict.word is ClaimWord.CONTRADICTED
    assert {column.of_rows for column in verdict.effect.columns} == {(CONTROLS[0],)}


def test_effects_that_differ_in_sign_are_undecided_however_many(registry, rules, paper):
    random = np.random.default_rng(1)
    made = []
    for run in runs_of_claim_1(registry, rules, paper):
        sign = 1 if (ord(run.cell.dataset[0]) + ord(run.cell.network[-1])) % 2 else -1
        lift = sign * 1.5 if run.cell.row.startswith("scaled") else 0.0
        made.append(done(make_record(registry, paper, run, 70.0 + lift + random.normal(0, 0.2)), registry))
    verdict = judge(made, registry, paper, rules)["beats-cross-entropy"]
    assert verdict.word is not ClaimWord.SUPPORTED
    assert verdict.support.p > 0.05


def test_without_any_record_everything_missing_is_named(registry, rules, paper):
    real = Registry.load(EXPERIMENTS)
    lacking = Registry(
        [
            table.model_copy(update={"rows": tuple(row for row in table.rows if row.name != CONTROLS[0])})
            for table in real.tables
            if table.of_paper
        ],
        real.presets,
    )
    states = missing(claim_runs(rules, lacking, paper))
    verdicts = judge(states, lacking, paper, rules)
    assert {verdict.word for verdict in verdicts.values()} == {ClaimWord.INTERIM}
    assert verdicts["scaling-alone-does-not-help"].missing == (
        "logit-scale-s2: 27 of 27 runs (in no table of the experiments: 27)",
        "cross-entropy+bias=false: 27 of 27 runs (not run yet: 27)",
        "cross-entropy: 27 of 27 runs (not run yet: 27)",
    )
    assert verdicts["narrower-logits"].effect.value is None


def test_another_preset_says_so_in_title_and_sentence(registry, rules):
    quick = registry.preset("quick")
    runs = [run for run in claim_runs(rules, registry, quick) if run.cell.network == "resnet18"]
    states = [done(make_record(registry, quick, run), registry) for run in runs]
    verdicts = judge_claims(states, registry, quick, rules)
    for verdict in verdicts:
        assert verdict.title.startswith("QUICK ")
        assert "This is about the preset quick, not about the paper." in verdict.sentence
    text = claims_text(verdicts, (), quick, rules)
    assert text.startswith("QUICK: ")
    assert rules.sha256 in text
    assert "±2 is imposed by m = 1" in text
    assert "Shown, not tested:" in text


def test_only_what_is_listed_is_tested(registry, rules, states, paper):
    """What is shown has no p: six tests, whatever the breakdown."""
    verdicts = judge_claims(states, registry, paper, rules)
    assert len(verdicts) == 6
    assert sum(len(verdict.shown) for verdict in verdicts) >= 18
    alone = judge_claims(states, registry, paper, rules.model_copy(update={"claims": rules.claims[:1]}))
    assert alone[0].support.p_adjusted == alone[0].support.p == verdicts[0].support.p
