"""All cells of a table against the paper's, with intervals: what was reproduced, at a glance."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from repro.analysis.aggregate import CellSummary
from repro.analysis.cell_verdict import CellVerdict, Judged, Verdict, cells_sentence, points
from repro.analysis.layout import (
    loss_label,
    network_label,
    preset_sentence,
    qualified_title,
    short_blank,
)
from repro.analysis.style import LABEL_SIZE, QUIET, Margins, label_room, make_page, sample_size
from repro.config import Preset
from repro.experiments import Table


@dataclass(frozen=True)
class _Look:
    """How a verdict is drawn: told apart by shape as well as by colour."""

    marker: str
    colour: str
    filled: bool


_LOOKS = {
    Verdict.REPRODUCED: _Look("o", "#0072B2", True),
    Verdict.OFF: _Look("D", "#D55E00", True),
    Verdict.UNDECIDED: _Look("s", "#333333", False),
    Verdict.INCOMPLETE: _Look("^", "#777777", False),
    Verdict.NOT_COMPARABLE: _Look("x", "#777777", True),
}
_PANEL, _ROW = 1.75, 0.25  # inches
_BAND = "#DDDDDD"


def draw_dots(table: Table, summaries: Sequence[CellSummary], judged: Judged, preset: Preset) -> Figure:
    """A panel a network and a line a loss: the paper's mean with the tolerance around it, and ours.

    The whisker is the interval of ours − paper's put around our mean, so it lies within the bar exactly where
    the difference lies within the tolerance. `summaries` are the table's cells that the paper reports on.
    """
    verdicts = {summary.cell: verdict for summary in summaries if (verdict := judged.of(summary.cell))}
    networks = list(dict.fromkeys(summary.cell.network for summary in summaries))
    rows = list(dict.fromkeys(summary.cell.row for summary in summaries))
    labels = [loss_label(table, row, ()) for row in rows]
    panel_height = _ROW * (len(rows) + 0.3)
    figure, panels = make_page(
        qualified_title(
            f"{table.heading}, ours against the paper's",
            preset,
            any(run.generated for summary in summaries for run in summary.runs),
        ),
        _caption(summaries, list(verdicts.values()), judged, preset),
        panels=((_PANEL, panel_height),) * len(networks),
        margins=Margins(left=label_room(labels, 0.0) + 0.08, between=0.22, panel_title=0.45, right=0.15),
        side_by_side=True,
    )
    tolerance = judged.rules.cells.tolerance
    reaches = [_reach(_of(summaries, network), verdicts, tolerance) for network in networks]
    # One scale for all panels: the bar, ± the tolerance, is equally wide in each.
    span = 1.06 * max(high - low for low, high in reaches)
    whole = (min(low for low, _ in reaches), max(high for _, high in reaches))
    if whole[1] - whole[0] < 1.2 * span:
        span, reaches = 1.06 * (whole[1] - whole[0]), [whole] * len(networks)
    for panel, network, (low, high) in zip(panels, networks, reaches, strict=True):
        middle = (low + high) / 2
        panel.set_xlim(middle - span / 2, middle + span / 2)
        panel.set_ylim(len(rows) - 0.4, -0.7)
        panel.set_title(network_label(table, network), size=8, weight="bold", pad=4, parse_math=False)
        for summary in _of(summaries, network):
            _draw_cell(panel, rows.index(summary.cell.row), summary, verdicts[summary.cell], tolerance)
        panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        panel.grid(axis="x", color="#EEEEEE", lw=0.6)
        panel.set_axisbelow(True)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.set_yticks(
            range(len(rows)), labels if panel is panels[0] else [""] * len(rows), size=LABEL_SIZE
        )
    panels[len(panels) // 2].set_xlabel("top-1 accuracy (%)")
    _draw_key(panels[0], list(verdicts.values()), tolerance, 1 + 0.25 / panel_height)
    return figure


def _of(summaries: Sequence[CellSummary], network: str) -> list[CellSummary]:
    return [summary for summary in summaries if summary.cell.network == network]


def _reach(summaries: Sequence[CellSummary], verdicts: dict, tolerance: float) -> tuple[float, float]:
    """The lowest and the highest accuracy that a panel must show."""
    places: list[float] = []
    for summary in summaries:
        verdict = verdicts[summary.cell]
        places += [verdict.reported_mean - tolerance, verdict.reported_mean + tolerance]
        if verdict.mean is not None:
            places += [verdict.mean, *_whisker(verdict)]
    return min(places), max(places)


def _whisker(verdict: CellVerdict) -> tuple[float, ...]:
    """The interval of the difference, put around our mean."""
    if verdict.interval is None or verdict.difference is None or verdict.mean is None:
        return ()
    low, high = verdict.interval
    return verdict.reported_mean + low, verdict.reported_mean + high


def _draw_cell(panel: Axes, line: int, summary: CellSummary, verdict: CellVerdict, tolerance: float) -> None:
    paper, look = verdict.reported_mean, _LOOKS[verdict.word]
    panel.add_patch(Rectangle((paper - tolerance, line - 0.32), 2 * tolerance, 0.64, color=_BAND, lw=0))
    panel.plot((paper, paper), (line - 0.32, line + 0.32), color="#555555", lw=1.1, solid_capstyle="butt")
    low, high = panel.get_xlim()
    if verdict.mean is None:
        # On the side where there is more room beside the bar.
        right = high - paper > paper - low
        panel.annotate(
            short_blank(summary),
            (paper + (tolerance if right else -tolerance), line),
            xytext=(4 if right else -4, 0),
            textcoords="offset points",
            size=LABEL_SIZE - 1,
            color=QUIET,
            va="center",
            ha="left" if right else "right",
            style="italic",
            parse_math=False,
        )
        return
    if whisker := _whisker(verdict):
        panel.plot(whisker, (line, line), color=look.colour, lw=1.2, zorder=3, solid_capstyle="butt")
    panel.plot(
        verdict.mean,
        line,
        look.marker,
        color=look.colour,
        mfc=look.colour if look.filled else "white",
        ms=4.6,
        mew=1.2,
        zorder=4,
    )
    if verdict.n < verdict.expected:
        edge = max([verdict.mean, *whisker])
        right = high - edge > 0.2 * (high - low)
        panel.annotate(
            f"n = {verdict.n}",
            (edge if right else min([verdict.mean, *whisker]), line),
            xytext=(4 if right else -4, 0),
            textcoords="offset points",
            size=LABEL_SIZE - 1,
            color=QUIET,
            va="center",
            ha="left" if right else "right",
        )


def _draw_key(panel: Axes, verdicts: Sequence[CellVerdict], tolerance: float, height: float) -> None:
    """What the shapes mean, above the panels (at `height` of theirs); only those that are drawn."""
    drawn = [word for word in Verdict if any(v.word is word and v.mean is not None for v in verdicts)]
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=look.colour, marker=look.marker, ms=4.6, mew=1.2, lw=1.2,
               mfc=look.colour if look.filled else "white", label=str(word))
        for word in drawn
        for look in (_LOOKS[word],)
    ]  # fmt: skip
    handles.append(Patch(facecolor=_BAND, label=f"the paper's mean ± {points(tolerance)}"))
    panel.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, height),
        bbox_transform=panel.transAxes,
        borderaxespad=0,
        ncols=len(handles),
        frameon=False,
        fontsize=LABEL_SIZE,
        handlelength=1.8,
        columnspacing=1.4,
    ).set_in_layout(False)


def _caption(
    summaries: Sequence[CellSummary], verdicts: Sequence[CellVerdict], judged: Judged, preset: Preset
) -> str:
    counts = [summary.n for summary in summaries if summary.n]
    reading = (
        " A cell whose whisker lies within its bar is reproduced; one farther off than the bar, whose "
        "whisker leaves out the paper's mean (dark line), is off; both after correction over all the "
        "paper's cells."
    )
    judging = any(verdict.word is not Verdict.NOT_COMPARABLE for verdict in verdicts)
    return (
        f"Marker: our mean over the seeds after the last epoch ({sample_size(counts)}). Whisker: the "
        f"{100 * judged.rules.cells.level:g} % interval of our difference from the paper's mean, put around "
        f"ours.{reading if judging else ''} {cells_sentence(verdicts)} {preset_sentence(preset)}"
    )
