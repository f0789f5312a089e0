"""What each cell gets, by the rules of the project, on records made for the purpose."""

import math
from dataclasses import replace

import numpy as np
import pytest
from analysis_records import EXPERIMENTS, done, make_record, recorded
from scipy import stats

from repro.analysis.results import CellResult, RunResult, summarise
from repro.analysis.rules import read_rules
from repro.analysis.seeds import planned_seeds, reported_spread
from repro.analysis.verdicts import Verdict, judge_cells
from repro.errors import RegistryError
from repro.registry import Registry, Selection

CELL = "cifar100/vgg16/cross-entropy"


@pytest.fixture(scope="module")
def registry(real) -> Registry:
    """The project's, without the sizes of the paper's data: what is made up here has others."""
    return replace(real, tables=[t.model_copy(update={"reported_data": None}) for t in real.tables])


@pytest.fixture(scope="module")
def every(registry) -> tuple[CellResult, ...]:
    """All 72 cells, with three runs around the paper's mean: 0.25 below, at it, and 0.25 above."""
    return tuple(shifted(CellResult(cell, (), 0, None, None), 0.0) for cell in registry.cells)


def shifted(result: CellResult, difference: float, half: float = 0.25, n: int = 3) -> CellResult:
    """The cell with n complete runs whose mean is `difference` from the paper's and whose std is `half`."""
    mean = result.reported.mean + difference if n else None
    blank = "not run yet"
    runs = tuple(
        RunResult(f"{result.cell.id}/seed{k}", k, short=blank * (k >= n), reason=blank * (k >= n))
        for k in range(3)
    )
    return replace(result, n=n, mean=mean, std=half if n > 1 else None, runs=runs)


def with_cell(every, **changes) -> tuple[CellResult, ...]:
    return tuple(shifted(result, **changes) if result.cell.id == CELL else result for result in every)


def judge(every, registry, rules, preset="paper"):
    judged = judge_cells(every, registry, registry.preset(preset), rules)
    return {result.cell.id: result.verdict for result in judged}


def test_an_interval_and_its_p_are_those_of_the_formulas_by_hand(every, registry, rules):
    verdict = judge(with_cell(every, difference=0.31), registry, rules)[CELL]
    far = judge(with_cell(every, difference=-1.6), registry, rules)[CELL]
    stds = np.array([cell.reported.std for cell in registry.cells if cell.table == 1])
    assert [reading.ddof for reading in verdict.readings] == [1, 0]
    for place, factor in enumerate((1.0, 1.5)):
        reading = verdict.readings[place]
        v_ours, v_paper = 0.25**2 / 3, factor * (stds**2).mean() / 3
        error = math.sqrt(v_ours + v_paper)
        degrees = (v_ours + v_paper) ** 2 / (v_ours**2 / 48 + v_paper**2 / 48)
        half = stats.t.ppf(0.975, degrees) * error
        assert (reading.low, reading.high) == pytest.approx((0.31 - half, 0.31 + half), rel=1e-9)
        assert reading.degrees == pytest.approx(degrees, rel=1e-9)
        assert reading.p_beyond == 1.0, "the difference itself is within the tolerance"
        assert reading.p_equivalence == pytest.approx(2 * stats.t.sf(0.69 / error, degrees), rel=1e-9)
        assert far.readings[place].p_beyond == pytest.approx(2 * stats.t.sf(0.6 / error, degrees), rel=1e-9)
    assert verdict.readings[1].reported_std == pytest.approx(0.14 * math.sqrt(1.5))
    assert [reported_spread(registry.table(k), registry.paper, 1).degrees for k in (1, 2, 3)] == [48, 48, 48]


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        (0.0, Verdict.REPRODUCED),
        (-0.4, Verdict.REPRODUCED),
        (0.9, Verdict.UNDECIDED),
        (-1.2, Verdict.UNDECIDED),  # its interval excludes 0, and holds −0.7
        (-2.2, Verdict.OFF),
        (3.0, Verdict.OFF),
    ],
)
def test_a_difference_gets_the_word_of_its_interval(difference, word, every, registry, rules):
    verdict = judge(with_cell(every, difference=difference), registry, rules)[CELL]
    assert verdict.word is word
    assert verdict.sentence.startswith(str(word).capitalize())
    assert (verdict.reason == "") == (word is not Verdict.UNDECIDED)


def test_a_wide_spread_is_never_a_pass(every, registry, rules):
    """Runs 4 points apart, with a mean at the paper's; a lucky cell among them gains nothing by its own."""
    wide = tuple(shifted(result, 0.0, half=0.0 if result.cell.id == CELL else 4.0) for result in every)
    verdicts = judge(wide, registry, rules)
    assert {verdict.word for verdict in verdicts.values()} == {Verdict.UNDECIDED}
    assert "the interval holds differences within ± 1 and beyond" in verdicts[CELL].sentence


def test_the_pooled_spread_serves_a_cell_of_one_run(every, registry, rules):
    verdict = judge(with_cell(every, difference=0.1, n=1), registry, rules)[CELL]
    assert (verdict.word, verdict.so_far) == (Verdict.INCOMPLETE, Verdict.REPRODUCED)
    assert verdict.our_degrees == 46
    assert verdict.readings[0].p_equivalence_adjusted is None
    assert verdict.sentence.startswith("Incomplete, so far reproduced: 1 of 3 runs.")
    single = tuple(shifted(result, 0.0, n=1) for result in every)
    verdict = judge(single, registry, rules)[CELL]
    assert (verdict.word, verdict.so_far, verdict.readings) == (Verdict.INCOMPLETE, None, ())
    verdict = judge(with_cell(every, difference=0.0, n=0), registry, rules)[CELL]
    assert (verdict.word, verdict.sentence) == (Verdict.INCOMPLETE, "Incomplete: 0 of 3 runs.")


def test_the_correction_is_over_the_72_whatever_has_run(every, registry, rules):
    """A cell alone is held to 1/72 of the rate; among its like it is not."""
    borderline = with_cell(every, difference=0.45)
    alone = tuple(result if result.cell.id == CELL else shifted(result, 0.0, n=2) for result in borderline)
    verdict = judge(alone, registry, rules)[CELL]
    reading = verdict.readings[0]
    assert reading.p_equivalence < 0.05
    assert reading.p_equivalence_adjusted == pytest.approx(min(1.0, 72 * reading.p_equivalence))
    assert (verdict.word, verdict.reason) == (Verdict.UNDECIDED, "not after the correction over 72 cells")
    assert judge(borderline, registry, rules)[CELL].word is Verdict.REPRODUCED


def test_a_verdict_that_depends_on_the_papers_ddof_is_undecided(every, registry, rules):
    for difference in np.arange(0.3, 1.0, 0.01):
        verdict = judge(with_cell(every, difference=float(difference)), registry, rules)[CELL]
        words = [reading.word for reading in verdict.readings]
        if words[0] is not words[1]:
            break
    assert words == [Verdict.REPRODUCED, Verdict.UNDECIDED]
    assert (verdict.word, verdict.reason) == (Verdict.UNDECIDED, "it depends on how the paper computed its ±")


def test_a_cell_that_partly_diverged_is_undecided_and_one_that_wholly_did_is_off(registry, rules):
    paper = registry.preset("paper")
    states = []
    for run in registry.select_runs(Selection(tables=(1,), networks=("resnet18",)), paper):
        diverged = run.cell.row == "cross-entropy" or (run.cell.row == "scaled-bn-m1" and run.seed == 2)
        states.append(done(make_record(registry, paper, run, diverged_in=3 if diverged else None), registry))
    verdicts = judge(summarise(states, registry, paper), registry, rules)
    wholly, partly = (verdicts[f"cifar100/resnet18/{row}"] for row in ("cross-entropy", "scaled-bn-m1"))
    assert wholly.word is Verdict.OFF
    assert "all 3 runs diverged; the paper's trained" in wholly.sentence
    assert partly.word is Verdict.UNDECIDED
    assert "1 of 3 runs diverged" in partly.reason


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"test_images": 3610}, "the paper says 100, 50,000 and 10,000"),
        ({"partial": "40 classes are missing"}, "partial data (40 classes are missing)"),
    ],
)
def test_other_data_than_the_papers_are_not_comparable(changes, why, real, rules):
    paper = real.preset("paper")
    runs = real.select_runs(Selection(tables=(1,), networks=("vgg16",)), paper)
    states = recorded(real, paper, runs, **changes)
    for verdict in judge(summarise(states, real, paper), real, rules).values():
        assert verdict.word is Verdict.NOT_COMPARABLE
        assert why in verdict.sentence
        assert verdict.interval is not None, "the difference is still shown with its interval"


def test_a_reduced_preset_is_never_held_against_the_paper(every, registry, rules):
    verdicts = judge(every, registry, rules, "quick").values()
    assert {verdict.word for verdict in verdicts} == {Verdict.NOT_COMPARABLE}
    assert all("preset quick" in verdict.sentence for verdict in verdicts)


def test_an_override_of_the_recipe_gets_no_verdict_and_lends_no_spread(every, registry, rules):
    cell = replace(every[0].cell, axes=(("rotation", 15),), reported=None)
    with_it = judge((*every, replace(every[0], cell=cell, std=9.0)), registry, rules)
    assert with_it.pop(cell.id) is None
    assert with_it == judge(every, registry, rules)


def test_more_seeds_that_would_decide_a_cell_are_those_of_the_noncentral_t(every, registry, rules):
    """Whatever difference was observed; the wider reading of the paper's std."""
    stds = np.array([cell.reported.std for cell in registry.cells if cell.table == 1])
    v_paper = 1.5 * (stds**2).mean() / 3

    def power(n: int, ours: float, distance: float) -> float:
        v_ours, nu = ours**2 / n, 48 + n - 3
        degrees = (v_ours + v_paper) ** 2 / (v_ours**2 / nu + v_paper**2 / 48)
        t = stats.t.ppf(1 - 0.8 * 0.05 / 2, degrees)
        return stats.nct.sf(t, degrees, distance / math.sqrt(v_ours + v_paper))

    for half in (0.25, 0.6):
        spread = tuple(shifted(result, 0.0, half=half) for result in every)
        undecided = [
            judge(with_cell(spread, difference=d, half=half), registry, rules)[CELL].seeds
            for d in (0.9, -1.2)
        ]
        assert undecided[0] == undecided[1]
        both, off = ({n: power(n, half, 1.0) for n in range(3, 30)} for _ in range(2))
        assert undecided[0].power == pytest.approx({"reproduced": max(0, 2 * both[3] - 1), "off": off[3]})
        fewest = {
            "reproduced": next(n for n in both if 2 * both[n] - 1 >= 0.8),
            "off": next(n for n in off if off[n] >= 0.8),
        }
        assert undecided[0].more == {word: n - 3 for word, n in fewest.items()}
    assert undecided[0].sentence.startswith(f"{fewest['reproduced'] - 3} more seeds would decide with 80 %")
    assert judge(every, registry, rules)[CELL].seeds is None, "it is reproduced"
    assert judge(every, registry, rules, "quick")[CELL].seeds is None


def test_more_seeds_cannot_decide_what_the_papers_own_spread_leaves_open(every, registry, rules):
    rows = tuple(
        row.model_copy(
            update={"reported": {k: v.model_copy(update={"std": 1.0}) for k, v in row.reported.items()}}
        )
        for row in registry.table(1).rows
    )
    odd = replace(registry, tables=[registry.table(1).model_copy(update={"rows": rows})])
    seeds = judge(with_cell(every, difference=0.9)[:24], odd, rules)[CELL].seeds
    assert seeds.more == {"reproduced": None, "off": None}
    assert seeds.sentence.startswith("More seeds cannot decide, the paper's own mean of 3 runs is the limit")
    partly = replace(
        every[0], runs=(every[0].runs[0]._replace(short="diverged", diverged=True), *every[0].runs[1:])
    )
    sentence = judge((partly, *every[1:]), registry, rules)[partly.cell.id].seeds.sentence
    assert "a run diverged" in sentence


def test_seeds_are_planned_for_the_papers_own_effect_and_no_other(registry, rules):
    preset = registry.preset("paper")
    advice = planned_seeds(registry, preset, rules, (1, 2))
    assert list(advice) == ["Table 1", "Table 2", *(claim.name for claim in rules.claims)]
    for claim in rules.claims:
        seeds = advice[claim.name]
        if claim.family == "primary":
            assert seeds.power["supported"] > 0.99
            assert seeds.more == {"supported": 0}
        else:
            assert seeds.sentence == "The paper reports no effect to plan seeds with."
    few = {"columns": {"five": rules.tests.verdict_columns[:5]}, "verdict_at": "five"}
    five = rules.model_copy(update={"tests": rules.tests.model_copy(update=few)})
    seeds = planned_seeds(registry, preset, five, ())["beats-cross-entropy"]
    assert seeds.more == {"supported": None}
    assert "the test of 5 columns is the limit" in seeds.sentence


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("tolerance = 1.0", "tolerance = 0", "cells.tolerance"),
        ('off = "interval-beyond"', 'off = "excludes-0"', "cells.off"),
        ('verdict_at = "all"', 'verdict_at = "some"', "there are no columns 'some'; there are: all, without-table-3"),
        ('    "facescrub/vgg16",', '    "cifar100/vgg16",', "columns.all: expected one or more columns, each once"),
        ('    "facescrub/vgg16",', '    "facescrub",', "columns.all: expected dataset/network, got 'facescrub'"),
        ("alpha = 0.05", "alpha = 0.05\nmin_columns = 6", "tests: unknown key .min_columns.; allowed: alpha, level"),
        ('family = "primary"\n', "", "family: Field required"),
        ('direction = "less"\nmargin = 1.0\ndiverged = "largest-effect-against"', 'direction = "less"\nmargin = 1.0\ndiverged = "chance-accuracy"', "chance-accuracy is for the measure accuracy, not for logit-bulk"),
        ('mirror = { over_combined = "best-reported" }', "", "mirror: over_combined is best, by our own results"),
        ('mirror = { of = ["logit-scale-s2"], of_combined = "mean" }', "mirror = {}", "mirror: it changes nothing"),
        ('name = "narrower-logits"', 'name = "beats-cross-entropy"', "two have one name"),
        ('direction = "less"\nmargin = 1.0', 'direction = "less"\nmargin = 0.0', "positive margin"),
        ("[cells]", "[cells", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_rules_is_named(old, new, complaint, tmp_path):
    path = tmp_path / "claims.toml"
    text = (EXPERIMENTS / "claims.toml").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(RegistryError, match=complaint):
        read_rules(path)


def test_the_rules_hash_is_that_of_the_file(tmp_path, rules):
    path = tmp_path / "experiments" / "claims.toml"
    path.parent.mkdir()
    path.write_bytes((EXPERIMENTS / "claims.toml").read_bytes() + b"# a word\n")
    assert read_rules(path).sha256 != rules.sha256
    assert read_rules(path).stamp == f"Rules: experiments/claims.toml, sha256 {read_rules(path).sha256}."
