"""A column's training told by epoch: test accuracy, and the gradients that the paper argues from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from repro.analysis.layout import loss_label, network_label, preset_sentence, qualified_title
from repro.analysis.style import (
    QUIET,
    LineStyle,
    Margins,
    label_ends,
    label_room,
    line_styles,
    make_page,
    sample_size,
)
from repro.config import Preset, format_axis
from repro.experiments import TableName
from repro.record_state import RunState
from repro.records import Epoch, RunRecord
from repro.registry import Registry

Value = Callable[[Epoch], float | None]


@dataclass(frozen=True)
class Series:
    """One loss's records: those that ended, whose mean is drawn, and those that diverged, drawn alone."""

    label: str
    style: LineStyle
    ended: tuple[RunRecord, ...]
    diverged: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Column:
    """All losses of one data set and network that have a record; `name` is fit for a file."""

    name: str
    title: str
    series: tuple[Series, ...]

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Every record of the column."""
        return tuple(record for series in self.series for record in (*series.ended, *series.diverged))


def columns_of(states: Sequence[RunState], registry: Registry) -> tuple[Column, ...]:
    """The columns that have a record that counts, in the registry's order; each set of axes is its own."""
    grouped: dict[tuple[TableName, str, str], dict[str, list[RunState]]] = {}
    for state in states:
        if state.counts and state.record is not None:
            cell = state.run.cell
            axes = "".join(f"+{axis}={format_axis(value)}" for axis, value in cell.axes)
            grouped.setdefault((cell.table, cell.network, axes), {}).setdefault(cell.row, []).append(state)
    columns = []
    networks = tuple(registry.networks)
    order = [(table.name, network) for table in registry.tables for network in (*table.networks, *networks)]
    for (number, network, axes), rows in sorted(
        grouped.items(), key=lambda item: (order.index(item[0][:2]), item[0][2])
    ):
        table = registry.table(number)
        styles = line_styles(table)
        series = []
        for row in table.rows:
            records = [state.record for state in rows.get(row.name, []) if state.record is not None]
            if records:
                series.append(
                    Series(
                        loss_label(table, row.name, ()),
                        styles[row.name],
                        tuple(record for record in records if record.result.diverged_in is None),
                        tuple(record for record in records if record.result.diverged_in is not None),
                    )
                )
        title = ", ".join([f"{network_label(table, network)} on {table.title}", *axes.split("+")[1:]])
        columns.append(Column(f"{table.dataset}-{network}{axes}", title, tuple(series)))
    return tuple(columns)


def draw_curves(column: Column, preset: Preset) -> Figure:
    """Test accuracy by epoch, whole and its end enlarged: a line a loss, thin ones its seeds."""
    figure, (whole, end) = make_page(
        qualified_title(f"Test accuracy by epoch: {column.title}", preset, _generated(column)),
        "Top-1 accuracy on the test images in percent; the right panel enlarges the box in the left one. "
        f"{_how_drawn(column)} Beside a label: the accuracy after the last epoch. {preset_sentence(preset)}",
        panels=((2.75, 2.7), (2.35, 2.7)),
        margins=Margins(right=_label_room(column, 2.35), between=0.55),
        side_by_side=True,
    )
    last = _longest(column)
    ends = []
    for series in column.series:
        for panel in (whole, end):
            place = _draw_series(panel, series, lambda epoch: epoch.test_accuracy)
        ends.append((*place, f"{series.label}  {_ending(series, f'{place[1]:.1f}')}", series.style.colour))
    whole.set_xlim(0, last)
    whole.set_ylim(0, None)
    start = _end_starts(column)
    visible = [
        epoch.test_accuracy
        for record in column.records
        for epoch in record.curve
        if epoch.test_accuracy is not None and epoch.epoch + 1 >= start
    ]
    end.set_xlim(start, last)
    if visible:
        room = 0.05 * (max(visible) - min(visible)) or 1.0
        end.set_ylim(min(visible) - room, max(visible) + room)
        corner, size = (start, end.get_ylim()[0]), (last - start, end.get_ylim()[1] - end.get_ylim()[0])
        whole.add_patch(Rectangle(corner, *size, fill=False, ec=QUIET, lw=0.7, zorder=5, clip_on=False))
    for panel in (whole, end):
        _mark_drops(panel, column)
        panel.set_xlabel("epochs trained")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    whole.set_ylabel("test accuracy (%)")
    label_ends(end, [entry for entry in ends if np.isfinite(entry[1])])
    return figure


def draw_gradients(column: Column, preset: Preset) -> Figure:
    """Both gradient norms by epoch on a log scale: at the softmax's input and at the pooled feature."""
    figure, panels = make_page(
        qualified_title(f"Gradient norms by epoch: {column.title}", preset, _generated(column)),
        "Means over the training images of each epoch, as trained on. Top: ‖p − y‖₂, the gradient at the "
        "softmax's input, margin included (Eq. 8). Bottom: ‖∂ΣL/∂f‖₂, the gradient of the batch's summed "
        f"loss at an image's pooled feature. {_how_drawn(column)} Beside a label: the last epoch. "
        f"{preset_sentence(preset)}",
        panels=((4.4, 2.1), (4.4, 2.1)),
        margins=Margins(right=_label_room(column, 4.4), between=0.22, left=0.72),
    )
    last = _longest(column)
    # A gradient of exactly zero has no place on a log scale and is left out.
    values: tuple[Value, Value] = (
        lambda epoch: epoch.gradient_at_logits or None,
        lambda epoch: epoch.gradient_at_features or None,
    )
    for panel, value, name in zip(panels, values, ("‖p − y‖₂", "‖∂ΣL/∂f‖₂"), strict=True):
        panel.set_yscale("log")
        places = [_draw_series(panel, series, value) for series in column.series]
        panel.set_xlim(0, last)
        _plain_log_ticks(panel)
        _mark_drops(panel, column)
        panel.set_ylabel(f"mean {name}")
        label_ends(
            panel,
            [
                (*place, f"{series.label}  {_ending(series, _three_digits(place[1]))}", series.style.colour)
                for series, place in zip(column.series, places, strict=True)
                if np.isfinite(place[1])
            ],
        )
    figure.align_ylabels()
    panels[0].tick_params(labelbottom=False)
    panels[1].set_xlabel("epochs trained")
    panels[1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _draw_series(panel: Axes, series: Series, value: Value) -> tuple[float, float]:
    """Draws a loss and returns where its line ends: (epochs trained, value), NaN where nothing was drawn."""
    colour, dash = series.style.colour, series.style.dash
    place = (float("nan"), float("nan"))
    for record in series.diverged:
        epochs, heights = _points(record, value)
        if epochs:
            panel.plot(epochs, heights, color=colour, linestyle=dash, lw=0.6, alpha=0.6)
            panel.plot(epochs[-1], heights[-1], "x", color=colour, ms=5, mew=1.2, clip_on=False, zorder=4)
            place = (epochs[-1], heights[-1])
    if not series.ended:
        return place
    curves = [dict(zip(*_points(record, value), strict=True)) for record in series.ended]
    if len(curves) > 1:
        for curve in curves:
            panel.plot(list(curve), list(curve.values()), color=colour, linestyle=dash, lw=0.45, alpha=0.45)
    shared = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    if not shared:
        return place
    means = [sum(curve[epoch] for curve in curves) / len(curves) for epoch in shared]
    # A run of a single evaluated epoch is a point, which a line would not show.
    panel.plot(shared, means, color=colour, linestyle=dash, marker="o" if len(shared) == 1 else "", ms=3)
    return float(shared[-1]), means[-1]


def _points(record: RunRecord, value: Value) -> tuple[list[int], list[float]]:
    """Epochs trained and values, without the epochs that have none."""
    found = [(epoch.epoch + 1, value(epoch)) for epoch in record.curve]
    kept = [(epoch, height) for epoch, height in found if height is not None]
    return [epoch for epoch, _ in kept], [height for _, height in kept]


def _longest(column: Column) -> int:
    """Epochs on the axis: at least one, also where every run diverged in its first."""
    return max(1, *(len(record.curve) for record in column.records))


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


def _mark_drops(panel: Axes, column: Column) -> None:
    for drop in column.records[0].config.recipe.lr_drops:
        panel.axvline(drop, color="#999999", lw=0.6, ls=(0, (1, 2)), zorder=0)


def _ending(series: Series, number: str) -> str:
    if not series.ended:
        return "diverged"
    runs = len(series.ended) + len(series.diverged)
    return f"{number} ({len(series.diverged)} of {runs} diverged)" if series.diverged else number


def _three_digits(value: float) -> str:
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def _label_room(column: Column, panel_width: float) -> float:
    """Room for every label with the widest number that may stand behind it."""
    widest = (f"{series.label}  {_ending(series, '0.00000')}" for series in column.series)
    return label_room(widest, panel_width)


def _how_drawn(column: Column) -> str:
    counts = sorted({len(series.ended) for series in column.series if series.ended})
    if counts in ([], [1]):
        text = f"A line is one seed of a loss ({sample_size([1])})."
    else:
        text = f"A thick line is a loss's mean over its seeds ({sample_size(counts)}), thin ones the seeds."
    if any(series.diverged for series in column.series):
        text += " A run that diverged ends in ×."
    return f"{text} Dotted verticals: the learning rate drops."


def _generated(column: Column) -> bool:
    return any(record.data.generated for record in column.records)
