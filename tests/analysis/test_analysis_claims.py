"""The six claims on records made for the purpose, and what is said where they are lacking."""

import math

import numpy as np
import pytest
from analysis_records import EXPERIMENTS, done, make_record, missing
from scipy import stats

from repro.analysis.claims import ClaimWord, claim_runs, judge_claims
from repro.analysis.effects import measured
from repro.analysis.rules import Rules, read_rules
from repro.analysis.verdict_text import claims_text
from repro.experiments import Row
from repro.recipes import Preset
from repro.registry import Registry, Run
from repro.standings import RunState

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
        assert verdict.effect.whole_columns == 9
        assert verdict.p == 1 / 512
        assert verdict.p_adjusted == pytest.approx(6 / 512)
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
    late = [epoch.gradient_at_features for epoch in record.curve if epoch.epoch >= 90]
    assert len(late) == 10
    assert measured(record, "late-gradient-at-features", "last-lr-drop") == pytest.approx(np.mean(late))
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


def test_fewer_than_six_whole_columns_show_an_effect_and_decide_nothing(registry, rules, states, paper):
    kept = sorted({column_of(state) for state in states})[:5]
    some = [state for state in states if column_of(state) in kept]
    verdict = judge(some, registry, paper, rules)["beats-cross-entropy"]
    assert (verdict.word, verdict.p, verdict.p_adjusted) == (ClaimWord.UNDECIDED, None, None)
    assert len(verdict.effect.columns) == 5
    assert verdict.effect.low is not None
    assert verdict.sentence.startswith("Undecided: 5 of the 6 whole columns that a verdict needs.")


def test_a_column_with_a_run_to_come_is_shown_and_is_not_whole(registry, rules, states, paper):
    gone = "cifar100/vgg16/cross-entropy/seed2"
    rest = [state for state in states if state.run.id != gone] + missing([registry.parse(gone)])
    verdict = judge(rest, registry, paper, rules)["beats-cross-entropy"]
    assert (verdict.effect.whole_columns, len(verdict.effect.columns)) == (8, 9)
    assert verdict.effect.columns[0].seeds == (0, 1)
    assert verdict.missing == ("cross-entropy: 1 of 27 runs (not run yet: 1)",)
    assert verdict.word is ClaimWord.SUPPORTED


def test_a_diverged_run_leaves_its_seed_out_and_the_column_whole(registry, rules, states, paper):
    run = registry.parse("cifar100/vgg16/cross-entropy/seed2")
    other = done(make_record(registry, paper, run, diverged_in=3), registry)
    changed = [other if state.run.id == run.id else state for state in states]
    verdict = judge(changed, registry, paper, rules)["beats-cross-entropy"]
    column = verdict.effect.columns[0]
    assert (column.seeds, column.whole, column.diverged) == ((0, 1), True, 1)
    assert verdict.missing == ("cross-entropy: 1 of 27 runs (diverged: 1)",)


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
    assert verdicts["beats-cross-entropy"].p == 1.0
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
    assert verdict.p > 0.05


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
    assert {verdict.word for verdict in verdicts.values()} == {ClaimWord.UNDECIDED}
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
    assert alone[0].p_adjusted == alone[0].p
    assert alone[0].p == verdicts[0].p
