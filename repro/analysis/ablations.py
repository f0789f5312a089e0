"""Ablations: how far each alternative moves its cell, towards the paper's number or away from it.

    Variation … + CellResult …  → AblationEffect …  → markdown, CSV, JSON, the report

difference d = mean with the alternative − mean as resolved
interval     d ∓ t · s · √(1/n₁ + 1/n₂), s pooled over the study's cells, t with its degrees
best epoch   d and its interval from the runs' own differences (best − last), paired

Shown, not tested: the intervals are each for itself. docs/statistics.md has the formulas.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev

import pandas as pd

from repro.analysis.export import render_frame
from repro.analysis.inference import Estimate, PooledSpread, paired, pool
from repro.analysis.results import CellResult
from repro.analysis.tables import escape, markdown_grid, markdown_page
from repro.analysis.text import loss_label, mean_text, n_text, network_label, signed
from repro.config import Preset
from repro.errors import UsageError
from repro.paper import Metric
from repro.registry import Cell, Registry, Variation

LEVEL = 0.95  # of the intervals


class Direction(StrEnum):
    """Where an alternative moves a cell, seen from the paper's number."""

    TOWARDS = "towards"
    AWAY = "away"
    PAST = "past it"
    UNCLEAR = "unclear"
    OPEN = "open"


@dataclass(frozen=True)
class AblationEffect:
    """One alternative in one cell; accuracies in percent, differences in points, None where there is none.

    `mean`, `std` and `n` are with the alternative. `nearer` is how much less the mean differs from the
    paper's; `direction` says so only where the interval excludes 0, else `reason` says why not.
    """

    variation: Variation
    baseline: CellResult
    varied: CellResult
    mean: float | None
    std: float | None
    n: int
    difference: float | None
    interval: tuple[float, float] | None
    nearer: float | None
    direction: Direction
    reason: str


def compute_effects(
    variations: Sequence[Variation], results: Mapping[Cell, CellResult], metric: Metric
) -> tuple[AblationEffect, ...]:
    """One effect for each variation, in order; `results` hold every cell of theirs."""
    cells = dict.fromkeys(cell for each in variations for cell in (each.baseline, each.cell))
    pooled = pool([(results[cell].std, results[cell].n) for cell in cells])
    return tuple(
        _effect(each, results[each.baseline], results[each.cell], pooled, metric) for each in variations
    )


def _effect(
    variation: Variation, baseline: CellResult, varied: CellResult, pooled: PooledSpread, metric: Metric
) -> AblationEffect:
    mean, std, n, interval = varied.mean, varied.std, varied.n, None
    reason = "no cell of the study has two runs, so there is no interval"
    if not variation.alternative.trains:
        pairs = [
            (metric.of(run.best_accuracy or 0.0), metric.of(run.accuracy or 0.0)) for run in varied.averaged
        ]
        best, gains = [best for best, _ in pairs], [best - last for best, last in pairs]
        n, reason = len(best), "one run has no interval"
        mean, std = fmean(best) if best else None, stdev(best) if n > 1 else None
        estimate = paired(gains)
        interval = estimate.interval(LEVEL) if estimate else None
    elif baseline.mean is not None and mean is not None and pooled.std is not None:
        error = pooled.std * math.sqrt(1 / baseline.n + 1 / n)
        interval = Estimate(mean - baseline.mean, error, pooled.degrees).interval(LEVEL)
    difference = None if mean is None or baseline.mean is None else mean - baseline.mean
    nearer, direction = None, Direction.OPEN
    if difference is not None and baseline.difference is not None:
        before, after = baseline.difference, baseline.difference + difference
        nearer = abs(before) - abs(after)
        direction = Direction.TOWARDS if nearer > 0 else Direction.AWAY
        if interval is None or interval[0] <= 0 <= interval[1]:
            direction = Direction.UNCLEAR
        elif before * after < 0:
            direction = Direction.PAST
    if direction is not Direction.UNCLEAR or interval:
        reason = "the interval includes 0" if direction is Direction.UNCLEAR else ""
    return AblationEffect(
        variation, baseline, varied, mean, std, n, difference, interval, nearer, direction, reason
    )


def how_to_read(preset: Preset) -> str:
    """What the words of an effect mean."""
    direction = (
        " The paper: whether that is towards the paper's number, away from it, or past it; unclear where the "
        "interval includes 0, open where there is nothing to compare yet."
    )
    return (
        "As resolved, with it: mean ± sample standard deviation (ddof = 1) over n seeds. Moves by: with it − "
        f"as resolved, in points, with its {100 * LEVEL:g} % interval (spread pooled over these cells; "
        f"paired for the best epoch).{direction if preset.name == 'paper' else ''} Shown, not tested."
    )


def cell_label(effect: AblationEffect, registry: Registry) -> str:
    """`CIFAR-100, VGG, Cross-entropy Loss`: the cell that is varied."""
    cell = effect.variation.baseline
    table = registry.table(cell.table)
    return f"{table.title}, {network_label(table, cell.network)}, {loss_label(table, cell.row, cell.axes)}"


def effect_words(effect: AblationEffect, registry: Registry) -> dict[str, str]:
    """The words of one effect under the table's headers, in order; the paper's number alone where the cell
    is not compared with it.
    """
    variation, baseline, reported = effect.variation, effect.baseline, effect.baseline.reported
    varied = f"—: {effect.varied.count}"
    if effect.mean is not None:
        varied = f"{mean_text(effect.mean, effect.std)} ({n_text(effect.n, effect.varied.expected)})"
    paper = f"{reported.mean:.2f}" if reported else "—"
    if baseline.difference is not None:
        paper += f" ({signed(baseline.difference)})"
    difference = "" if effect.difference is None else signed(effect.difference)
    if effect.interval:
        difference += f" ({signed(effect.interval[0])} to {signed(effect.interval[1])})"
    direction = str(effect.direction)
    if effect.reason:
        direction += f": {effect.reason}"
    elif effect.nearer is not None and effect.direction is not Direction.PAST:
        direction += f", by {abs(effect.nearer):.2f}"
    return {
        "open point": variation.ablation.name,
        "cell": cell_label(effect, registry),
        "as resolved": f"{baseline.value} ({baseline.count})" if baseline.value else f"—: {baseline.count}",
        "paper (Δ)" if baseline.compared else "paper": paper,
        "alternative": variation.alternative.label,
        "with it": varied,
        "moves by": difference,
        **({"the paper": direction} if baseline.compared else {}),
    }


def render_effects(
    effects: Sequence[AblationEffect], registry: Registry, preset: Preset, table_format: str
) -> str:
    """The effects as markdown, CSV or JSON (numbers at full precision); UsageError for another format."""
    rows = [_fields(effect, preset) for effect in effects]
    questions = {effect.variation.ablation.name: effect.variation.ablation.question for effect in effects}
    if table_format == "csv":
        return str(render_frame(pd.DataFrame(rows, dtype=object), "csv"))
    if table_format == "json":
        moves = [{**row, "question": questions[str(row["point"])]} for row in rows]
        return json.dumps({"preset": preset.name, "level": LEVEL, "moves": moves}, indent=1) + "\n"
    if table_format != "markdown":
        raise UsageError(f"--study supports markdown, csv and json, not {table_format}")
    return markdown_page(
        f"What the paper leaves open, {registry.paper.metric.title} in percent",
        preset,
        escape(how_to_read(preset)),
        markdown_grid([effect_words(effect, registry) for effect in effects]),
        "\n".join(f"- {name}: {escape(question)}" for name, question in questions.items()),
    )


def _fields(effect: AblationEffect, preset: Preset) -> dict[str, str | int | float | None]:
    variation, baseline = effect.variation, effect.baseline
    low, high = effect.interval or (None, None)
    return {
        "preset": preset.name,
        "point": variation.ablation.name,
        "cell": variation.baseline.id,
        "alternative": variation.alternative.label,
        "alternative_cell": variation.cell.id,
        "result": variation.alternative.result,
        **{name: getattr(baseline, name) for name in ("n", "mean", "std")},
        "reported_mean": baseline.reported.mean if baseline.reported else None,
        **{f"alternative_{name}": getattr(effect, name) for name in ("n", "mean", "std")},
        **{"difference": effect.difference, "low": low, "high": high, "nearer": effect.nearer},
        **{"direction": str(effect.direction), "reason": effect.reason},
    }
