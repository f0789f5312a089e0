"""What is said of a cell, and on what evidence: the verdicts that `repro.analysis.verdicts` gives.

Plain data without numpy, so that tables and pages can show it quickly.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from repro.analysis.rules import CellRules, Rules
from repro.registry import Cell


class Verdict(StrEnum):
    """What is said of a cell."""

    REPRODUCED = "reproduced"
    OFF = "off"
    UNDECIDED = "undecided"
    INCOMPLETE = "incomplete"
    NOT_COMPARABLE = "not comparable"


MARKS = {Verdict.REPRODUCED: "=", Verdict.OFF: "≠", Verdict.UNDECIDED: "?"}
"""What stands in a table behind the difference of a complete, comparable cell."""


@dataclass(frozen=True)
class Reading:
    """The comparison under one reading of the paper's ±: a std with ddof = 1 (as ours is) or ddof = 0.

    Points throughout. `reported_std` and `paper_std` are sample stds (ddof = 1) under this reading, the
    cell's and the one pooled over the table; `low` and `high` bound the difference at the rules' level.
    `p_beyond` is of a difference beyond the tolerance, `p_equivalence` of one within it; both adjusted p are
    None where the cell is not among those judged.
    """

    ddof: int
    reported_std: float
    paper_std: float
    standard_error: float
    degrees: float
    low: float
    high: float
    p_beyond: float
    p_equivalence: float
    p_beyond_adjusted: float | None
    p_equivalence_adjusted: float | None
    word: Verdict


@dataclass(frozen=True)
class CellVerdict:
    """What is said of a cell that the paper reports on, and on what evidence.

    `difference` is ours − paper's in points. `our_std` is our within-cell std pooled over the table, with
    `our_degrees`. `readings` (ddof = 1, then 0) are empty where there is no interval. `so_far` is set in an
    incomplete cell that has an interval. `missing` are the seeds to come, `reason` why the word is not one of
    the first two, and `sentence` all of it in words.
    """

    cell: Cell
    word: Verdict
    so_far: Verdict | None
    n: int
    expected: int
    missing: tuple[int, ...]
    diverged: int
    mean: float | None
    reported_mean: float
    difference: float | None
    our_std: float | None
    our_degrees: int
    readings: tuple[Reading, ...]
    reason: str
    sentence: str

    @property
    def interval(self) -> tuple[float, float] | None:
        """The wider reading's interval of the difference, which decides."""
        if not self.readings:
            return None
        widest = max(self.readings, key=lambda reading: reading.high - reading.low)
        return widest.low, widest.high


@dataclass(frozen=True)
class Judged:
    """The verdicts of all cells that the paper reports on, and the rules behind them."""

    cells: tuple[CellVerdict, ...]
    rules: Rules

    def of(self, cell: Cell) -> CellVerdict | None:
        """A cell's verdict; None for one that the paper does not report on."""
        return next((verdict for verdict in self.cells if verdict.cell == cell), None)

    def mark(self, cell: Cell) -> str:
        """The cell's mark in a table, empty for one that is incomplete or not comparable."""
        verdict = self.of(cell)
        return MARKS.get(verdict.word, "") if verdict is not None else ""

    @property
    def legend(self) -> str:
        """What the marks mean."""
        rules = self.rules.cells
        return (
            f"Behind Δ: = reproduced (the {100 * rules.level:g} % interval of the difference lies within "
            f"± {points(rules.tolerance)}), ≠ off (it lies wholly beyond that), ? undecided. "
            f"Rules: {self.rules.place}, sha256 {self.rules.sha256[:12]}…"
        )


def verdict_fields(verdict: CellVerdict) -> dict[str, object]:
    """A cell's verdict for a program: the fields of CellVerdict but its cell, with those of its readings."""
    fields = dataclasses.asdict(verdict)
    del fields["cell"]
    return fields


def cells_sentence(cells: Sequence[CellVerdict]) -> str:
    """`72 cells: 3 reproduced, 1 off, …`."""
    counts = [(word, sum(verdict.word is word for verdict in cells)) for word in Verdict]
    return f"{len(cells)} cells: {', '.join(f'{count} {word}' for word, count in counts if count)}."


def verdict_sentence(verdict: CellVerdict, rules: CellRules) -> str:
    """The verdict in words, with the numbers behind it."""
    word = f"{verdict.word}, so far {verdict.so_far}" if verdict.so_far else str(verdict.word)
    head = f"{word[0].upper()}{word[1:]}"
    if verdict.reason:
        head += f": {verdict.reason}"
    if verdict.difference is None:
        return f"{head}."
    text = (
        f"{verdict.mean:.2f} (n = {verdict.n}) against the paper's {verdict.reported_mean:.2f}, "
        f"{signed(verdict.difference)} points"
    )
    if verdict.interval is not None:
        low, high = verdict.interval
        text += f", {100 * rules.level:g} % interval {signed(low)} to {signed(high)}"
    return f"{head}. {text}."


def points(value: float) -> str:
    """`1 point`, `1.5 points`."""
    return f"{value:g} point" if value == 1 else f"{value:g} points"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a true minus, and never −0.00."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")
