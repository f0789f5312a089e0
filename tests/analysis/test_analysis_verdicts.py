"""What each cell gets, by the rules of the project, on records made for the purpose."""

import math
from dataclasses import replace

import numpy as np
import pytest
from analysis_records import EXPERIMENTS, done, make_record, missing
from scipy import stats

from repro.analysis.aggregate import Blank, CellSummary, summarise
from repro.analysis.cell_verdict import Judged, Verdict
from repro.analysis.rules import Rules, read_rules
from repro.analysis.verdicts import judge_cells, reported_spread
from repro.errors import RegistryError
from repro.experiments import ReportedData
from repro.registry import Registry, Selection

CELL = "cifar100/vgg16/cross-entropy"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(EXPERIMENTS)


@pytest.fixture(scope="module")
def rules() -> Rules:
    return read_rules(EXPERIMENTS / "claims.toml")


@pytest.fixture(scope="module")
def every(registry) -> tuple[CellSummary, ...]:
    """All 72 cells, with three runs around the paper's mean: 0.25 below, at it, and 0.25 above."""
    paper = registry.preset("paper")
    blank = summarise(missing(registry.select_runs(Selection(), paper)), registry, paper)
    return tuple(shifted(summary, 0.0) for summary in blank)


def shifted(summary: CellSummary, difference: float, half: float = 0.25, n: int = 3) -> CellSummary:
    """The cell with n complete runs whose mean is `difference` from the paper's and whose std is `half`."""
    mean = summary.reported.mean + difference
    std = half if n > 1 else None
    ids = [f"{summary.cell.id}/seed{seed}" for seed in range(3)]
    blanks = tuple(Blank(ids[seed], seed, "not run yet", "not run yet") for seed in range(n, 3))
    return replace(summary, n=n, mean=mean, std=std, difference=difference, blanks=blanks)


def with_cell(every, cell: str, **changes) -> tuple[CellSummary, ...]:
    return tuple(shifted(summary, **changes) if summary.cell.id == cell else summary for summary in every)


def judge(every, registry, rules, preset="paper"):
    verdicts = judge_cells(every, registry, registry.preset(preset), rules)
    return {verdict.cell.id: verdict for verdict in verdicts}


def test_numbers_at_the_papers_are_reproduced_all_72(every, registry, rules):
    verdicts = judge(every, registry, rules)
    assert len(verdicts) == 72
    assert {verdict.word for verdict in verdicts.values()} == {Verdict.REPRODUCED}


def test_an_interval_and_its_p_are_those_of_the_formulas_by_hand(every, registry, rules):
    verdict = judge(with_cell(every, CELL, difference=0.31), registry, rules)[CELL]
    stds = np.array([cell.reported.std for cell in registry.cells if cell.table == 1])
    for reading, factor in zip(verdict.readings, (1.0, 1.5), strict=True):
        v_ours, v_paper = 0.25**2 / 3, factor * (stds**2).mean() / 3
        error = math.sqrt(v_ours + v_paper)
        degrees = (v_ours + v_paper) ** 2 / (v_ours**2 / 48 + v_paper**2 / 48)
        half = stats.t.ppf(0.975, degrees) * error
        assert (reading.low, reading.high) == pytest.approx((0.31 - half, 0.31 + half), rel=1e-9)
        assert reading.degrees == pytest.approx(degrees, rel=1e-9)
        assert reading.p_beyond == 1.0, "the difference itself is within the tolerance"
        assert reading.p_equivalence == pytest.approx(2 * stats.t.sf(0.69 / error, degrees), rel=1e-9)
        far = judge(with_cell(every, CELL, difference=-1.6), registry, rules)[CELL].readings[
            reading.ddof == 0
        ]
        assert far.p_beyond == pytest.approx(2 * stats.t.sf(0.6 / error, degrees), rel=1e-9)
    assert [reading.ddof for reading in verdict.readings] == [1, 0]
    assert verdict.readings[1].reported_std == pytest.approx(0.14 * math.sqrt(1.5))


def test_the_papers_spread_has_48_degrees_of_freedom_a_table(registry):
    assert [reported_spread(registry.table(k), 1).degrees for k in (1, 2, 3)] == [48, 48, 48]


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        (0.4, Verdict.REPRODUCED),
        (-0.4, Verdict.REPRODUCED),
        (0.9, Verdict.UNDECIDED),
        (-1.2, Verdict.UNDECIDED),  # its interval excludes 0, and holds −0.7
        (-2.2, Verdict.OFF),
        (3.0, Verdict.OFF),
    ],
)
def test_a_difference_gets_the_word_of_its_interval(difference, word, every, registry, rules):
    verdict = judge(with_cell(every, CELL, difference=difference), registry, rules)[CELL]
    assert verdict.word is word
    assert verdict.sentence.startswith(str(word).capitalize())
    assert (verdict.reason == "") == (word is not Verdict.UNDECIDED)


def test_a_wide_spread_is_never_a_pass(every, registry, rules):
    """Runs 4 points apart, with a mean exactly at the paper's."""
    wide = tuple(shifted(summary, 0.0, half=4.0) for summary in every)
    verdicts = judge(wide, registry, rules)
    assert {verdict.word for verdict in verdicts.values()} == {Verdict.UNDECIDED}
    assert "the interval holds differences within ± 1 and beyond" in verdicts[CELL].sentence


def test_a_lucky_cell_of_a_noisy_table_gains_nothing_from_its_own_small_spread(every, registry, rules):
    noisy = tuple(shifted(summary, 0.0, half=0.0 if summary.cell.id == CELL else 4.0) for summary in every)
    assert judge(noisy, registry, rules)[CELL].word is Verdict.UNDECIDED


def test_the_pooled_spread_serves_a_cell_of_one_run(every, registry, rules):
    verdict = judge(with_cell(every, CELL, difference=0.1, n=1), registry, rules)[CELL]
    assert (verdict.word, verdict.so_far, verdict.missing) == (
        Verdict.INCOMPLETE,
        Verdict.REPRODUCED,
        (1, 2),
    )
    assert verdict.our_degrees == 46
    assert verdict.readings[0].p_equivalence_adjusted is None
    assert verdict.sentence.startswith("Incomplete, so far reproduced: 1 of 3 runs.")


def test_without_two_runs_of_any_cell_there_is_no_interval(every, registry, rules):
    single = tuple(shifted(summary, 0.0, n=1) for summary in every)
    verdict = judge(single, registry, rules)[CELL]
    assert (verdict.word, verdict.so_far, verdict.readings) == (Verdict.INCOMPLETE, None, ())


def test_a_cell_without_a_run_is_incomplete(registry, rules):
    paper = registry.preset("paper")
    blank = summarise(missing(registry.select_runs(Selection(), paper)), registry, paper)
    verdict = judge(blank, registry, rules)[CELL]
    assert (verdict.word, verdict.sentence) == (Verdict.INCOMPLETE, "Incomplete: 0 of 3 runs.")


def test_the_correction_is_over_the_72_whatever_has_run(every, registry, rules):
    """A cell alone is held to 1/72 of the rate; among its like it is not."""
    borderline = {"difference": 0.45}
    alone = tuple(
        shifted(summary, **borderline) if summary.cell.id == CELL else shifted(summary, 0.0, n=2)
        for summary in every
    )
    verdict = judge(alone, registry, rules)[CELL]
    reading = verdict.readings[0]
    assert reading.p_equivalence < 0.05
    assert reading.p_equivalence_adjusted == pytest.approx(min(1.0, 72 * reading.p_equivalence))
    assert (verdict.word, verdict.reason) == (Verdict.UNDECIDED, "not after the correction over 72 cells")
    assert judge(with_cell(every, CELL, **borderline), registry, rules)[CELL].word is Verdict.REPRODUCED


def test_adjusted_p_are_scipys_false_discovery_control(every, registry, rules):
    random = np.random.default_rng(3)
    noisy = tuple(shifted(summary, float(random.normal(0, 0.5))) for summary in every)
    verdicts = judge(noisy, registry, rules).values()
    for place in (0, 1):
        for field in ("p_beyond", "p_equivalence"):
            raw = [getattr(verdict.readings[place], field) for verdict in verdicts]
            adjusted = [getattr(verdict.readings[place], f"{field}_adjusted") for verdict in verdicts]
            assert adjusted == pytest.approx(stats.false_discovery_control(raw), rel=1e-9)


def test_a_verdict_that_depends_on_the_papers_ddof_is_undecided(every, registry, rules):
    for difference in np.arange(0.3, 1.0, 0.005):
        verdict = judge(with_cell(every, CELL, difference=float(difference)), registry, rules)[CELL]
        words = [reading.word for reading in verdict.readings]
        if words[0] is not words[1]:
            break
    assert words == [Verdict.REPRODUCED, Verdict.UNDECIDED]
    assert (verdict.word, verdict.reason) == (
        Verdict.UNDECIDED,
        "it depends on how the paper computed its ±",
    )


def test_a_true_difference_just_within_the_tolerance_is_hardly_ever_called_off(every, registry, rules):
    """.95 point in every cell: tested against 0, two in five were off."""
    random = np.random.default_rng(6)
    called = 0
    for _ in range(10):
        drawn = random.normal(0.95, 0.3 / math.sqrt(3), 72) - random.normal(0, 0.3 / math.sqrt(3), 72)
        noisy = tuple(shifted(s, float(d), half=0.3) for s, d in zip(every, drawn, strict=True))
        called += sum(v.word is Verdict.OFF for v in judge(noisy, registry, rules).values())
    assert called / 720 <= 0.05


def test_a_cell_that_partly_diverged_is_undecided_and_one_that_wholly_did_is_off(registry, rules):
    paper = registry.preset("paper")
    runs = registry.select_runs(Selection(tables=(1,)), paper)
    column = "cifar100/resnet18"
    states = []
    for run in runs:
        diverged = run.cell.id == f"{column}/cross-entropy" or (
            run.cell.id == f"{column}/scaled-bn-m1" and run.seed == 2
        )
        record = make_record(registry, paper, run, diverged_in=3 if diverged else None)
        states.append(done(record, registry))
    verdicts = judge(summarise(states, registry, paper), registry, rules)
    assert verdicts[f"{column}/cross-entropy"].word is Verdict.OFF
    assert "all 3 runs diverged; the paper's trained" in verdicts[f"{column}/cross-entropy"].sentence
    partly = verdicts[f"{column}/scaled-bn-m1"]
    assert (partly.word, partly.n, partly.diverged) == (Verdict.UNDECIDED, 2, 1)
    assert "1 of 3 runs diverged" in partly.reason


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"test_images": 3610}, "the paper says 100, 50,000 and 10,000"),
        ({"partial": "40 classes are missing"}, "partial data (40 classes are missing)"),
        ({"generated": True}, "generated data"),
    ],
)
def test_other_data_than_the_papers_are_not_comparable(changes, why, registry, rules):
    paper = registry.preset("paper")
    runs = registry.select_runs(Selection(tables=(1,), networks=("vgg16",)), paper)
    states = [done(make_record(registry, paper, run, **changes), registry) for run in runs]
    for verdict in judge(summarise(states, registry, paper), registry, rules).values():
        assert verdict.word is Verdict.NOT_COMPARABLE
        assert why in verdict.sentence
        assert verdict.interval is not None, "the difference is still shown with its interval"


def test_facescrub_as_found_is_not_comparable_and_would_be_with_the_papers_counts(registry, rules):
    paper = registry.preset("paper")
    runs = registry.select_runs(Selection(tables=(3,), networks=("vgg16",)), paper)
    states = [done(make_record(registry, paper, run), registry) for run in runs]
    summaries = summarise(states, registry, paper)
    assert {v.word for v in judge(summaries, registry, rules).values()} == {Verdict.NOT_COMPARABLE}
    found = ReportedData(classes=100, train_per_class=500, test_per_class=100)
    tables = [t.model_copy(update={"reported_data": found}) if t.name == 3 else t for t in registry.tables]
    told = Registry(tables, registry.presets)
    assert Verdict.NOT_COMPARABLE not in {v.word for v in judge(summaries, told, rules).values()}


def test_a_reduced_preset_is_never_held_against_the_paper(every, registry, rules):
    verdicts = judge(every, registry, rules, "quick").values()
    assert {verdict.word for verdict in verdicts} == {Verdict.NOT_COMPARABLE}
    assert all("preset quick" in verdict.sentence for verdict in verdicts)


def test_a_departure_from_the_recipe_gets_no_verdict_and_lends_no_spread(every, registry, rules):
    departure = replace(
        every[0], cell=replace(every[0].cell, axes=(("rotation", 15),)), reported=None, std=9.0
    )
    with_it = judge((*every, departure), registry, rules)
    assert with_it == judge(every, registry, rules)


def test_a_true_difference_of_the_tolerance_is_rarely_called_reproduced(every, registry, rules):
    """Simulated tables in which a tenth of the cells are truly one point off, the others not at all."""
    random = np.random.default_rng(5)
    wrong, called = 0, 0
    for _ in range(12):
        truth = np.where(np.arange(72) % 10 == 0, 1.0, 0.0)
        drawn = [
            random.normal(delta, 0.3 / math.sqrt(3)) - random.normal(0, 0.3 / math.sqrt(3)) for delta in truth
        ]
        noisy = tuple(shifted(s, float(d), half=0.3) for s, d in zip(every, drawn, strict=True))
        verdicts = list(judge(noisy, registry, rules).values())
        reproduced = [verdict.word is Verdict.REPRODUCED for verdict in verdicts]
        wrong += sum(r and t == 1.0 for r, t in zip(reproduced, truth, strict=True))
        called += sum(reproduced)
        assert not any(v.word is Verdict.OFF and t == 0 for v, t in zip(verdicts, truth, strict=True))
    assert called > 500
    assert wrong / called <= 0.05


def test_marks_and_legend_say_what_a_table_shows(every, registry, rules):
    judged = Judged(judge_cells(every, registry, registry.preset("paper"), rules), rules)
    assert judged.mark(every[0].cell) == "="
    assert rules.sha256[:12] in judged.legend
    assert "± 1 point)" in judged.legend


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("tolerance = 1.0", "tolerance = 0", "cells.tolerance"),
        ('off = "interval-beyond"', 'off = "excludes-0"', "cells.off"),
        ('partly_diverged = "undecided"', 'partly_diverged = "reproduced"', "cells.partly_diverged"),
        ('verdict_at = "all"', 'verdict_at = "some"', "there are no columns 'some'; there are: all, without-table-3"),
        ('    "facescrub/vgg16",', '    "cifar100/vgg16",', "columns.all: expected one or more columns, each once"),
        ('    "facescrub/vgg16",', '    "facescrub",', "columns.all: expected dataset/network, got 'facescrub'"),
        ("alpha = 0.05", "alpha = 0.05\nmin_columns = 6", "tests: unknown key .min_columns.; allowed: alpha, level"),
        ('family = "primary"', 'family = "main"', "family"),
        ('family = "primary"\n', "", "family: Field required"),
        ('direction = "less"\nmargin = 1.0\ndiverged = "largest-effect-against"', 'direction = "less"\nmargin = 1.0\ndiverged = "chance-accuracy"', "chance-accuracy is for the measure accuracy, not for logit-bulk"),
        ('mirror = { over_combined = "best-reported" }', "", "mirror: over_combined is best, by our own results"),
        ('mirror = { of = ["logit-scale-s2"], of_combined = "mean" }', "mirror = {}", "mirror: it changes nothing"),
        ('of_combined = "mean" }', 'of_combinde = "mean" }', "of_combinde"),
        ("[tests]", "[checks]", "tests"),
        ("resamples = 10_000", "resample = 1", "tests: unknown key .resample.; allowed: alpha, level, resamples"),
        ('measure = "accuracy"', 'measure = "speed"', "measure"),
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
    path.write_bytes((EXPERIMENTS / "claims.toml").read_bytes())
    assert read_rules(path).sha256 == rules.sha256
    path.write_bytes(path.read_bytes() + b"# a word\n")
    assert read_rules(path).sha256 != rules.sha256
    assert read_rules(path).stamp == f"Rules: experiments/claims.toml, sha256 {read_rules(path).sha256}."
