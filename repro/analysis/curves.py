"""A column's training told by epoch: the test metric, and gradient norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

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


def draw_curves(column: Column, preset: Preset, look: style.Look = style.DEFAULT_LOOK) -> style.Drawing:
    """The test metric by epoch, whole and its end enlarged: a line per loss, thin ones its seeds."""
    metric, value = column.metric, _on_test(column.metric)
    figure, (whole, end) = style.make_page(
        f"Test {metric.measure} by epoch: {column.title}",
        f"{metric.title[:1].upper()}{metric.title[1:]} on the test images in percent; the second panel "
        f"enlarges the box in the first. {_how_drawn(column)} Beside a label: after the last epoch.",
        heights=(1.6, 1.6) if look.narrow else (2.3, 2.3),
        look=look,
        margins=style.Margins(between=0.3 if look.narrow else 0.5),
        side_by_side=not look.narrow,
        preset=preset,
        key=_key(column, value),
    )
    for panel in (whole, end):
        _draw_column(panel, column, value)
    whole.set_ylim(0, None)
    for panel in (whole, end) if look.narrow else (whole,):
        panel.set_ylabel(f"test {metric.measure} (%)")
    if look.narrow:
        whole.set_xlabel("")
    start = _end_starts(column)
    end.set_xlim(start, column.epochs)
    shown = _values(column.records, value)[max(0, start - 1) :]
    if np.isfinite(shown).any():
        room = 0.05 * float(np.nanmax(shown) - np.nanmin(shown)) or 1.0
        low, high = float(np.nanmin(shown)) - room, float(np.nanmax(shown)) + room
        end.set_ylim(low, high)
        box: Any = {"zorder": 5, "clip_on": False, "fill": False, "ec": style.QUIET, "lw": 0.7}
        whole.add_patch(Rectangle((start, low), column.epochs - start, high - low, **box))
    return figure


def draw_gradients(column: Column, preset: Preset, look: style.Look = style.DEFAULT_LOOK) -> style.Drawing:
    """Both gradient norms by epoch on a log scale: at the softmax's input and at the pooled feature."""
    # A gradient of exactly zero has no place on a log scale and is left out.
    values: tuple[tuple[Value, str], ...] = (
        (lambda epoch: epoch.gradient_at_logits or None, "‖p − y‖₂"),
        (lambda epoch: epoch.gradient_at_features or None, "‖∂ΣL/∂f‖₂"),
    )
    figure, panels = style.make_page(
        f"Gradient norms by epoch: {column.title}",
        "Means over the training images of each epoch, as trained on, on a log scale. ‖p − y‖₂: the gradient "
        "at the softmax's input, margin included. ‖∂ΣL/∂f‖₂: the gradient of the batch's summed loss at an "
        f"image's pooled feature. {_how_drawn(column)}",
        heights=(1.6, 1.6) if look.narrow else (2.3, 2.3),
        look=look,
        margins=style.Margins(between=0.15 if look.narrow else 0.65),
        side_by_side=not look.narrow,
        preset=preset,
        key=_key(column),
    )
    for panel, (value, name) in zip(panels, values, strict=True):
        panel.set_yscale("log")
        _draw_column(panel, column, value)
        style.log_ticks(panel.yaxis)
        panel.set_ylabel(f"mean {name}")
    if look.narrow:
        figure.align_ylabels()
        panels[0].tick_params(labelbottom=False)
        panels[0].set_xlabel("")
    return figure


def _values(records: Sequence[RunRecord], value: Value) -> np.ndarray:
    """A value by epoch, a column per record; NaN in epochs that have none."""
    values = np.full((max((len(record.curve) for record in records), default=0), len(records)), np.nan)
    for place, record in enumerate(records):
        values[: len(record.curve), place] = [value(epoch) for epoch in record.curve]
    return values


def _mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The epochs, from 1, in which every record has a value, and the mean in each."""
    epochs = np.flatnonzero(~np.isnan(values).any(axis=1))
    return epochs + 1, values[epochs].sum(axis=1) / max(1, values.shape[1])


def _on_test(metric: Metric) -> Value:
    return lambda epoch: None if epoch.test_accuracy is None else metric.of(epoch.test_accuracy)


def _draw_column(panel: Axes, column: Column, value: Value) -> None:
    for drop in column.records[0].config.recipe.lr_drops:
        panel.axvline(drop, color=style.GRID, lw=0.6, ls=(0, (1, 2)), zorder=0)
    panel.set_xlim(0, column.epochs)
    panel.set_xlabel("epochs trained")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for series in column.series:
        _draw_series(panel, series, value)


def _draw_series(panel: Axes, series: Series, value: Value) -> None:
    for curve in _values(series.diverged, value).T:
        if len(epochs := np.flatnonzero(~np.isnan(curve))):
            panel.plot(epochs + 1, curve[epochs], lw=0.6, alpha=0.6, **series.line)
            cross = {"marker": "x", "ms": 5, "mew": 1.2, "zorder": 4, "color": series.line["color"]}
            panel.plot(epochs[-1] + 1, curve[epochs[-1]], **cross)
    ended = _values(series.ended, value)
    if len(series.ended) > 1:
        evaluated = np.flatnonzero(~np.isnan(ended).all(axis=1))
        panel.plot(evaluated + 1, ended[evaluated], lw=0.45, alpha=0.45, **series.line)
    epochs, mean = _mean(ended)
    if len(mean):
        # A run of a single evaluated epoch is a point, which a line would not show.
        panel.plot(epochs, mean, marker="o" if len(mean) == 1 else "", ms=3, **series.line)


def _key(column: Column, value: Value | None = None) -> list[tuple[Artist, str]]:
    """A line per loss, in the table's order, with its mean `value` after the last epoch and what diverged."""
    entries: list[tuple[Artist, str]] = []
    for series in column.series:
        lost, runs = len(series.diverged), len(series.ended) + len(series.diverged)
        words = [series.label]
        if not series.ended:
            words.append(" diverged")
        elif value and len(mean := _mean(_values(series.ended, value))[1]):
            words.append(f" {mean[-1]:.1f}")
        if lost and series.ended:
            words.append(f"({lost} of {runs} diverged)")
        entries.append((Line2D([], [], **series.line), " ".join(words)))
    return entries


def _end_starts(column: Column) -> int:
    """Where the enlarged end begins: at the first of at least three evaluations after a drop of the lr."""
    record = max(column.records, key=lambda record: len(record.curve))
    evaluated = [epoch.epoch + 1 for epoch in record.curve if epoch.test_accuracy is not None]
    for drop in (*reversed(record.config.recipe.lr_drops), 0):
        after = [epoch for epoch in evaluated if epoch > drop]
        if len(after) >= 3:
            return after[0]
    return 0


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
