"""Numbers with intervals as dots: cells against the paper's, a claim's columns, the effects of ablations."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from repro.analysis import style
from repro.analysis.ablations import LEVEL, AblationEffect, Direction, cell_label
from repro.analysis.effects import Effect
from repro.analysis.results import CellResult
from repro.analysis.rules import Rules
from repro.analysis.text import loss_label, network_label, points
from repro.analysis.verdicts import Verdict, cells_sentence
from repro.config import Preset
from repro.experiments import Table
from repro.paper import Metric
from repro.registry import Registry

# Told apart by shape as well as by colour.
_LOOKS: dict[StrEnum, dict[str, Any]] = {
    Verdict.REPRODUCED: {"marker": "o", "color": style.BLUE},
    Verdict.OFF: {"marker": "D", "color": style.ORANGE},
    Verdict.UNDECIDED: {"marker": "s", "color": "#333333", "mfc": "white"},
    Verdict.INCOMPLETE: {"marker": "^", "color": "#777777", "mfc": "white"},
    Verdict.NOT_COMPARABLE: {"marker": "x", "color": "#777777"},
    Direction.TOWARDS: {"marker": "o", "color": style.BLUE},
    Direction.AWAY: {"marker": "D", "color": style.ORANGE},
    Direction.PAST: {"marker": "^", "color": style.GREEN},
    Direction.UNCLEAR: {"marker": "s", "color": "#333333", "mfc": "white"},
    Direction.OPEN: {"marker": "x", "color": "#777777"},
}
_ROW = 0.25  # inches
_BAND = "#DDDDDD"


def draw_dots(
    table: Table,
    results: Sequence[CellResult],
    metric: Metric,
    rules: Rules,
    preset: Preset,
    look: style.Look = style.DEFAULT_LOOK,
) -> style.Drawing:
    """A panel per network, a line per loss: the reproduced mean beside the reported one with its tolerance.

    The whisker is the interval of reproduced − reported put around the reproduced mean, so it lies within the
    bar exactly where the difference lies within the tolerance. `results` are the table's judged cells.
    """
    networks = list(dict.fromkeys(result.cell.network for result in results))
    rows = list(dict.fromkeys(result.cell.row for result in results))
    labels = [style.wrap_label(loss_label(table, row), 22 if look.narrow else 40) for row in rows]
    row = max(_ROW, style.lines_height(labels))
    height, tolerance = row * (len(rows) + 0.3), rules.cells.tolerance
    words = {result.verdict.word for result in results if result.verdict and result.mean is not None}
    band = Patch(facecolor=_BAND, label=f"reported mean ± {points(tolerance)}")
    figure, panels = style.make_page(
        f"{table.heading}, reproduced and reported",
        _caption(results, rules),
        heights=[height] * len(networks),
        look=look,
        margins=style.Margins(
            left=_widest(labels) + 0.12, between=0.5 if look.narrow else 0.15, panel_title=0.22
        ),
        side_by_side=not look.narrow,
        preset=preset,
        key=_key(words, [band]),
    )
    columns = [[result for result in results if result.cell.network == network] for network in networks]
    limits = _limits(columns, tolerance)
    for panel, network, ends, column in zip(panels, networks, limits, columns, strict=True):
        panel.set_xlim(ends)
        panel.set_title(network_label(table, network), size=8, pad=4, parse_math=False)
        _name_rows(panel, labels if panel is panels[0] or look.narrow else [""] * len(rows))
        for result in column:
            _draw_cell(panel, rows.index(result.cell.row), result, tolerance)
        panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    panels[-1 if look.narrow else len(panels) // 2].set_xlabel(f"{metric.title} (%)")
    return figure


def _widest(labels: Iterable[str]) -> float:
    """The width of the longest line, in inches."""
    return max(style.text_width(line) for label in labels for line in label.split("\n"))


def _name_rows(panel: Axes, labels: Sequence[str]) -> None:
    """Labels left of the rows, without an axis, and a grid behind them."""
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_yticks(range(len(labels)), labels, size=style.LABEL_SIZE, parse_math=False)
    panel.grid(axis="x", color="#EEEEEE", lw=0.6)
    panel.set_axisbelow(True)


def _draw_mark(panel: Axes, line: int, value: float, whisker: Sequence[float] | None, **look: Any) -> None:
    if whisker:
        panel.plot(whisker, (line, line), color=look["color"], lw=1.2, zorder=3, solid_capstyle="butt")
    panel.plot(value, line, **{"ms": 4.6, "mew": 1.2, "zorder": 4, **look})


def _limits(columns: Sequence[Sequence[CellResult]], tolerance: float) -> list[tuple[float, float]]:
    """Each panel's limits; one scale for all panels: the bar, ± the tolerance, is equally wide in each."""
    places = [
        [x for result in column for x in (*_band(result, tolerance), *_whisker(result), result.mean) if x]
        for column in columns
    ]
    reaches = [(min(each), max(each)) for each in places]
    span = 1.06 * max(high - low for low, high in reaches)
    return [((low + high - span) / 2, (low + high + span) / 2) for low, high in reaches]


def _band(result: CellResult, tolerance: float) -> tuple[float, float]:
    assert result.reported is not None, "only cells that the paper reports on are drawn"
    return result.reported.mean - tolerance, result.reported.mean + tolerance


def _whisker(result: CellResult) -> tuple[float, ...]:
    """The interval of the difference, put around the reproduced mean."""
    interval = result.verdict.interval if result.verdict else None
    if interval is None or result.mean is None or result.reported is None:
        return ()
    return result.reported.mean + interval[0], result.reported.mean + interval[1]


def _draw_cell(panel: Axes, line: int, result: CellResult, tolerance: float) -> None:
    assert result.verdict is not None
    left, right = _band(result, tolerance)
    panel.add_patch(Rectangle((left, line - 0.32), 2 * tolerance, 0.64, color=_BAND, lw=0))
    panel.plot(
        [(left + right) / 2] * 2, (line - 0.32, line + 0.32), color="#555555", lw=1.1, solid_capstyle="butt"
    )
    low, high = panel.get_xlim()
    whisker = _whisker(result)
    edges, text = [left, right], result.count
    if result.mean is not None:
        _draw_mark(panel, line, result.mean, whisker, **_LOOKS[result.verdict.word])
        edges, text = [result.mean, *whisker], f"n = {result.n}"
    if result.n < result.expected:
        # On the side where there is more room.
        after = high - max(edges) > min(edges) - low
        panel.annotate(text, (max(edges) if after else min(edges), line), xytext=(4 if after else -4, 0),
                       textcoords="offset points", ha="left" if after else "right", va="center",
                       size=style.LABEL_SIZE, color=style.QUIET, parse_math=False)  # fmt: skip


def _key(drawn: Iterable[str], further: Sequence[Artist]) -> list[tuple[Artist, str]]:
    """What the shapes that are drawn mean."""
    looks = {word: look for word, look in _LOOKS.items() if word in drawn}
    marks = [Line2D([], [], ms=4.6, mew=1.2, lw=1.2, label=str(word), **look) for word, look in looks.items()]
    return [(artist, str(artist.get_label())) for artist in (*marks, *further)]


def _caption(results: Sequence[CellResult], rules: Rules) -> str:
    judging = any(result.verdict and result.verdict.word is not Verdict.NOT_COMPARABLE for result in results)
    reading = (
        f" Whisker: the {100 * rules.cells.level:g} % interval of the difference from the reported mean, put "
        "around the marker. A cell whose whisker lies within its bar is reproduced; one whose whisker lies "
        "wholly beyond the bar is off; both after correction over all the paper's cells."
    )
    return (
        "Marker: reproduced mean over the seeds after the last epoch "
        f"({style.sample_size([result.n for result in results if result.n])}).{reading if judging else ''} "
        f"{cells_sentence(results)}"
    )


def draw_effect(effect: Effect) -> style.Drawing:
    """A dot per column, a bar where the paper's own effect is, and below them the mean with its interval.

    Factors are on a log scale; the dotted line is no effect.
    """
    factor = effect.unit == "factor"
    assert effect.value is not None, "an effect without a value is not drawn"
    columns = [column for column in effect.columns if column.value is not None]
    labels = [*(column.label for column in columns), "mean"]
    margins = style.Margins(left=_widest(labels) + 0.12)
    figure, (panel,) = style.make_page("", "", (0.21 * len(labels),), style.Look(5.6), margins)
    if factor:
        panel.set_xscale("log")
    for line, column in enumerate(columns):
        if column.reported is not None and not factor:
            panel.plot(column.reported, line, "|", color=style.ORANGE, ms=8, mew=1.8)
        _draw_mark(panel, line, column.value or 0.0, None, marker="o", color=style.BLUE)
    interval = None if effect.low is None or effect.high is None else (effect.low, effect.high)
    _draw_mark(panel, len(columns), effect.value, interval, marker="D", color=style.BLACK)
    _name_rows(panel, labels)
    _effect_axis(panel, "times as much" if factor else "points", factor)
    return figure


def _effect_axis(panel: Axes, label: str, factor: bool = False) -> None:
    panel.axvline(1 if factor else 0, color=style.QUIET, lw=0.8, ls=(0, (2, 3)), zorder=0)
    if factor:
        style.log_ticks(panel.xaxis)
    else:
        panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    panel.set_xlabel(label)


def draw_ablations(
    effects: Sequence[AblationEffect],
    registry: Registry,
    preset: Preset,
    look: style.Look = style.DEFAULT_LOOK,
) -> style.Drawing:
    """A specification curve: a panel per point that the paper leaves open, a line per alternative, sorted.

    A mark with its whisker is an alternative's effect with its interval, in points; a grey bar is where the
    paper's number is. Effects without a difference are left out; at least one has one.
    """
    groups: dict[str, list[AblationEffect]] = {}
    for effect in effects:
        if effect.difference is not None:
            groups.setdefault(effect.variation.ablation.name, []).append(effect)
    for group in groups.values():
        group.sort(key=lambda effect: -(effect.difference or 0.0))
    drawn = [effect for group in groups.values() for effect in group]
    labels = {name: _effect_labels(group, registry, look) for name, group in groups.items()}
    every = [label for _, of_group in labels.values() for label in of_group]
    letters = int(13.5 * look.width)
    headings = {
        name: style.wrap_label(f"{name}: {cell}" if cell else name, letters)
        for name, (cell, _) in labels.items()
    }
    heading = style.lines_height(headings.values())
    compared = any(effect.baseline.compared for effect in drawn)
    shapes = " Shape: which way that is, seen from the paper's number; unclear where the interval includes 0."
    bar: Any = {"marker": "|", "ls": "", "ms": 11, "mew": 1.8, "color": style.GRID}
    figure, panels = style.make_page(
        "What the paper leaves open: how far each alternative moves its cell",
        f"Mark: mean with the alternative − mean as resolved, with its {100 * LEVEL:g} % interval over seeds "
        f"({style.sample_size([effect.n for effect in drawn])}).{shapes if compared else ''} Each interval "
        "is for itself: shown, not tested.",
        heights=[style.lines_height(of_group) * len(of_group) for _, of_group in labels.values()],
        look=look,
        margins=style.Margins(left=_widest(every) + 0.12, between=0.05 + heading, panel_title=heading),
        preset=preset,
        key=_key(
            {effect.direction for effect in drawn if compared},
            [Line2D([], [], label="the paper's number", **bar)] if compared else [],
        ),
    )
    for panel, (name, group) in zip(panels, groups.items(), strict=True):
        panel.sharex(panels[0])
        for line, effect in enumerate(group):
            if effect.baseline.difference is not None:
                panel.plot(-effect.baseline.difference, line, **bar)
            _draw_mark(panel, line, effect.difference or 0.0, effect.interval, **_LOOKS[effect.direction])
        _name_rows(panel, labels[name][1])
        _effect_axis(panel, f"change in {registry.paper.metric.measure} (points)")
        # Above the labels too, which are wider than the panel in a column.
        place: Any = {"xycoords": ("figure fraction", "axes fraction"), "textcoords": "offset points"}
        panel.annotate(
            headings[name], (0, 1), (2, 3), size=style.LABEL_SIZE, weight="bold", parse_math=False, **place
        )
    for panel in panels[:-1]:
        panel.spines["bottom"].set_visible(False)
        panel.tick_params(axis="x", labelbottom=False, length=0)
        panel.set_xlabel("")
    return figure


def _effect_labels(
    group: Sequence[AblationEffect], registry: Registry, look: style.Look
) -> tuple[str, list[str]]:
    """The cell that all effects are of, "" where they differ, and each one's label, then with its cell."""
    cells = [cell_label(effect, registry) for effect in group]
    wrap = 30 if look.narrow else 58
    labels = [style.wrap_label(effect.variation.alternative.label, wrap) for effect in group]
    if len(set(cells)) == 1:
        return cells[0], labels
    return "", [f"{label}\n{style.wrap_label(cell, wrap)}" for label, cell in zip(labels, cells, strict=True)]
