"""How far each alternative of an open point moves its cell, towards the paper's number or away from it.

    Variation … + CellSummary …  → Move …  → `repro.analysis.open_points_text`, the report

    difference d = mean with the alternative − mean as resolved
    interval     d ∓ t · s · √(1/n₁ + 1/n₂), s pooled over the study's cells, t with its degrees
    best epoch   d and its interval from the runs' own differences (best − last), paired

Shown, not tested: the intervals are each for itself. docs/statistics.md has the formulas.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from repro.analysis.aggregate import CellSummary
from repro.analysis.inference import Estimate, PooledSpread, pool
from repro.analysis.statistics import spread
from repro.registry import Cell, Variation

LEVEL = 0.95
"""Of the intervals."""


class Direction(StrEnum):
    """Where an alternative moves a cell, seen from the paper's number."""

    TOWARDS = "towards"
    AWAY = "away"
    PAST = "past it"
    UNCLEAR = "unclear"
    OPEN = "open"


@dataclass(frozen=True)
class Move:
    """One alternative in one cell; accuracies in percent, differences in points, None where there is none.

    `mean`, `std` and `n` are with the alternative. `nearer` is how much less the mean differs from the
    paper's; `direction` says so only where the interval excludes 0, else `reason` says why not.
    """

    variation: Variation
    baseline: CellSummary
    varied: CellSummary
    mean: float | None
    std: float | None
    n: int
    difference: float | None
    interval: tuple[float, float] | None
    nearer: float | None
    direction: Direction
    reason: str


def weigh(variations: Sequence[Variation], summaries: Mapping[Cell, CellSummary]) -> tuple[Move, ...]:
    """One move for each variation, in order; `summaries` hold every cell of theirs."""
    cells = dict.fromkeys(cell for each in variations for cell in (each.baseline, each.cell))
    pooled = pool([(summaries[cell].std, summaries[cell].n) for cell in cells])
    return tuple(_move(each, summaries[each.baseline], summaries[each.cell], pooled) for each in variations)


def _move(variation: Variation, baseline: CellSummary, varied: CellSummary, pooled: PooledSpread) -> Move:
    if variation.alternative.trains:
        mean, std, n = varied.mean, varied.std, varied.n
        estimate = _between(baseline, varied, pooled)
        lacking = "no cell of the study has two runs, so there is no interval"
    else:
        best = spread([run.best_accuracy for run in varied.runs if run.best_accuracy is not None])
        mean, std, n = best.mean, best.std, best.n
        estimate = _within(varied)
        lacking = "one run has no interval"
    difference = None if mean is None or baseline.mean is None else mean - baseline.mean
    interval = estimate.interval(LEVEL) if estimate else None
    nearer = None
    if difference is not None and baseline.difference is not None:
        nearer = abs(baseline.difference) - abs(baseline.difference + difference)
    direction, reason = _direction(baseline, difference, interval, lacking)
    return Move(variation, baseline, varied, mean, std, n, difference, interval, nearer, direction, reason)


def _between(baseline: CellSummary, varied: CellSummary, pooled: PooledSpread) -> Estimate | None:
    """The difference of two cells' means; both have the spread of all of them."""
    if baseline.mean is None or varied.mean is None or pooled.std is None:
        return None
    error = pooled.std * math.sqrt(1 / baseline.n + 1 / varied.n)
    return Estimate(varied.mean - baseline.mean, error, pooled.degrees)


def _within(cell: CellSummary) -> Estimate | None:
    """The mean of best − last over a cell's runs; None for fewer than two."""
    gains = spread([run.best_accuracy - run.accuracy for run in cell.runs if run.best_accuracy is not None])
    if gains.mean is None or gains.std is None:
        return None
    return Estimate(gains.mean, gains.std / math.sqrt(gains.n), gains.n - 1)


def _direction(
    baseline: CellSummary, difference: float | None, interval: tuple[float, float] | None, lacking: str
) -> tuple[Direction, str]:
    if difference is None or baseline.difference is None:
        return Direction.OPEN, ""
    if interval is None:
        return Direction.UNCLEAR, lacking
    if interval[0] <= 0 <= interval[1]:
        return Direction.UNCLEAR, "the interval includes 0"
    before, after = baseline.difference, baseline.difference + difference
    if before * after < 0:
        return Direction.PAST, ""
    return (Direction.TOWARDS if abs(after) < abs(before) else Direction.AWAY), ""
