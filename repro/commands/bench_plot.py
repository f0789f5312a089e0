"""A benchmark as a picture: each program's images a second as a share of the roofline, a panel a network."""

from pathlib import Path

from repro.analysis.style import LABEL_SIZE, QUIET, Margins, figure_style, make_page, save_as
from repro.benchmark.processes import OURS
from repro.benchmark.result import BenchResult, Found

_OURS_COLOUR, _RIVAL_COLOUR = "#0072B2", "#8C8C8C"
_BAR = 0.24
_PANEL_WIDTH = 4.4


def draw_bench(result: BenchResult, path: Path) -> None:
    """Writes the picture as the path's suffix says (png or pdf)."""
    bars = [_bars(found) for found in result.found]
    machine = result.machine
    caption = "".join(f"NOT TRUSTWORTHY: {doubt}. " for doubt in result.doubts()) + (
        f"{machine.device}, {machine.precision}, {machine.threads} threads, torch "
        f"{machine.versions['torch']}. Images per second, the median of {result.rounds} windows of "
        f"{result.seconds:g} s each, programs in turn; the line marks the roofline kernel by kernel at the "
        f"rates measured here: {machine.matmul / 1e12:.2f} TFLOP/s, {machine.copy / 1e9:.1f} GB/s."
    )
    with figure_style():
        panels = [(_PANEL_WIDTH, _BAR * len(rows)) for rows in bars]
        margins = Margins(left=1.35, right=0.9, between=0.62, panel_title=0.22)
        figure, axes = make_page("Training speed beside the roofline", caption, panels, margins)
        for panel, found, rows in zip(axes, result.found, bars, strict=True):
            places = range(len(rows) - 1, -1, -1)
            colours = [_OURS_COLOUR if name.startswith(OURS) else _RIVAL_COLOUR for name, _ in rows]
            shares = [speed / found.roofline for _, speed in rows]
            panel.barh(places, shares, height=0.7, color=colours)
            panel.set_yticks(places, [name for name, _ in rows])
            panel.set_xlim(0, max(1.05, *shares))
            panel.axvline(1, color=QUIET, linewidth=0.8)
            panel.tick_params(axis="y", length=0)
            panel.set_title(found.name, loc="left", size=LABEL_SIZE + 1)
            for place, (_, speed), share in zip(places, rows, shares, strict=True):
                panel.text(share + 0.01, place, f"{speed:,.0f}", va="center", size=LABEL_SIZE)
        axes[-1].set_xlabel("share of the roofline")
        save_as(figure, path)


def _bars(found: Found) -> list[tuple[str, float]]:
    return [(name, speed.median) for name, speed in found.speeds.items()]
