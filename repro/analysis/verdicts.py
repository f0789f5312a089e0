"""A verdict a cell: is our number the paper's?

    CellSummary … + Rules  → CellVerdict …

reproduced      the interval of ours − paper's lies within ± the tolerance
off             that interval lies wholly beyond the tolerance, on one side; or all runs diverged
undecided       neither: a wide interval is never a pass; also where some runs diverged
incomplete      seeds are still to come; `so_far` has what the interval says of those that are there
not comparable  another preset, other classes or another split than the paper's

The spread of a cell is pooled over its table, the paper's and ours apart. The first two must hold whichever
way the paper computed its std (ddof = 1 or 0), and after Benjamini and Hochberg's correction over all the
paper's cells. docs/statistics.md has the formulas and the reasons.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from repro.analysis.aggregate import CellSummary
from repro.analysis.cell_verdict import CellVerdict, Reading, Verdict, verdict_sentence
from repro.analysis.inference import PooledSpread, benjamini_hochberg, pool, welch
from repro.analysis.rules import CellRules, Rules
from repro.config import Preset
from repro.experiments import Table
from repro.registry import Cell, Registry

PAPER_RUNS = 3
"""Runs behind each of the paper's means."""


def judge_cells(
    summaries: Sequence[CellSummary], registry: Registry, preset: Preset, rules: Rules
) -> tuple[CellVerdict, ...]:
    """A verdict for each summary that the paper reports on, in order.

    Spreads are pooled over the summaries of a table, and the correction is over all cells of the registry
    that the paper reports on whether they are among the summaries or not (a missing one counts as p = 1), so
    hand over the summaries of every table to judge them together.
    """
    judged = [_measured(summary, summaries, registry, preset, rules) for summary in summaries
              if summary.reported is not None]  # fmt: skip
    family = sum(cell.reported is not None for cell in registry.cells)
    family = max(family, len(judged))
    return tuple(_worded(verdict, rules, family) for verdict in _corrected(judged, family, rules.cells))


def reported_spread(table: Table, ddof: int) -> PooledSpread:
    """The paper's within-cell spread, pooled over a table, under one reading of its stds."""
    reported = [value for row in table.rows for value in row.reported.values()]
    return pool([(sample_std(value.std, ddof), PAPER_RUNS) for value in reported])


def sample_std(std: float, ddof: int) -> float:
    """A printed std of three runs as a sample std (ddof = 1): √(3/2) times it where it has ddof = 0."""
    return std * math.sqrt((PAPER_RUNS - ddof) / (PAPER_RUNS - 1))


def _measured(
    summary: CellSummary, summaries: Sequence[CellSummary], registry: Registry, preset: Preset, rules: Rules
) -> CellVerdict:
    """The cell with its readings; words that do not depend on other cells are final."""
    assert summary.reported is not None
    table = registry.table(summary.cell.table)
    ours = pool([
        (other.std, other.n) for other in summaries
        if other.cell.table == summary.cell.table and other.reported is not None
    ])  # fmt: skip
    missing = tuple(blank.seed for blank in summary.blanks if not blank.diverged)
    foreign = _not_comparable(summary, table, preset)
    word, reason = Verdict.UNDECIDED, ""
    if foreign:
        word, reason = Verdict.NOT_COMPARABLE, foreign
    elif missing:
        word, reason = Verdict.INCOMPLETE, f"{summary.expected - len(missing)} of {summary.expected} runs"
    elif summary.n == 0:
        word = Verdict(rules.cells.wholly_diverged)
        reason = f"all {summary.diverged} runs diverged; the paper's trained"
    elif summary.diverged:
        word = Verdict(rules.cells.partly_diverged)
        reason = f"{summary.diverged} of {summary.expected} runs diverged and are not in the mean"
    readings: tuple[Reading, ...] = ()
    if summary.difference is not None and ours.std is not None:
        readings = tuple(
            _reading(summary.difference, summary, ours, table, ddof, rules.cells) for ddof in (1, 0)
        )
    elif not reason:
        reason = "no cell of the table has two runs, so our own spread is not known"
    return CellVerdict(
        cell=summary.cell,
        word=word,
        so_far=None,
        n=summary.n,
        expected=summary.expected,
        missing=missing,
        diverged=summary.diverged,
        mean=summary.mean,
        reported_mean=summary.reported.mean,
        difference=summary.difference,
        our_std=ours.std,
        our_degrees=ours.degrees,
        readings=readings,
        reason=reason,
        sentence="",
    )


def _not_comparable(summary: CellSummary, table: Table, preset: Preset) -> str:
    """Why the cell cannot be held against the paper's; empty where it can."""
    if preset.name != "paper":
        return f"made with the preset {preset.name}, not with the paper's recipe"
    if any(run.generated for run in summary.runs):
        return "trained on generated data"
    if partial := next((run.partial for run in summary.runs if run.partial), None):
        return f"trained on partial data ({partial})"
    paper = table.reported_data
    if paper is not None:
        counts = (paper.classes, paper.classes * paper.train_per_class, paper.classes * paper.test_per_class)
        for run in summary.runs:
            found = (run.classes, run.train_images, run.test_images)
            if found != counts:
                return (
                    "{} classes, {:,} training and {:,} test images; the paper says {}, {:,} and {:,}"
                ).format(*found, *counts)
    return ""


def _reading(
    difference: float, summary: CellSummary, ours: PooledSpread, table: Table, ddof: int, rules: CellRules
) -> Reading:
    assert summary.reported is not None
    assert ours.std is not None
    paper = reported_spread(table, ddof)
    assert paper.std is not None
    estimate = welch(difference, (ours.std, summary.n, ours.degrees), (paper.std, PAPER_RUNS, paper.degrees))
    low, high = estimate.interval(rules.level)
    return Reading(
        ddof=ddof,
        reported_std=sample_std(summary.reported.std, ddof),
        paper_std=paper.std,
        standard_error=estimate.standard_error,
        degrees=estimate.degrees,
        low=low,
        high=high,
        p_beyond=estimate.p_beyond(rules.tolerance),
        p_equivalence=estimate.p_equivalence(rules.tolerance),
        p_beyond_adjusted=None,
        p_equivalence_adjusted=None,
        word=_by_interval(low, high, rules.tolerance),
    )


def _by_interval(low: float, high: float, tolerance: float) -> Verdict:
    if -tolerance <= low and high <= tolerance:
        return Verdict.REPRODUCED
    if low > tolerance or high < -tolerance:
        return Verdict.OFF
    return Verdict.UNDECIDED


def _corrected(verdicts: Sequence[CellVerdict], family: int, rules: CellRules) -> list[CellVerdict]:
    """The verdicts with adjusted p and the words that these leave."""
    judged = [verdict for verdict in verdicts if _is_judged(verdict)]
    # Cells that are not judged yet keep their place in the family: looking early gains nothing.
    absent = [1.0] * (family - len(judged))
    adjusted: dict[Cell, list[Reading]] = {verdict.cell: [] for verdict in judged}
    for place in (0, 1):
        readings = [verdict.readings[place] for verdict in judged]
        different = benjamini_hochberg([*(reading.p_beyond for reading in readings), *absent])
        equivalent = benjamini_hochberg([*(reading.p_equivalence for reading in readings), *absent])
        for verdict, reading, p_different, p_equivalent in zip(
            judged, readings, different, equivalent, strict=False
        ):
            p_of_word = {Verdict.REPRODUCED: p_equivalent, Verdict.OFF: p_different}.get(reading.word, 0.0)
            adjusted[verdict.cell].append(
                replace(
                    reading,
                    p_beyond_adjusted=p_different,
                    p_equivalence_adjusted=p_equivalent,
                    word=reading.word if p_of_word <= rules.false_discovery_rate else Verdict.UNDECIDED,
                )
            )
    return [
        replace(verdict, readings=tuple(adjusted.get(verdict.cell, verdict.readings))) for verdict in verdicts
    ]


def _is_judged(verdict: CellVerdict) -> bool:
    """Whether the cell is complete, comparable, and has an interval over all its runs."""
    return verdict.word is Verdict.UNDECIDED and not verdict.diverged and bool(verdict.readings)


def _worded(verdict: CellVerdict, rules: Rules, family: int) -> CellVerdict:
    """The verdict with its final word, reason and sentence."""
    words = {reading.word for reading in verdict.readings}
    common = words.pop() if len(words) == 1 else Verdict.UNDECIDED
    if _is_judged(verdict):
        reason = _why(verdict, common, rules.cells, family)
        verdict = replace(verdict, word=common, reason=reason)
    elif verdict.word is Verdict.INCOMPLETE and verdict.readings:
        diverged = Verdict(rules.cells.partly_diverged)
        verdict = replace(verdict, so_far=diverged if verdict.diverged else common)
    return replace(verdict, sentence=verdict_sentence(verdict, rules.cells))


def _why(verdict: CellVerdict, word: Verdict, rules: CellRules, family: int) -> str:
    """Why a judged cell is neither reproduced nor off; empty where it is one of them."""
    if word is not Verdict.UNDECIDED:
        return ""
    before = {_by_interval(reading.low, reading.high, rules.tolerance) for reading in verdict.readings}
    if before == {Verdict.UNDECIDED}:
        return f"the interval holds differences within ± {rules.tolerance:g} and beyond"
    if len(before) > 1:
        return "it depends on how the paper computed its ±"
    return f"not after the correction over {family} cells"
