"""Numbers with intervals as dots: cells against the paper's, a claim's columns, the effects of ablations."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from repro.analysis import style
from repro.analysis.ablations import LEVEL, AblationEffect, Direction, cell_label
from repro.analysis.effects import Effect
from repro.analysis.results import CellResult
from repro.analysis.rules import Rules
from repro.analysis.text import loss_label, network_label, points, preset_sentence, qualified_title
from repro.analysis.verdicts import Verdict, cells_sentence
from repro.config import Preset
from repro.experiments import Table
from repro.registry import Registry

# Told apart by shape as well as by colour.
_LOOKS: dict[Verdict, dict[str, Any]] = {
    Verdict.REPRODUCED: {"marker": "o", "color": style.BLUE},
    Verdict.OFF: {"marker": "D", "color": style.ORANGE},
    Verdict.UNDECIDED: {"marker": "s", "color": "#333333", "mfc": "white"},
    Verdict.INCOMPLETE: {"marker": "^", "color": "#777777", "mfc": "white"},
    Verdict.NOT_COMPARABLE: {"marker": "x", "color": "#777777"},
}
_DIRECTIONS: dict[Direction, dict[str, Any]] = {
    Direction.TOWARDS: {"marker": "o", "color": style.BLUE},
    Direction.AWAY: {"marker": "D", "color": style.ORANGE},
    Direction.PAST: {"marker": "^", "color": style.GREEN},
    Direction.UNCLEAR: {"marker": "s", "color": "#333333", "mfc": "white"},
    Direction.OPEN: {"marker": "x", "color": "#777777"},
}
_PANEL, _ROW = 1.75, 0.25  # inches
_BAND = "#DDDDDD"


def draw_dots(table: Table, results: Sequence[CellResult], rules: Rules, preset: Preset) -> Figure:
    """A panel per network and a line per loss: the paper's mean with the tolerance around it, and ours.

    The whisker is the interval of ours − paper's put around our mean, so it lies within the bar exactly where
    the difference lies within the tolerance. `results` are the table's judged cells.
    """
    networks = list(dict.fromkeys(result.cell.network for result in results))
    rows = list(dict.fromkeys(result.cell.row for result in results))
    labels = [loss_label(table, row) for row in rows]
    panel_height = _ROW * (len(rows) + 0.3)
    generated = any(run.generated for result in results for run in result.averaged)
    figure, panels = style.make_page(
        qualified_title(f"{table.heading}, ours against the paper's", preset, generated),
        _caption(results, rules, preset),
        panels=((_PANEL, panel_height),) * len(networks),
        margins=style.Margins(
            left=max(map(len, labels)) / 19 + 0.15, between=0.22, panel_title=0.45, right=0.15
        ),
        side_by_side=True,
    )
    tolerance = rules.cells.tolerance
    columns = [[result for result in results if result.cell.network == network] for network in networks]
    for panel, network, (low, high), column in zip(
        panels, networks, _limits(columns, tolerance), columns, strict=True
    ):
        panel.set_xlim(low, high)
        panel.set_ylim(len(rows) - 0.4, -0.7)
        panel.set_title(network_label(table, network), size=8, weight="bold", pad=4, parse_math=False)
        for result in column:
            _draw_cell(panel, rows.index(result.cell.row), result, tolerance)
        panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        panel.grid(axis="x", color="#EEEEEE", lw=0.6)
        panel.set_axisbelow(True)
        _name_rows(panel, labels if panel is panels[0] else [""] * len(rows))
    panels[len(panels) // 2].set_xlabel("top-1 accuracy (%)")
    words = {result.verdict.word for result in results if result.verdict and result.mean is not None}
    band = [Patch(facecolor=_BAND, label=f"the paper's mean ± {points(tolerance)}")]
    _draw_key(panels[0], _LOOKS, words, band, 1 + 0.25 / panel_height)
    return figure


def _name_rows(panel: Axes, labels: Sequence[str]) -> None:
    """Labels left of the rows, without an axis."""
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_yticks(range(len(labels)), labels, size=style.LABEL_SIZE, parse_math=False)


def _limits(columns: Sequence[Sequence[CellResult]], tolerance: float) -> list[tuple[float, float]]:
    """Each panel's limits; one scale for all panels: the bar, ± the tolerance, is equally wide in each."""
    reaches = []
    for column in columns:
        places: list[float] = []
        for result in column:
            paper = _reported(result)
            places += [paper - tolerance, paper + tolerance, *_whisker(result)]
            places += [] if result.mean is None else [result.mean]
        reaches.append((min(places), max(places)))
    span = 1.06 * max(high - low for low, high in reaches)
    whole = (min(low for low, _ in reaches), max(high for _, high in reaches))
    if whole[1] - whole[0] < 1.2 * span:
        span, reaches = 1.06 * (whole[1] - whole[0]), [whole] * len(columns)
    return [((low + high - span) / 2, (low + high + span) / 2) for low, high in reaches]


def _reported(result: CellResult) -> float:
    assert result.reported is not None, "only cells that the paper reports on are drawn"
    return result.reported.mean


def _whisker(result: CellResult) -> tuple[float, ...]:
    """The interval of the difference, put around our mean."""
    interval = result.verdict.interval if result.verdict else None
    if interval is None or result.mean is None:
        return ()
    return _reported(result) + interval[0], _reported(result) + interval[1]


def _draw_cell(panel: Axes, line: int, result: CellResult, tolerance: float) -> None:
    assert result.verdict is not None
    paper, look = _reported(result), _LOOKS[result.verdict.word]
    panel.add_patch(Rectangle((paper - tolerance, line - 0.32), 2 * tolerance, 0.64, color=_BAND, lw=0))
    panel.plot((paper, paper), (line - 0.32, line + 0.32), color="#555555", lw=1.1, solid_capstyle="butt")
    low, high = panel.get_xlim()
    if result.mean is None:
        # On the side where there is more room beside the bar.
        right = high - paper > paper - low
        _note(panel, result.count, paper + (tolerance if right else -tolerance), line, right, style="italic")
        return
    whisker = _whisker(result)
    if whisker:
        panel.plot(whisker, (line, line), color=look["color"], lw=1.2, zorder=3, solid_capstyle="butt")
    panel.plot(result.mean, line, ms=4.6, mew=1.2, zorder=4, **look)
    if result.n < result.expected:
        edges = [result.mean, *whisker]
        right = high - max(edges) > 0.2 * (high - low)
        _note(panel, f"n = {result.n}", max(edges) if right else min(edges), line, right)


def _note(panel: Axes, text: str, x: float, line: int, right: bool, **look: Any) -> None:
    """A word beside what is drawn, on its right or left."""
    offset: Any = {"xytext": (4 if right else -4, 0), "textcoords": "offset points"}
    align: Any = {"va": "center", "ha": "left" if right else "right"}
    panel.annotate(
        text,
        (x, line),
        size=style.LABEL_SIZE - 1,
        color=style.QUIET,
        parse_math=False,
        **offset,
        **align,
        **look,
    )


def _draw_key(
    panel: Axes,
    looks: Mapping[Any, dict[str, Any]],
    drawn: Iterable[Any],
    further: Sequence[Artist],
    height: float,
) -> None:
    """What the shapes that are drawn mean, above the panel (at `height` of it)."""
    marks = [Line2D([], [], ms=4.6, mew=1.2, lw=1.2, label=str(w), **looks[w]) for w in looks if w in drawn]
    place: Any = {"loc": "lower left", "bbox_to_anchor": (0, height), "borderaxespad": 0}
    panel.legend(
        handles=[*marks, *further], ncols=len(_LOOKS) + 1, handlelength=1.8, columnspacing=1.4, **place
    )


def _caption(results: Sequence[CellResult], rules: Rules, preset: Preset) -> str:
    counts = [result.n for result in results if result.n]
    reading = (
        " A cell whose whisker lies within its bar is reproduced; one whose whisker lies wholly beyond the "
        "bar is off; both after correction over all the paper's cells."
    )
    judging = any(result.verdict and result.verdict.word is not Verdict.NOT_COMPARABLE for result in results)
    return (
        f"Marker: our mean over the seeds after the last epoch ({style.sample_size(counts)}). Whisker: the "
        f"{100 * rules.cells.level:g} % interval of our difference from the paper's mean, put around "
        f"ours.{reading if judging else ''} {cells_sentence(results)} {preset_sentence(preset)}"
    )


def draw_effect(effect: Effect) -> Figure:
    """A dot per column, a bar where the paper's own effect is, and below them the mean with its interval.

    Factors are on a log scale; the dotted line is no effect.
    """
    factor = effect.unit == "factor"
    assert effect.value is not None, "an effect without a value is not drawn"
    columns = [column for column in effect.columns if column.value is not None]
    labels = [*(column.label for column in columns), "mean"]
    figure, (panel,) = style.make_page(
        "", "", ((3.4, 0.21 * len(labels)),), style.Margins(left=2.0, axis_label=0.4)
    )
    if factor:
        panel.set_xscale("log")
    panel.axvline(1 if factor else 0, color=style.QUIET, lw=0.8, ls=(0, (2, 3)))
    for line, column in enumerate(columns):
        if column.reported is not None and not factor:
            panel.plot(column.reported, line, "|", color=style.ORANGE, ms=8, mew=1.8)
        panel.plot(float(column.value or 0), line, "o", color=style.BLUE, ms=5)
    if effect.low is not None and effect.high is not None:
        panel.plot((effect.low, effect.high), [len(columns)] * 2, color=style.BLACK, lw=1.5)
    panel.plot(effect.value, len(columns), "D", color=style.BLACK, ms=5)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    _name_rows(panel, labels)
    panel.set_xlabel("times as much" if factor else "points")
    _effect_ticks(panel, factor)
    return figure


def _effect_ticks(panel: Axes, factor: bool) -> None:
    panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    panel.xaxis.set_minor_locator(NullLocator())
    form = "{:g}" if factor else "{:+g}"
    panel.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: form.format(value).replace("-", "−") if value else "0")
    )


def draw_ablations(effects: Sequence[AblationEffect], registry: Registry, preset: Preset) -> Figure:
    """A specification curve: a panel per point that the paper leaves open, a line per alternative, sorted.

    A dot with its whisker is an alternative's effect with its interval, in points; a grey bar is where the
    paper's number is. Effects without a difference are left out; at least one has one.
    """
    drawn = sorted((e for e in effects if e.difference is not None), key=lambda e: -(e.difference or 0.0))
    names = dict.fromkeys(e.variation.ablation.name for e in effects if e.difference is not None)
    groups = [[effect for effect in drawn if effect.variation.ablation.name == name] for name in names]
    of_paper = preset.name == "paper"
    figure, panels = style.make_page(
        qualified_title(
            "What the paper leaves open: how far each alternative moves its cell",
            preset,
            any(run.generated for effect in drawn for run in effect.baseline.averaged),
        ),
        f"Mark: mean with the alternative − mean as resolved, with its {100 * LEVEL:g} % interval over seeds "
        f"({style.sample_size([effect.n for effect in drawn])}). Shape: which way that is, seen from the "
        "paper's number; unclear where the interval includes 0. Each interval is for itself: shown, not "
        f"tested. {preset_sentence(preset)}",
        panels=[(3.4, 0.31 * len(group)) for group in groups],
        margins=style.Margins(left=3.4, between=0.3, panel_title=0.5),
    )
    for panel, (name, group) in zip(panels, zip(names, groups, strict=True), strict=True):
        panel.sharex(panels[0])
        panel.axvline(0, color=style.QUIET, lw=0.8, ls=(0, (2, 3)), zorder=0)
        for line, effect in enumerate(group):
            look = _DIRECTIONS[effect.direction]
            if effect.baseline.difference is not None and of_paper:
                panel.plot(-effect.baseline.difference, line, "|", color=style.GRID, ms=11, mew=1.8)
            if effect.interval:
                panel.plot(effect.interval, (line, line), color=look["color"], lw=1.2, solid_capstyle="butt")
            panel.plot(effect.difference or 0.0, line, ms=4.6, mew=1.2, zorder=4, **look)
        panel.set_ylim(len(group) - 0.4, -0.6)
        cells = [cell_label(effect, registry) for effect in group]
        alike = len(set(cells)) == 1
        labels = [effect.variation.alternative.label for effect in group]
        places = ["" if alike else f"\n{cell}" for cell in cells]
        _name_rows(
            panel, [textwrap.fill(text, 58) + place for text, place in zip(labels, places, strict=True)]
        )
        title = f"{name}: {cells[0]}" if alike else name
        panel.set_title(title, loc="left", size=style.LABEL_SIZE, weight="bold", pad=3, parse_math=False)
        panel.grid(axis="x", color="#EEEEEE", lw=0.6)
        panel.set_axisbelow(True)
        last = panel is panels[-1]
        panel.spines["bottom"].set_visible(last)
        panel.tick_params(axis="x", labelbottom=last, length=3.5 * last)
    _effect_ticks(panels[-1], factor=False)
    panels[-1].set_xlabel("moves the accuracy by (points; 0: as resolved here)")
    paper = Line2D([], [], marker="|", ls="", ms=11, mew=1.8, color=style.GRID, label="the paper's number")
    height = 1 + 0.25 / (0.31 * len(groups[0]))
    _draw_key(panels[0], _DIRECTIONS, {effect.direction for effect in drawn}, [paper][:of_paper], height)
    return figure
