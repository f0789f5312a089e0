"""A verdict per cell: is our number the paper's?

    CellResult … + Rules  → CellResult … with a CellVerdict

reproduced      the interval of ours − paper's lies within ± the tolerance
off             that interval lies wholly beyond the tolerance, on one side; or all runs diverged
undecided       neither: a wide interval is never a pass; also where some runs diverged
incomplete      seeds are still to come; `so_far` has what the interval says of those that are there
not comparable  another preset, other classes or another split than the paper's

The spread of a cell is pooled over its table, the paper's and ours apart; where the paper prints none, ours
stands for both. The first two must hold whichever way the paper may have computed its std (ddof = 1 or 0),
and after Benjamini and Hochberg's correction over all the paper's cells. docs/statistics.md has the formulas
and the reasons.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from repro.analysis.inference import PooledSpread, benjamini_hochberg, pool
from repro.analysis.results import CellResult
from repro.analysis.rules import CellRules, Rules
from repro.analysis.seeds import Seeds, cell_seeds, compare, reported_spread, sample_std
from repro.analysis.text import points, signed
from repro.config import Preset
from repro.errors import counted
from repro.experiments import Table
from repro.paper import Paper
from repro.registry import Registry


class Verdict(StrEnum):
    """What is said of a cell."""

    REPRODUCED = "reproduced"
    OFF = "off"
    UNDECIDED = "undecided"
    INCOMPLETE = "incomplete"
    NOT_COMPARABLE = "not comparable"


MARKS = {Verdict.REPRODUCED: "=", Verdict.OFF: "≠", Verdict.UNDECIDED: "?"}  # behind Δ in a table


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The comparison under one reading of the paper's ±: a std with ddof = 1 (as ours is) or ddof = 0.

    Points throughout. `reported_std` and `paper_std` are sample stds (ddof = 1) under this reading, the
    cell's and the one pooled over the table, None where the paper prints none; `low` and `high` bound the
    difference at the rules' level. `p_beyond` is of a difference beyond the tolerance, `p_equivalence` of one
    within it; both adjusted p are None where the cell is not among those judged.
    """

    ddof: int
    reported_std: float | None
    paper_std: float | None
    standard_error: float
    degrees: float
    low: float
    high: float
    p_beyond: float
    p_equivalence: float
    p_beyond_adjusted: float | None = None
    p_equivalence_adjusted: float | None = None
    word: Verdict


@dataclass(frozen=True)
class CellVerdict:
    """What is said of a cell that the paper reports on, and on what evidence.

    `our_std` is our within-cell std pooled over the table, in points, `our_degrees` its degrees of freedom.
    `readings` (ddof = 1, then 0) are empty where there is no interval. `so_far` is set in an incomplete cell
    that has one. `reason` says why the word is not one of the first two, `sentence` all of it in words.
    `seeds`: what more seeds would decide, None where it is decided or not comparable.
    """

    word: Verdict
    so_far: Verdict | None
    our_std: float | None
    our_degrees: int
    readings: tuple[Reading, ...]
    reason: str
    sentence: str = ""
    seeds: Seeds | None = None

    @property
    def deciding(self) -> Reading | None:
        """The reading with the wider interval, which decides; None where there is no interval."""
        return max(self.readings, key=lambda reading: reading.high - reading.low, default=None)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The deciding reading's interval of the difference."""
        return (self.deciding.low, self.deciding.high) if self.deciding else None


def judge_cells(
    results: Sequence[CellResult], registry: Registry, preset: Preset, rules: Rules
) -> tuple[CellResult, ...]:
    """The results in order, each that the paper reports on with its verdict.

    Spreads are pooled over the results of a table, and the correction is over all cells of the registry
    that the paper reports on whether they are among the results or not (a missing one counts as p = 1), so
    hand over the results of every table to judge them together.
    """
    reported = [result for result in results if result.reported is not None]
    family = max(sum(cell.reported is not None for cell in registry.cells), len(reported))
    measured = [_measured(result, reported, registry, preset, rules.cells) for result in reported]
    # Only cells of which nothing is said yet are read one by one: all their runs are there and comparable.
    judged = iter(_corrected([verdict for verdict in measured if not verdict.reason], family, rules.cells))
    verdicts = {}
    for result, verdict in zip(reported, measured, strict=True):
        if not verdict.reason:
            verdict = next(judged)
        elif verdict.word is Verdict.INCOMPLETE and verdict.readings:
            partly = Verdict(rules.cells.partly_diverged)
            verdict = replace(verdict, so_far=partly if result.diverged else _common_word(verdict.readings))
        sentence = _sentence(result, verdict, registry.paper, rules.cells)
        seeds = _seeds(result, verdict, registry, rules.cells)
        verdicts[result.cell] = replace(verdict, sentence=sentence, seeds=seeds)
    return tuple(replace(result, verdict=verdicts.get(result.cell)) for result in results)


def _measured(
    result: CellResult, reported: Sequence[CellResult], registry: Registry, preset: Preset, rules: CellRules
) -> CellVerdict:
    """The cell's verdict with its readings; words that do not depend on other cells are final."""
    table = registry.table(result.cell.table)
    ours = pool([(other.std, other.n) for other in reported if other.cell.table == result.cell.table])
    word, reason = Verdict.UNDECIDED, ""
    if foreign := _not_comparable(result, table, preset):
        word, reason = Verdict.NOT_COMPARABLE, foreign
    elif result.missing:
        reason = f"{result.expected - result.missing} of {result.expected} runs"
        word = Verdict.INCOMPLETE
    elif result.n == 0:
        word = Verdict(rules.wholly_diverged)
        reason = f"all {result.diverged} runs diverged; the paper's trained"
    elif result.diverged:
        word = Verdict(rules.partly_diverged)
        reason = f"{result.diverged} of {result.expected} runs diverged and are not in the mean"
    readings: tuple[Reading, ...] = ()
    if result.difference is not None and ours.std is not None:
        paper = registry.paper
        spreads = [(ddof, reported_spread(table, paper, ddof)) for ddof in paper.reported.readings]
        if spreads[0][1].std is None:
            spreads = spreads[:1]  # nothing to read in two ways
        runs = paper.reported.runs or 1
        readings = tuple(_reading(result, ours, spread, ddof, runs, rules) for ddof, spread in spreads)
    elif not reason:
        reason = "no cell of the table has two runs, so our own spread is not known"
    return CellVerdict(word, None, ours.std, ours.degrees, readings, reason)


def _not_comparable(result: CellResult, table: Table, preset: Preset) -> str:
    """Why the cell cannot be held against the paper's; empty where it can."""
    if preset.name != "paper":
        return f"made with the preset {preset.name}, not with the paper's recipe"
    papers = table.reported_data and table.reported_data.counts
    for run in result.averaged:
        if run.partial:
            return f"trained on partial data ({run.partial})"
        if papers and run.sizes != papers:
            text = "{} classes, {:,} training and {:,} test images; the paper says {}, {:,} and {:,}"
            return text.format(*run.sizes, *papers)
    return ""


def _reading(
    result: CellResult, ours: PooledSpread, paper: PooledSpread, ddof: int, runs: int, rules: CellRules
) -> Reading:
    assert result.reported is not None and result.difference is not None and ours.std is not None  # noqa: PT018
    estimate = compare(result.difference, (ours.std, result.n, ours.degrees), paper, runs)
    low, high = estimate.interval(rules.level)
    return Reading(
        ddof=ddof,
        reported_std=sample_std(result.reported.std, ddof, runs),
        paper_std=paper.std,
        standard_error=estimate.standard_error,
        degrees=estimate.degrees,
        low=low,
        high=high,
        p_beyond=estimate.p_beyond(rules.tolerance),
        p_equivalence=estimate.p_equivalence(rules.tolerance),
        word=_by_interval(low, high, rules.tolerance),
    )


def _by_interval(low: float, high: float, tolerance: float) -> Verdict:
    if -tolerance <= low and high <= tolerance:
        return Verdict.REPRODUCED
    return Verdict.OFF if low > tolerance or high < -tolerance else Verdict.UNDECIDED


def _corrected(judged: Sequence[CellVerdict], family: int, rules: CellRules) -> list[CellVerdict]:
    """The verdicts with adjusted p and the words that these leave."""
    corrected = []
    # Cells that are not judged yet keep their place in the family: looking early gains nothing.
    # Of (beyond, equivalence), by reading and cell; a single reading stands for both.
    p = np.ones((2, 2, family))
    for place, verdict in enumerate(judged):
        p[..., place] = [[r.p_beyond, r.p_equivalence] for r in verdict.readings]
    adjusted = benjamini_hochberg(p)
    for place, verdict in enumerate(judged):
        pairs = zip(verdict.readings, adjusted[..., place].tolist(), strict=False)
        readings = tuple(
            _adjusted(reading, beyond, equivalence, rules.false_discovery_rate)
            for reading, (beyond, equivalence) in pairs
        )
        word = _common_word(readings)
        reason = _why(verdict, word, rules, family)
        corrected.append(replace(verdict, readings=readings, word=word, reason=reason))
    return corrected


def _adjusted(reading: Reading, beyond: float, equivalence: float, rate: float) -> Reading:
    needed = {Verdict.REPRODUCED: equivalence, Verdict.OFF: beyond}.get(reading.word, 0.0)
    word = reading.word if needed <= rate else Verdict.UNDECIDED
    return replace(reading, p_beyond_adjusted=beyond, p_equivalence_adjusted=equivalence, word=word)


def _common_word(readings: Sequence[Reading]) -> Verdict:
    words = {reading.word for reading in readings}
    return words.pop() if len(words) == 1 else Verdict.UNDECIDED


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


def _sentence(result: CellResult, verdict: CellVerdict, paper: Paper, rules: CellRules) -> str:
    """The verdict in words, with the numbers behind it."""
    head = verdict.word.capitalize() + (f", so far {verdict.so_far}" if verdict.so_far else "")
    if verdict.reason:
        head += f": {verdict.reason}"
    if result.difference is None or result.reported is None:
        return f"{head}."
    text = f"{result.mean:.2f} (n = {result.n}) against the paper's {result.reported.mean:.2f}, "
    text += f"{signed(result.difference)} points"
    if verdict.interval is not None:
        low, high = verdict.interval
        text += f", {100 * rules.level:g} % interval {signed(low)} to {signed(high)}"
        if verdict.readings[0].paper_std is None:
            runs = paper.reported.runs
            over = f"a mean of {counted(runs, 'run')}" if runs else "whose number of runs is not given: one"
            text += f". The paper prints no spread, so ours is used for its mean too ({over})"
    return f"{head}. {text}."


def _seeds(result: CellResult, verdict: CellVerdict, registry: Registry, rules: CellRules) -> Seeds | None:
    if verdict.word not in (Verdict.UNDECIDED, Verdict.INCOMPLETE):
        return None
    if result.diverged:
        sentence = "More seeds cannot decide: a run diverged, and such a cell is never reproduced."
        return Seeds(result.expected, {}, {}, sentence)
    ours = PooledSpread(verdict.our_std, verdict.our_degrees)
    return cell_seeds(registry.table(result.cell.table), registry.paper, ours, rules, result.expected)


def mark(result: CellResult) -> str:
    """The cell's mark behind Δ, empty for one that is not judged, incomplete or not comparable."""
    return MARKS.get(result.verdict.word, "") if result.verdict else ""


def legend(rules: Rules) -> str:
    """What the marks mean."""
    return (
        f"Behind Δ: = reproduced (the {100 * rules.cells.level:g} % interval of the difference lies within "
        f"± {points(rules.cells.tolerance)}), ≠ off (it lies wholly beyond that), ? undecided. "
        f"Rules: {rules.place}, sha256 {rules.sha256[:12]}…"
    )


def cells_sentence(results: Sequence[CellResult]) -> str:
    """`72 cells: 3 reproduced, 1 off, …`; empty where none has a verdict."""
    words = [result.verdict.word for result in results if result.verdict]
    counts = ", ".join(f"{words.count(word)} {word}" for word in Verdict if word in words)
    return f"{counted(len(words), 'cell')}: {counts}." if words else ""


def seeds_sentences(results: Sequence[CellResult]) -> list[str]:
    """What more seeds would decide: a sentence for the cells of a table that share it."""
    advised = [
        (result, result.verdict.seeds) for result in results if result.verdict and result.verdict.seeds
    ]
    counts = Counter((result.cell.table, seeds.sentence) for result, seeds in advised)
    return [
        f"Table {table}, {counted(count, 'cell')} not decided: {sentence}"
        for (table, sentence), count in counts.items()
    ]


def verdict_fields(result: CellResult) -> dict[str, object] | None:
    """A cell's verdict for a program: word and evidence, with the fields of its readings."""
    if result.verdict is None or result.reported is None:
        return None
    fields = dataclasses.asdict(result.verdict)
    return {
        **{name: fields[name] for name in ("word", "so_far")},
        **{name: getattr(result, name) for name in ("n", "expected", "diverged", "mean", "difference")},
        "missing": [run.seed for run in result.blanks if not run.diverged],
        "reported_mean": result.reported.mean,
        **{key: fields[key] for key in ("our_std", "our_degrees", "readings", "reason", "sentence", "seeds")},
    }
