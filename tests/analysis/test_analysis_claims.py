"""The six claims on planted records: the verdict that each must get, and what is said where they are lacking."""

import json
import math
import runpy
from dataclasses import replace

import numpy as np
import pytest
from analysis_records import CODE, missing, recorded
from click.testing import CliRunner
from planted_records import PlantedRecords, column_of, is_scaled
from scipy import stats
from smoke_project import ROOT

from repro.analysis.claims import ClaimWord, claim_runs, claims_text, judge_claims
from repro.analysis.effects import measured
from repro.cli import main
from repro.errors import RegistryError

NAMES = (
    "beats-cross-entropy",
    "beats-margin-losses",
    "narrower-logits",
    "smaller-class-weights",
    "larger-late-gradient",
    "scaling-alone-does-not-help",
)
RIVALS = ("am-softmax-s7.5-m0.35", "pedcc-s7.5-m0.35")


@pytest.fixture(scope="module")
def case() -> PlantedRecords:
    """Near the paper's means; the controls as accurate as cross-entropy."""
    return PlantedRecords()


@pytest.fixture(scope="module")
def gains() -> dict[float, PlantedRecords]:
    """Scaled BN truly ahead of every other loss by so many points."""
    return {gain: PlantedRecords(gain) for gain in (1.0, 0.0, -1.0)}


@pytest.fixture(scope="module")
def verdicts(case):
    return case.judge()


def letters(verdicts) -> str:
    """The words of the six claims by their first letters."""
    return "".join(verdicts[name].word[0].upper() for name in NAMES)


@pytest.mark.parametrize(("gain", "words"), [(1.0, "SSSSSS"), (0.0, "UUSSSS"), (-1.0, "CCSSSS")])
def test_a_planted_truth_gets_its_verdicts(gains, gain, words):
    """Logits, weights and gradients are those of the losses, whatever the accuracies."""
    verdicts = gains[gain].judge()
    assert letters(verdicts) == words
    for verdict, word in zip(verdicts.values(), words, strict=True):
        assert (verdict.complete, verdict.needed, verdict.missing) == (9, 9, ())
        tests = {"S": (verdict.support, verdict.opposite), "C": (verdict.opposite, verdict.support)}
        if word in tests:
            shown, other = tests[word]
            family = {"primary": 2, "secondary": 4}[verdict.claim.family]
            assert (shown.p, shown.p_adjusted, other.p_adjusted) == (1 / 512, family / 512, 1.0)
            start = {
                "S": "Supported: p = 0.0020, after Holm ",
                "C": "Contradicted: mirrored test p = 0.0020, ",
            }
            assert verdict.sentence.startswith(start[word])


def test_the_papers_own_means_support_every_claim_and_leave_room_for_the_margin_of_the_last(verdicts):
    assert letters(verdicts) == "SSSSSS"
    gains = [column.reported for column in verdicts["beats-cross-entropy"].effect.columns]
    assert min(gains) == pytest.approx(0.55, abs=0.005)
    assert verdicts[NAMES[5]].claim.margin < min(gains)
    # What is shown has no test of its own.
    assert sum(len(verdict.shown) for verdict in verdicts.values()) >= 18


def test_a_control_that_gains_more_than_the_margin_contradicts_claim_6(case):
    helped = case.judge(case.changed(lambda run: run.cell.row == "logit-scale-s2", shift=1.0))[NAMES[5]]
    assert helped.word is ClaimWord.CONTRADICTED
    assert {column.of_rows for column in helped.effect.columns} == {("logit-scale-s2",)}


@pytest.mark.parametrize(
    ("columns", "words"), [(5, "UUUUUU"), (6, "SSUUUU"), (7, "SSSSSS"), (8, "SSSSSS"), (9, "SSSSSS")]
)
def test_six_columns_can_support_a_primary_claim_and_seven_a_secondary(gains, columns, words):
    """Where the rules name these columns for the one verdict; further ones are then in no test."""
    case = gains[1.0]
    rules = case.at(case.columns[:columns])
    verdicts = case.judge(rules=rules)
    assert letters(verdicts) == words
    for verdict, word in zip(verdicts.values(), words, strict=True):
        assert len(verdict.effect.columns) == columns
        if word == "S":
            assert verdict.support.p == 2.0**-columns
        else:
            needs = f"a {verdict.claim.family} claim needs at least {rules.minimum_columns(verdict.claim)}"
            assert needs in verdict.sentence
    assert case.at(case.columns[:6]).tests.verdict_columns == case.rules.tests.columns["without-table-3"]


def test_the_command_judges_planted_records_in_a_folder(gains, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("repro.record_state.code_hash", lambda config: CODE)
    gains[-1.0].write(tmp_path / "results")

    def asked(command: str) -> dict:
        result = CliRunner().invoke(main, [command, "--json", "--results", str(tmp_path / "results")])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    content = asked("claims")
    assert [claim["word"][0].upper() for claim in content["claims"]] == list("CCSSSS")
    assert [claim["seeds"] for claim in content["claims"]] == [None] * 6
    cells = {cell["id"]: cell for cell in content["cells"]}
    for column in gains[-1.0].columns:
        # Cross-entropy is at the paper's mean, and scaled BN further below it than a point.
        assert cells[f"{column}/cross-entropy"]["word"] == "reproduced"
        assert cells[f"{column}/scaled-bn-m0.9"]["word"] in ("off", "undecided")
    words = {cell["word"] for cell in cells.values()}
    assert words == {"reproduced", "off", "undecided"}
    for cell in cells.values():
        assert (cell["seeds"] is None) == (cell["word"] != "undecided")
    planned = asked("plan")["seeds"]
    assert list(planned) == ["Table 1", "Table 2", "Table 3", *NAMES]
    assert planned["Table 1"]["more"] == {"reproduced": 1, "off": 0}


def test_the_projects_claims_are_the_six_with_rivals_chosen_by_the_papers_own_means(case):
    assert tuple(claim.name for claim in case.rules.claims) == NAMES
    totals = {
        row: sum(case.reported(column)[row] for column in case.columns)
        for row in case.reported(case.columns[0])
    }
    for rival in RIVALS:
        assert totals[rival] == max(
            t for row, t in totals.items() if row.split("-s")[0] == rival.split("-s")[0]
        )
    assert case.rules.claims[1].over == RIVALS
    families = [(claim.family, case.rules.minimum_columns(claim)) for claim in case.rules.claims]
    assert families == [("primary", 6)] * 2 + [("secondary", 7)] * 4
    papers = {t.name: [f"{t.dataset}/{network}" for network in t.networks] for t in case.registry.tables}
    assert list(case.columns) == papers[1] + papers[2] + papers[3]
    assert list(case.rules.tests.columns["without-table-3"]) == papers[1] + papers[2]


def test_the_effect_is_the_mean_of_the_columns_paired_differences(case, verdicts):
    by_id = {state.run.id: state.record.result.accuracy for state in case.states}
    columns = [
        [
            np.mean([by_id[f"{column}/scaled-bn-m{m}/seed{k}"] for m in ("0.8", "0.9", "1")])
            - by_id[f"{column}/cross-entropy/seed{k}"]
            for k in range(3)
        ]
        for column in case.columns
    ]
    effect = verdicts["beats-cross-entropy"].effect
    assert effect.value == pytest.approx(np.mean(columns), rel=1e-12)
    assert [column.by_seed for column in effect.columns] == [pytest.approx(pairs) for pairs in columns]
    error = math.sqrt(sum(np.var(pairs, ddof=1) / 3 for pairs in columns)) / 9
    half = stats.t.ppf(0.975, 18) * error
    assert (effect.low, effect.high) == pytest.approx((effect.value - half, effect.value + half), rel=0.05)
    assert effect.reported == pytest.approx(1.3914814814814776)
    for column in verdicts["beats-margin-losses"].effect.columns:
        place = f"{column.dataset}/{column.network}"
        means = {row: np.mean([by_id[f"{place}/{row}/seed{k}"] for k in range(3)]) for row in RIVALS}
        assert column.over_rows == (max(means, key=means.get),)
        assert column.over_value == pytest.approx(max(means.values()))


def test_factors_are_geometric_means_over_columns(verdicts):
    effect = verdicts["narrower-logits"].effect
    assert effect.unit == "factor"
    assert effect.value == pytest.approx(math.exp(np.mean([math.log(c.value) for c in effect.columns])))
    assert 4 < effect.columns[0].over_value < 7, "half of the central 95 % under cross-entropy"
    weights = verdicts["smaller-class-weights"].effect
    assert weights.low < weights.value < weights.high < 1


def test_late_in_training_is_from_the_last_drop_of_the_learning_rate_on(case):
    record = case.states[0].record
    late = [epoch for epoch in record.curve if epoch.epoch >= 90]
    assert len(late) == 10
    for field in ("gradient_times_feature", "gradient_at_features", "feature_norm"):
        mean = np.mean([getattr(epoch, field) for epoch in late])
        measure = f"late-{field.replace('_', '-')}"
        assert measured(record, measure, "last-lr-drop") == pytest.approx(mean)
    assert measured(record, "late-gradient-at-logits", "last-epoch") == record.curve[-1].gradient_at_logits


def test_before_all_nine_columns_are_complete_every_claim_is_interim_and_has_no_p(case):
    for verdict in case.judge(
        [state for state in case.states if column_of(state.run) != case.columns[8]]
    ).values():
        assert (verdict.word, verdict.support.p, verdict.opposite.p) == (ClaimWord.INTERIM, None, None)
        assert len(verdict.effect.columns) == 8
        assert verdict.effect.low is not None
        expected = "Interim: 8 of 9 columns complete; the verdict is given at 9."
        assert verdict.sentence.startswith(expected)
    gone = "cifar100/vgg16/cross-entropy/seed2"
    rest = [state for state in case.states if state.run.id != gone] + missing([case.registry.parse(gone)])
    verdict = case.judge(rest)["beats-cross-entropy"]
    assert (verdict.complete, len(verdict.effect.columns)) == (8, 9)
    assert verdict.effect.columns[0].seeds == (0, 1)
    assert verdict.missing == ("cross-entropy: 1 of 27 runs",)
    assert verdict.word is ClaimWord.INTERIM


def test_a_diverged_run_counts_at_chance_and_the_verdict_without_its_column_is_given_too(case):
    """100 classes, so 1 %: on the side of the baseline it is no help to have it."""
    diverged = case.changed(lambda run: run.id == "cifar100/vgg16/cross-entropy/seed2", diverged_in=3)
    verdict = case.judge(diverged)["beats-cross-entropy"]
    column = verdict.effect.columns[0]
    assert (column.seeds, column.whole, column.diverged, column.over_diverged) == ((0, 1, 2), True, 1, 1)
    last = [
        state.record.result.accuracy
        for state in case.states
        if column_of(state.run) == "cifar100/vgg16" and is_scaled(state.run) and state.run.seed == 2
    ]
    assert column.by_seed[2] == pytest.approx(np.mean(last) - 1.0)
    assert "1 of 108 runs diverged; they count at chance accuracy." in verdict.sentence
    assert (verdict.word, verdict.without) == (ClaimWord.SUPPORTED, ClaimWord.SUPPORTED)
    assert "Without the columns in which a run of the other side diverged: supported, p = 0.0039" in (
        verdict.sentence
    )


def test_scaled_bn_that_mostly_diverged_is_not_supported(case):
    """54 of its 81 runs: those that trained are ahead, and say nothing of the loss."""
    verdicts = case.judge(case.changed(lambda run: is_scaled(run) and run.seed > 0, diverged_in=3))
    for name in ("beats-cross-entropy", "beats-margin-losses"):
        assert verdicts[name].word is ClaimWord.CONTRADICTED, verdicts[name].sentence
        assert "54 of " in verdicts[name].sentence
        assert verdicts[name].without is None, "no run of the other side diverged"


def test_a_rival_that_diverged_is_not_the_better_one(case):
    """AM-Softmax at chance in six columns, PEDCC trained and ahead of scaled BN in all of them."""
    six = case.columns[:6]
    made = case.changed(lambda run: run.cell.row.startswith("am-") and column_of(run) in six, diverged_in=3)
    made = case.changed(lambda run: run.cell.row.startswith("pedcc"), made, shift=4.0)
    verdict = case.judge(made)["beats-margin-losses"]
    assert {column.over_rows for column in verdict.effect.columns} == {(RIVALS[1],)}
    assert all(column.value < 0 for column in verdict.effect.columns)
    assert verdict.word is not ClaimWord.SUPPORTED
    assert verdict.without is ClaimWord.UNDECIDED, "three columns are left"
    assert "undecided, 3 columns can be tested, and a primary claim needs at least 6" in verdict.sentence


@pytest.mark.parametrize(("row", "columns"), [("scaled-bn-m1", 1), ("cross-entropy", 9)])
def test_a_diverged_run_makes_its_column_the_largest_effect_against_either_test(case, row, columns):
    """With one such column of nine p is that of eight smaller effects in favour."""
    some = case.columns[:columns]
    verdicts = case.judge(
        case.changed(
            lambda run: run.cell.row == row and not run.cell.axes and column_of(run) in some, diverged_in=3
        )
    )
    for name in ("smaller-class-weights", "larger-late-gradient"):
        verdict = verdicts[name]
        against = stats.wilcoxon([*range(1, 10 - columns), *[-100] * columns], alternative="greater")
        assert verdict.support.p == pytest.approx(against.pvalue)
        assert verdict.opposite.p == 1.0
        assert verdict.word is ClaimWord.UNDECIDED
        assert f"{3 * columns} of 54 runs diverged; their columns count as the largest" in verdict.sentence
        assert (verdict.effect.columns[0].value, verdict.effect.value is None) == (None, columns == 9)


@pytest.mark.parametrize(("columns", "p"), [(2, 1 / 128), (3, None)])
def test_a_column_in_which_a_control_diverged_is_left_out_of_claim_6(case, columns, p):
    some = case.columns[:columns]
    made = case.changed(
        lambda run: run.cell.row == "logit-scale-s2" and run.seed == 0 and column_of(run) in some,
        diverged_in=3,
    )
    verdict = case.judge(made)["scaling-alone-does-not-help"]
    assert (verdict.support.columns, verdict.support.p) == (9 - columns, p)
    assert verdict.opposite.columns == 9 - columns
    assert verdict.word is (ClaimWord.UNDECIDED if p is None else ClaimWord.SUPPORTED)
    assert "their columns are left out of the test" in verdict.sentence


def test_one_column_far_behind_among_eight_ahead_contradicts_nothing(case):
    made = case.changed(lambda run: is_scaled(run) and column_of(run) == "facescrub/vgg16", shift=-6.8)
    verdict = case.judge(made)["beats-cross-entropy"]
    assert sorted(column.value < 0 for column in verdict.effect.columns) == [False] * 8 + [True]
    assert min(column.value for column in verdict.effect.columns) == pytest.approx(-5.8, abs=0.2)
    assert verdict.support.p == pytest.approx(33 / 512)
    assert verdict.word is ClaimWord.UNDECIDED
    assert "mirrored test p = 0.9" in verdict.sentence


def test_the_mirrored_test_of_claim_2_has_the_rival_that_is_better_in_the_papers_column(case):
    """Ours have the other one ahead in every column, which the claim's own test takes."""
    worse = {column: min(RIVALS, key=case.reported(column).get) for column in case.columns}
    made = case.changed(lambda run: run.cell.row == worse[column_of(run)], shift=6.0)
    verdict = case.judge(made)["beats-margin-losses"]
    for column, mirrored in zip(verdict.effect.columns, verdict.mirror.columns, strict=True):
        ours = worse[f"{column.dataset}/{column.network}"]
        assert column.over_rows == (ours,)
        assert mirrored.over_rows != (ours,)
        assert column.value < 0 < mirrored.value
    assert verdict.word is ClaimWord.UNDECIDED


def test_the_papers_better_row_cannot_be_taken_where_the_paper_reports_none(case):
    changes = {"over_combined": "best-reported", "over": ("cross-entropy", "cross-entropy+bias=false")}
    rules = case.rules.model_copy(update={"claims": (case.rules.claims[5].model_copy(update=changes),)})
    with pytest.raises(RegistryError, match="reports no mean of cross-entropy\\+bias=false, which"):
        case.judge(rules=rules)


def test_the_mirrored_test_of_claim_6_has_one_control_fixed_beforehand(case):
    """Without a bias everything is two points better; the control is z · 2, which is not."""
    verdict = case.judge(case.changed(lambda run: bool(run.cell.axes), shift=2.0))[NAMES[5]]
    assert {column.of_rows for column in verdict.mirror.columns} == {("logit-scale-s2",)}
    assert {column.of_rows for column in verdict.effect.columns} == {("cross-entropy+bias=false",)}
    assert verdict.word is ClaimWord.UNDECIDED


def test_runs_on_other_data_are_not_compared(case):
    made = case.changed(lambda run: run.id == "cifar100/vgg16/cross-entropy/seed2", fingerprint="e" * 64)
    verdict = case.judge(made)["beats-cross-entropy"]
    assert "VGG on CIFAR-100" not in [column.label for column in verdict.effect.columns]


def test_without_any_record_everything_missing_is_named(case):
    lacking = replace(case.registry, tables=[table for table in case.registry.tables if table.of_paper])
    states = missing(claim_runs(case.rules, lacking, case.paper))
    verdicts = judge_claims(states, lacking, case.paper, case.rules)
    assert {verdict.word for verdict in verdicts} == {ClaimWord.INTERIM}
    assert verdicts[5].missing == (
        "logit-scale-s2: 27 of 27 runs",
        "cross-entropy+bias=false: 27 of 27 runs",
        "cross-entropy: 27 of 27 runs",
    )
    assert verdicts[2].effect.value is None


def test_another_preset_says_so_in_title_and_sentence(case):
    quick = case.registry.preset("quick")
    runs = [run for run in claim_runs(case.rules, case.registry, quick) if run.cell.network == "resnet18"]
    verdicts = judge_claims(recorded(case.registry, quick, runs), case.registry, quick, case.rules)
    for verdict in verdicts:
        assert verdict.title.startswith("QUICK ")
        assert "This is about the preset quick, not about the paper." in verdict.sentence
    text = claims_text(verdicts, (), quick, case.rules)
    assert text.startswith("QUICK: ")
    assert case.rules.sha256 in text
    assert "±2 is imposed by m = 1" in text
    assert "Shown, not tested:" in text


@pytest.mark.slow
def test_the_rates_in_the_docs_are_what_the_simulation_prints(capsys):
    runpy.run_path(str(ROOT / "tools" / "simulate_statistics.py"), run_name="__main__")
    assert capsys.readouterr().out == (ROOT / "docs" / "simulation.txt").read_text()
