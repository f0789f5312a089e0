"""Overrides beside their baseline, which is the same cell without any: `repro aggregate --set lr=0.05,0.2`.

    CellResult … → DataFrame → markdown, CSV, JSON, Parquet

difference   d = the mean of d_k = the metric with the override − the baseline's, over the seeds k of both
interval     d ∓ t · s/√n, s the sample standard deviation of the n d_k, t with n − 1 degrees of freedom

Shown, not tested: the intervals are each for itself.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from repro.analysis.ablations import LEVEL
from repro.analysis.export import TableFormat, cells_frame, render_frame
from repro.analysis.inference import paired
from repro.analysis.results import CellResult
from repro.analysis.tables import escape, markdown_grid, markdown_page
from repro.analysis.text import loss_label, network_label, seeds_text, signed
from repro.attempts import NOT_RUN_YET
from repro.config import Preset
from repro.errors import UsageError, counted
from repro.paper import Metric
from repro.registry import Registry

_PLACE = ("preset", "table", "dataset", "network", "loss", "label", "overrides")
_SHARED = (*_PLACE, "n", "expected", "diverged", "mean", "std", "seeds", "accuracies")
_REMARKS = ("extra_seeds", "extra_accuracies", "not_counted", "notes")
_DIFFERENCES = ("pairs", "difference", "difference_std", "low", "high")
HOW = (
    "Baseline: the preset's recipe without an override. A value: mean ± sample standard deviation (ddof = 1) "
    "over n seeds, in percent. Difference: with the override − baseline, in points, the mean over the "
    f"seeds that both have (pairs), with its {100 * LEVEL:g} % interval (none of one pair). Shown, not "
    "tested, and not compared with the paper."
)


def overrides_frame(results: Sequence[CellResult], registry: Registry, preset: Preset) -> pd.DataFrame:
    """One row per cell, a baseline before its overrides; `results` hold both, in the registry's order.

    The columns of the CSV of cells but for what concerns the paper, then `pairs`, `difference`,
    `difference_std` (ddof = 1), `low` and `high`, in points; NaN in a baseline's row and without a pair.
    """
    baselines = {result.cell.place: result for result in results if not result.cell.axes}
    rows = [_differences(result, baselines[result.cell.place], registry.paper.metric) for result in results]
    frame = cells_frame(results, registry, preset).reindex(columns=[*_SHARED, *_REMARKS])
    differences = pd.DataFrame(rows, columns=_DIFFERENCES, dtype="float64")
    return frame.join(differences.astype({"pairs": "Int64"}))


def _differences(result: CellResult, baseline: CellResult, metric: Metric) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_DIFFERENCES)
    if result is baseline:
        return row
    base, other = (
        {run.seed: metric.of(run.accuracy) for run in each.averaged if run.accuracy is not None}
        for each in (baseline, result)
    )
    found = [value - base[seed] for seed, value in other.items() if seed in base]
    row["pairs"] = len(found)
    if found:
        row["difference"] = fmean(found)
    if estimate := paired(found):
        row["difference_std"] = stdev(found)
        row["low"], row["high"] = estimate.interval(LEVEL)
    return row


def render_overrides(
    results: Sequence[CellResult], registry: Registry, preset: Preset, table_format: TableFormat
) -> str | bytes:
    """The table of overrides; a cell in which none was run yet is left out. UsageError for another format."""
    tried = {result.cell.place for result in results if result.cell.axes and _was_run(result)}
    shown = [result for result in results if result.cell.place in tried]
    frame = overrides_frame(shown, registry, preset)
    if table_format in ("csv", "json", "parquet"):
        return render_frame(frame, table_format)
    if table_format != "markdown":
        raise UsageError(f"--set supports markdown, csv, json and parquet, not {table_format}")
    rows = zip(shown, frame.to_dict("records"), strict=True)
    words = [_words(result, row, registry) for result, row in rows]
    rest = len({result.cell.place for result in results}) - len(tried)
    return markdown_page(
        f"Overrides, {registry.paper.metric.title} in percent",
        preset,
        *((escape(HOW), markdown_grid(words)) if words else ()),
        f"Left out: {counted(rest, 'cell')} without a run of these overrides." if rest else "",
    )


def _was_run(result: CellResult) -> bool:
    return bool(result.extra) or any(run.short != NOT_RUN_YET for run in result.runs)


def _words(result: CellResult, row: dict[Any, Any], registry: Registry) -> dict[str, str]:
    cell = result.cell
    table = registry.table(cell.table)
    difference = ""
    if cell.axes:
        difference = "—" if not row["pairs"] else signed(row["difference"])
        if row["pairs"] > 1:
            difference += f" ({signed(row['low'])} to {signed(row['high'])})"
        difference += f", {counted(row['pairs'], 'pair')}"
    blanks: dict[str, list[int]] = {}
    for run in result.blanks:
        blanks.setdefault(run.reason, []).append(run.seed)
    remarks = [f"{reason} ({seeds_text(seeds)})" for reason, seeds in blanks.items()]
    return {
        "cell": f"{table.title}, {network_label(table, cell.network)}, {loss_label(table, cell.row)}",
        "override": row["overrides"].replace("+", ", ") or "none (baseline)",
        registry.paper.metric.measure: f"{result.value} ({result.count})"
        if result.n
        else f"—: {result.count}",
        "difference": difference,
        "remarks": "; ".join(filter(None, [*remarks, *result.notes, result.beside])),
    }
