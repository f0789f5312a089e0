"""A column's training told by epoch: the test metric, and gradient norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from repro.analysis import style
from repro.analysis.results import place_in
from repro.analysis.text import loss_label, network_label
from repro.config import Preset, format_axis
from repro.experiments import TableName
from repro.paper import Metric
from repro.record_state import RunState
from repro.records import Epoch, RunRecord
from repro.registry import Registry

Value = Callable[[Epoch], float | None]
SEED_COLOURS = (style.BLUE, style.ORANGE, style.GREEN)


@dataclass(frozen=True)
class Series:
    """One loss's records: those that ended, whose mean is drawn, and those that diverged, drawn alone."""

    label: str
    line: dict[str, Any]
    ended: tuple[RunRecord, ...]
    diverged: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Column:
    """All losses of one data set and network that have a record; `name` is fit for a file."""

    name: str
    title: str
    series: tuple[Series, ...]
    metric: Metric

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Every record of the column."""
        return tuple(record for series in self.series for record in (*series.ended, *series.diverged))

    @property
    def epochs(self) -> int:
        """Epochs on the axis: at least one, also where every run diverged in its first."""
        return max(1, *(len(record.curve) for record in self.records))


def columns_of(states: Sequence[RunState], registry: Registry) -> tuple[Column, ...]:
    """The columns that have a record that counts, in order; each set of overrides is its own."""
    grouped: dict[tuple[TableName, str, str], dict[str, list[RunRecord]]] = {}
    for state in sorted(states, key=lambda state: place_in(registry, state.run.cell)):
        if state.counts and state.record is not None:
            cell = state.run.cell
            changed = "".join(f"+{name}={format_axis(to)}" for name, to in cell.axes)
            rows = grouped.setdefault((cell.table, cell.network, changed), {})
            rows.setdefault(cell.row, []).append(state.record)
    columns = []
    for (name, network, changed), records in grouped.items():
        table = registry.table(name)
        styles = style.line_styles(table)
        series = []
        for row, of_row in records.items():
            ended = tuple(record for record in of_row if record.result.accuracy is not None)
            diverged = tuple(record for record in of_row if record.result.accuracy is None)
            series.append(Series(loss_label(table, row), styles[row], ended, diverged))
        title = ", ".join([f"{network_label(table, network)} on {table.title}", *changed.split("+")[1:]])
        # Tables outside the paper may share a data set and network with one of its: no file is drawn twice.
        owner = table.dataset if table.of_paper else table.name
        name = f"{owner}-{network}{changed}"
        columns.append(Column(name, title, tuple(series), registry.paper.metric))
    return tuple(columns)


def draw_curves(column: Column, preset: Preset) -> Figure:
    """The test metric by epoch, whole and its end enlarged: a line per loss, thin ones its seeds."""
    metric, value = column.metric, _on_test(column.metric)
    height = max(2.7, 0.16 * len(column.series))
    figure, (whole, end) = style.make_page(
        f"Test {metric.measure} by epoch: {column.title}",
        f"{metric.title[:1].upper()}{metric.title[1:]} on the test images in percent; the right panel "
        f"enlarges the box in the left one. {_how_drawn(column)} Beside a label: after the last epoch.",
        panels=((2.75, height), (2.35, height)),
        margins=style.Margins(right=2.8, between=0.55),
        side_by_side=True,
        preset=preset,
    )
    _draw_column(whole, column, value)
    places = _draw_column(end, column, value)
    whole.set_ylim(0, None)
    whole.set_ylabel(f"test {metric.measure} (%)")
    start = _end_starts(column)
    end.set_xlim(start, column.epochs)
    shown = _frame(column.records, value).loc[start:].to_numpy()
    if np.isfinite(shown).any():
        room = 0.05 * float(np.nanmax(shown) - np.nanmin(shown)) or 1.0
        low, high = float(np.nanmin(shown)) - room, float(np.nanmax(shown)) + room
        end.set_ylim(low, high)
        box: Any = {"zorder": 5, "clip_on": False, "fill": False, "ec": style.QUIET, "lw": 0.7}
        whole.add_patch(Rectangle((start, low), column.epochs - start, high - low, **box))
    _name_lines(end, column, places, lambda value: f"{value:.1f}")
    return figure


def draw_gradients(column: Column, preset: Preset) -> Figure:
    """Both gradient norms by epoch on a log scale: at the softmax's input and at the pooled feature."""
    height = max(2.1, 0.16 * len(column.series))
    figure, panels = style.make_page(
        f"Gradient norms by epoch: {column.title}",
        "Means over the training images of each epoch, as trained on. Top: ‖p − y‖₂, the gradient at the "
        "softmax's input, margin included. Bottom: ‖∂ΣL/∂f‖₂, the gradient of the batch's summed "
        f"loss at an image's pooled feature. {_how_drawn(column)} Beside a label: the last epoch.",
        panels=((4.4, height), (4.4, height)),
        margins=style.Margins(right=2.8, between=0.22, left=0.72),
        preset=preset,
    )
    # A gradient of exactly zero has no place on a log scale and is left out.
    values: tuple[tuple[Value, str], ...] = (
        (lambda epoch: epoch.gradient_at_logits or None, "‖p − y‖₂"),
        (lambda epoch: epoch.gradient_at_features or None, "‖∂ΣL/∂f‖₂"),
    )
    for panel, (value, name) in zip(panels, values, strict=True):
        panel.set_yscale("log")
        places = _draw_column(panel, column, value)
        _plain_log_ticks(panel)
        panel.set_ylabel(f"mean {name}")
        _name_lines(panel, column, places, lambda value: f"{value:#.3g}" if value < 100 else f"{value:.0f}")
    figure.align_ylabels()
    panels[0].tick_params(labelbottom=False)
    panels[0].set_xlabel("")
    return figure


def draw_cell(records: Sequence[RunRecord], reported: float | None, metric: Metric) -> Figure:
    """The test metric by epoch of one cell's runs, a line per seed, the paper's mean dashed: small."""
    figure = Figure(figsize=(5, 2))
    panel = figure.add_axes((0.09, 0.14, 0.8, 0.8))
    for index, column in _frame(records, _on_test(metric)).items():
        curve, colour = column.dropna(), SEED_COLOURS[int(str(index)) % len(SEED_COLOURS)]
        panel.plot(curve.index, curve, color=colour, lw=1.2, marker="." if len(curve) == 1 else "")
    if reported is not None:
        panel.axhline(reported, color=style.BLACK, lw=0.9, dashes=(4, 3))
        panel.annotate("paper", (1, reported), xycoords=("axes fraction", "data"), xytext=(3, -2.5),
                       textcoords="offset points", size=style.LABEL_SIZE, color=style.QUIET)  # fmt: skip
    panel.set_xlim(0, max(record.config.recipe.epochs for record in records))
    panel.set_ylim(0, None)
    panel.grid(axis="y", color=style.GRID, lw=0.4)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _frame(records: Sequence[RunRecord], value: Value) -> pd.DataFrame:
    """A value by epochs trained, a column per record; NaN in epochs that have none."""
    curves = ({epoch.epoch + 1: value(epoch) for epoch in record.curve} for record in records)
    return pd.DataFrame({place: pd.Series(curve, dtype=float) for place, curve in enumerate(curves)})


def _on_test(metric: Metric) -> Value:
    return lambda epoch: None if epoch.test_accuracy is None else metric.of(epoch.test_accuracy)


def _draw_column(panel: Axes, column: Column, value: Value) -> list[float | None]:
    """Draws every loss, and returns where each one's line ends; None where nothing was drawn."""
    for drop in column.records[0].config.recipe.lr_drops:
        panel.axvline(drop, color=style.GRID, lw=0.6, ls=(0, (1, 2)), zorder=0)
    panel.set_xlim(0, column.epochs)
    panel.set_xlabel("epochs trained")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return [_draw_series(panel, series, value) for series in column.series]


def _draw_series(panel: Axes, series: Series, value: Value) -> float | None:
    last = None
    for _, column in _frame(series.diverged, value).items():
        if len(curve := column.dropna()):
            panel.plot(curve.index, curve, lw=0.6, alpha=0.6, **series.line)
            cross = {"marker": "x", "ms": 5, "mew": 1.2, "zorder": 4, "color": series.line["color"]}
            panel.plot(curve.index[-1], curve.iloc[-1], **cross)
            last = float(curve.iloc[-1])
    ended = _frame(series.ended, value)
    for _, column in ended.items() if len(series.ended) > 1 else ():
        panel.plot(column.dropna(), lw=0.45, alpha=0.45, **series.line)
    mean = ended.dropna().mean(axis=1)
    if len(mean):
        # A run of a single evaluated epoch is a point, which a line would not show.
        panel.plot(mean.index, mean, marker="o" if len(mean) == 1 else "", ms=3, **series.line)
        last = float(mean.iloc[-1])
    return last


def _name_lines(
    panel: Axes, column: Column, ends: Sequence[float | None], number: Callable[[float], str]
) -> None:
    """A legend in the order in which the lines end, the highest first."""
    named = [(end, series) for end, series in zip(ends, column.series, strict=True) if end is not None]
    named.sort(key=lambda pair: (bool(pair[1].ended), pair[0]), reverse=True)
    entries: list[tuple[Artist, str]] = []
    for end, series in named:
        lost, runs = len(series.diverged), len(series.ended) + len(series.diverged)
        text = f"{number(end)} ({lost} of {runs} diverged)" if lost else number(end)
        entries.append(
            (Line2D([], [], **series.line), f"{series.label}  {text if series.ended else 'diverged'}")
        )
    style.add_legend(panel, entries)


def _end_starts(column: Column) -> int:
    """Where the enlarged end begins: at the first of at least three evaluations after a drop of the lr."""
    record = max(column.records, key=lambda record: len(record.curve))
    evaluated = [epoch.epoch + 1 for epoch in record.curve if epoch.test_accuracy is not None]
    for drop in (*reversed(record.config.recipe.lr_drops), 0):
        after = [epoch for epoch in evaluated if epoch > drop]
        if len(after) >= 3:
            return after[0]
    return 0


def _plain_log_ticks(panel: Axes) -> None:
    """Ticks in plain numbers that are neither too few on a narrow range nor too many on a wide one."""
    low, high = panel.get_ylim()
    if high / low < 5:
        panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylim(low, high)


def _how_drawn(column: Column) -> str:
    counts = sorted({len(series.ended) for series in column.series if series.ended})
    if counts in ([], [1]):
        text = f"A line is one seed of a loss ({style.sample_size([1])})."
    else:
        n = style.sample_size(counts)
        text = f"A thick line is a loss's mean over its seeds ({n}), thin ones the seeds."
    if any(series.diverged for series in column.series):
        text += " A run that diverged ends in ×."
    return f"{text} Dotted verticals: the learning rate drops."
