"""The one look of all figures: page, colours, direct labels, and files that are the same bytes each time."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from repro.errors import UsageError
from repro.experiments import Table
from repro.storage import make_folder, write_whole

PNG_DPI = 200

# Okabe and Ito's palette, told apart with any colour vision; a loss keeps its colour in every figure.
_COLOURS = {
    "cross-entropy": "#000000",
    "am-softmax": "#D55E00",
    "pedcc": "#009E73",
    "scaled-bn": "#0072B2",
}
_FURTHER_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9")
PALETTE = (*_COLOURS.values(), *_FURTHER_COLOURS)
# Settings of one loss share its colour and differ in the dash.
_DASHES: tuple[tuple[float, tuple[float, ...] | None], ...] = (
    (0, None),
    (0, (5, 1.6)),
    (0, (1.3, 1.3)),
    (0, (5, 1.3, 1.3, 1.3)),
)

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same letters
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # letters stay letters: text in the PDF can be searched and edited
    "axes.unicode_minus": True,
}
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
"""What a figure's file would say of when and by what it was made, left out: equal figures, equal bytes."""
_TITLE_SIZE, _CAPTION_SIZE, LABEL_SIZE = 9.5, 7.2, 7.2
_LINE = 1.4  # line height, in letter sizes
_LABELS_AT = 1.075  # in panel widths
QUIET = "#444444"


@dataclass(frozen=True)
class LineStyle:
    """Colour and dash of a loss."""

    colour: str
    dash: tuple[float, tuple[float, ...] | None]


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib's defaults and this style inside, whatever was set before outside."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def line_styles(table: Table) -> dict[str, LineStyle]:
    """Each row's colour (its loss's) and dash (its place among the rows of that loss)."""
    further = list(dict.fromkeys(row.loss for row in table.rows if row.loss not in _COLOURS))
    many = len(_FURTHER_COLOURS)
    colours = {loss: _FURTHER_COLOURS[index % many] for index, loss in enumerate(further)} | _COLOURS
    styles: dict[str, LineStyle] = {}
    # Once the colours are used up, the next losses begin at the next dash.
    seen = {loss: index // many for index, loss in enumerate(further)}
    for row in table.rows:
        place = seen.get(row.loss, 0)
        seen[row.loss] = place + 1
        styles[row.name] = LineStyle(colours[row.loss], _DASHES[place % len(_DASHES)])
    return styles


@dataclass(frozen=True)
class Margins:
    """Room around the panels, in inches; `between` is the gap from one panel to the next."""

    left: float = 0.62
    right: float = 0.2
    between: float = 0.3
    axis_label: float = 0.45
    panel_title: float = 0.0


def make_page(
    title: str,
    caption: str,
    panels: Sequence[tuple[float, float]],
    margins: Margins = Margins(),
    side_by_side: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, each (width, height) in inches, with the title above and the caption below.

    Sizes are in inches rather than shares of the page, so a longer caption makes the page longer and
    leaves the panels as they are.
    """
    widths, heights = [width for width, _ in panels], [height for _, height in panels]
    gaps = margins.between * (len(panels) - 1)
    body = sum(heights) + gaps if not side_by_side else max(heights)
    width = margins.left + margins.right + (sum(widths) + gaps if side_by_side else max(widths))
    lines = _wrap(caption, width - 0.2, _CAPTION_SIZE)
    title_lines = _wrap(title, width - 0.2, _TITLE_SIZE, "bold")
    below = margins.axis_label + (len(lines) * _CAPTION_SIZE * _LINE + 8) / 72
    above = margins.panel_title + (len(title_lines) * _TITLE_SIZE * _LINE + 14) / 72
    height = above + body + below
    figure = Figure(figsize=(width, height), dpi=PNG_DPI)
    axes = []
    left, top = margins.left, height - above
    for panel_width, panel_height in panels:
        axes.append(
            figure.add_axes(
                (left / width, (top - panel_height) / height, panel_width / width, panel_height / height)
            )
        )
        if side_by_side:
            left += panel_width + margins.between
        else:
            top -= panel_height + margins.between
    figure.text(
        0.1 / width,
        1 - 0.07 / height,
        "\n".join(title_lines),
        size=_TITLE_SIZE,
        weight="bold",
        va="top",
        linespacing=1.2,
        parse_math=False,  # labels come from the user's TOML: a dollar is a dollar
    )
    figure.text(
        0.1 / width,
        0.07 / height,
        "\n".join(lines),
        size=_CAPTION_SIZE,
        color=QUIET,
        linespacing=1.25,
        parse_math=False,
    )
    return figure, axes


def sample_size(counts: Sequence[int]) -> str:
    """`n = 3`, or `n = 1 to 3` where the counts differ, in one piece that no line break parts."""
    low, high = min(counts), max(counts)
    return f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{low}" + (f" to {high}" if high > low else "")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `name`.png (200 dpi) and `name`.pdf whole, without dates; SetupError if it can't be written."""
    paths = [folder / f"{name}.{suffix}" for suffix in _METADATA]
    for path in paths:
        save_as(figure, path)
    return paths


def save_as(figure: Figure, path: Path) -> None:
    """Writes the figure whole, in the format of the path's suffix (png or pdf), without dates.

    Raises UsageError for another suffix, SetupError if it can't be written.
    """
    suffix = path.suffix.removeprefix(".")
    if suffix not in _METADATA:
        raise UsageError(f"{path}: expected a name that ends in {' or '.join(f'.{s}' for s in _METADATA)}")
    make_folder(path.parent)
    content = io.BytesIO()
    figure.savefig(content, format=suffix, dpi=PNG_DPI, metadata=_METADATA[suffix])
    write_whole(path, content.getvalue())


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names lines at the right edge instead of in a legend: (x, y, text, colour) of each line's end.

    Labels that would overlap are pushed apart, and a thin line leads to each from its end. Call it once the
    axes' limits and scale are set.
    """
    lines = max((text.count("\n") + 1 for _, _, text, _ in ends), default=1)
    gap = lines * LABEL_SIZE * 1.28 / 72 / (axes.bbox.height / PNG_DPI)
    ordered = sorted(ends, key=lambda end: end[1])
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [to_axes.transform((x, y)) for x, y, _, _ in ordered]
    heights = push_apart([float(point[1]) for point in points], gap, 0.0, 1.0)
    for (_, _, text, colour), (x, y), height in zip(ordered, points, heights, strict=True):
        # A line that ended early, as a diverged run's does, is named without a leader across the panel.
        if 0.9 <= x <= 1.01 and 0 <= y <= 1:
            axes.plot(
                (x, 1 + 0.45 * (_LABELS_AT - 1), 1 + 0.8 * (_LABELS_AT - 1)),
                (y, height, height),
                transform=axes.transAxes,
                color=colour,
                linewidth=0.5,
                alpha=0.6,
                clip_on=False,
            )
        axes.text(
            _LABELS_AT,
            height,
            text,
            transform=axes.transAxes,
            color=colour,
            size=LABEL_SIZE,
            va="center",
            parse_math=False,
        )


def label_room(labels: Iterable[str], panel_width: float) -> float:
    """The margin, in inches, that `label_ends` needs right of a panel for these labels."""
    lines = [line for label in labels for line in label.split("\n")]
    widest = max((_text_width(line, LABEL_SIZE) for line in lines), default=0.0)
    return (_LABELS_AT - 1) * panel_width + widest + 0.12


def push_apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places nearest to the ascending `wanted` (least squares) that are `gap` apart, in low … high.

    With p_i = q_i + i·gap the q are an isotonic regression, found by pooling neighbours. Where there is no
    room for all, the gap shrinks.
    """
    count = len(wanted)
    if count > 1:
        gap = min(gap, (high - low) / (count - 1))
    pools: list[list[float]] = []
    for index, place in enumerate(wanted):
        pools.append([place - index * gap])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    shifted = [_mean(pool) for pool in pools for _ in pool]
    room = high - (count - 1) * gap
    return [min(max(place, low), room) + index * gap for index, place in enumerate(shifted)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _wrap(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """`text` in lines no wider than `width` inches; no-break spaces hold."""
    lines: list[str] = []
    for word in filter(None, text.split(" ")):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(longer, size, weight) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72
