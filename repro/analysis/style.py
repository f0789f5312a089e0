"""The one look of all figures: page, colours, legends, and files that are the same bytes each time."""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from repro.analysis.text import preset_sentence, qualified_title
from repro.config import Preset
from repro.errors import UsageError
from repro.experiments import Table
from repro.storage import make_folder, write_whole

PNG_DPI = 200
COLUMN, PAGE = 3.3, 6.9  # inches: a column of a two-column paper, and both
LABEL_SIZE = 7.0
QUIET = "#444444"
GRID = "#999999"

# Okabe and Ito's palette, told apart with any colour vision; a loss keeps its colour in every figure.
BLACK, ORANGE, GREEN, BLUE = "#000000", "#D55E00", "#009E73", "#0072B2"
_COLOURS = (BLACK, ORANGE, GREEN, BLUE, "#CC79A7", "#E69F00", "#56B4E9")

# Settings of one loss share its colour and differ in the dash.
_DASHES = ("-", (0, (5, 1.6)), (0, (1.3, 1.3)), (0, (5, 1.3, 1.3, 1.3)))

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same letters
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": LABEL_SIZE,
    "ytick.labelsize": LABEL_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": LABEL_SIZE,
    "pdf.fonttype": 42,  # letters stay letters: text in the PDF can be searched and edited
    "axes.unicode_minus": True,
}
# What a figure's file would say of when and by what it was made is left out: equal figures, equal bytes.
_METADATA: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "png": {"Software": None},
}
_KEY: dict[str, Any] = {
    "handlelength": 2.2,
    "handletextpad": 0.6,
    "columnspacing": 1.4,
    "labelspacing": 0.3,
}
_TITLE_SIZE, _CAPTION_SIZE = 9.5, 7.2
_CAPTION_LETTERS, _TITLE_LETTERS = 19.5, 12.5  # per inch, fewer than fit on average


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib's defaults and this style inside, whatever was set before outside."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def line_styles(table: Table) -> dict[str, dict[str, Any]]:
    """How each row's line is drawn: in its loss's colour, dashed by its place among that loss's rows."""
    places = {loss: place for place, loss in enumerate(dict.fromkeys(row.loss for row in table.rows))}
    colours = {loss: _COLOURS[place % len(_COLOURS)] for loss, place in places.items()}
    styles = {}
    # Once the colours are used up, the next losses begin at the next dash.
    seen = Counter({loss: place // len(_COLOURS) for loss, place in places.items()})
    for row in table.rows:
        styles[row.name] = {"color": colours[row.loss], "linestyle": _DASHES[seen[row.loss] % len(_DASHES)]}
        seen[row.loss] += 1
    return styles


@dataclass(frozen=True)
class Look:
    """How wide a figure is, in inches, and whether its title and caption are drawn on it."""

    width: float = PAGE
    titled: bool = False

    @property
    def narrow(self) -> bool:
        """Whether panels that could be side by side are stacked instead."""
        return self.width < 5


DEFAULT_LOOK = Look()


@dataclass(frozen=True)
class Margins:
    """Room around the panels, in inches; `between` is the gap from one panel to the next."""

    left: float = 0.55
    right: float = 0.16
    between: float = 0.3
    axis_label: float = 0.4
    panel_title: float = 0.06


class Drawing(Figure):
    """A figure that knows its title and caption as text, drawn on it or not."""

    title = ""
    caption = ""


def make_page(
    title: str,
    caption: str,
    heights: Sequence[float],
    look: Look = DEFAULT_LOOK,
    margins: Margins = Margins(),
    side_by_side: bool = False,
    preset: Preset | None = None,
    key: Sequence[tuple[Artist, str]] = (),
) -> tuple[Drawing, list[Axes]]:
    """A figure exactly as wide as its look, of equally wide panels with these heights in inches.

    `preset` is the one that the records are of: title and caption say it, and a small mark where no title is
    drawn. `key` is the legend below the panels.
    """
    if preset:
        title, caption = qualified_title(title, preset), f"{caption} {preset_sentence(preset)}".strip()
    mark = preset.title if preset else ""
    width = look.width
    gaps = margins.between * (len(heights) - 1)
    panel_width = width - margins.left - margins.right
    panel_width = (panel_width - gaps) / len(heights) if side_by_side else panel_width
    title_lines = textwrap.wrap(title, int(_TITLE_LETTERS * width)) if look.titled else []
    lines = textwrap.wrap(caption, int(_CAPTION_LETTERS * width)) if look.titled else []
    above = margins.panel_title
    if title_lines:
        above += (len(title_lines) * _TITLE_SIZE * 1.4 + 14) / 72
    elif mark:
        above += 0.16
    below = (len(lines) * _CAPTION_SIZE * 1.4 + 8) / 72 if lines else 0.02
    labels, columns, key_height = _arrange([label for _, label in key], width)
    body = max(heights) if side_by_side else sum(heights) + gaps
    height = above + body + margins.axis_label + key_height + below
    figure = Drawing(figsize=(width, height), dpi=PNG_DPI)
    figure.title, figure.caption = title, caption
    axes = []
    left, top = margins.left, height - above
    for panel_height in heights:
        place = (left / width, (top - panel_height) / height, panel_width / width, panel_height / height)
        axes.append(figure.add_axes(place))
        if side_by_side:
            left += panel_width + margins.between
        else:
            top -= panel_height + margins.between
    # Labels come from the user's TOML: a dollar is a dollar, not the start of a formula.
    words: dict[str, Any] = {"parse_math": False, "linespacing": 1.25}
    if look.titled:
        edge = 0.04 / width
        figure.text(
            edge,
            1 - 0.03 / height,
            "\n".join(title_lines),
            size=_TITLE_SIZE,
            weight="bold",
            va="top",
            **words,
        )
        figure.text(
            edge, 0.03 / height, "\n".join(lines), size=_CAPTION_SIZE, color=QUIET, va="bottom", **words
        )
    elif mark:
        right, up = 1 - margins.right / width, 1 - 0.03 / height
        figure.text(right, up, mark, size=LABEL_SIZE, color=ORANGE, ha="right", va="top", **words)
    if key:
        place_of: Any = {"loc": "lower center", "bbox_to_anchor": (0.5, below / height), "borderaxespad": 0}
        handles = [handle for handle, _ in key]
        legend = figure.legend(handles, labels, ncols=columns, borderpad=0.1, **_KEY, **place_of)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure, axes


def _arrange(labels: Sequence[str], width: float) -> tuple[list[str], int, float]:
    """The labels wrapped to the width, in as many columns as fit, and the height of all, in inches."""
    if not labels:
        return [], 1, 0.0
    em = LABEL_SIZE / 72
    handle = (_KEY["handlelength"] + _KEY["handletextpad"]) * em
    labels = [wrap_label(label, int((width - handle) / (0.62 * em))) for label in labels]
    wide = [handle + max(map(text_width, label.split("\n"))) for label in labels]
    for columns in range(len(labels), 0, -1):
        parts = np.array_split(wide, columns)
        if sum(map(max, parts)) + (columns - 1) * _KEY["columnspacing"] * em < width - 0.1:
            break
    rows = max(sum(label.count("\n") + 1 for label in part) for part in np.array_split(labels, columns))
    return labels, columns, rows * (1.05 + _KEY["labelspacing"]) * em + 0.04


def wrap_label(label: str, letters: int) -> str:
    """The label in lines of so many letters; a parenthesis keeps to one if it can, `s = 10` always."""
    if len(label) <= letters:
        return label
    head, _, tail = label.partition(" (")
    if tail and len(head) <= letters and len(tail) < letters:
        return f"{head}\n({tail}"
    whole = label.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    return textwrap.fill(whole, letters, break_on_hyphens=False)


def lines_height(labels: Iterable[str]) -> float:
    """What the label of the most lines needs, in inches."""
    return 0.07 + 0.12 * max(label.count("\n") + 1 for label in labels)


def text_width(text: str) -> float:
    """How wide a line is at the size of labels, in inches."""
    return float(
        text_to_path.get_text_width_height_descent(text, FontProperties(size=LABEL_SIZE), ismath=False)[0]
        / 72
    )


def log_ticks(axis: Axis) -> None:
    """Ticks of a log axis in plain numbers: at least two labels also on a narrow range, few on a wide one."""
    low, high = axis.get_view_interval()
    if high / low < 5:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain_number(value)))
    axis.set_minor_locator(NullLocator())


def _plain_number(value: float) -> str:
    """`0.00002`, `150`: no power of ten within what fits beside an axis."""
    return (
        np.format_float_positional(value, precision=4, fractional=False, trim="-")
        if 1e-6 < value < 1e6
        else f"{value:g}"
    )


def sample_size(counts: Sequence[int]) -> str:
    """`n = 3`, or `n = 1 to 3` where the counts differ, in one piece that no line break parts."""
    low, high = min(counts), max(counts)
    return f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{low}" + (f" to {high}" if high > low else "")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `name`.svg, .pdf and .png (200 dpi) whole, without dates; SetupError if it can't be written."""
    paths = [folder / f"{name}.{suffix}" for suffix in _METADATA]
    for path in paths:
        save_as(figure, path)
    return paths


def save_as(figure: Figure, path: Path) -> None:
    """Writes the figure whole, in the format of the path's suffix (svg, pdf or png), without dates.

    Raises UsageError for another suffix, SetupError if it can't be written.
    """
    suffix = path.suffix.removeprefix(".")
    if suffix not in _METADATA:
        raise UsageError(f"{path}: expected a name that ends in .svg, .pdf or .png")
    make_folder(path.parent)
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        write_whole(path, _rendered(figure, suffix))


def _rendered(figure: Figure, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    if not isinstance(figure, Drawing):
        options |= {"bbox_inches": "tight", "pad_inches": 0.1}
    with _fonts_without_shaping() if form == "pdf" else nullcontext():
        figure.savefig(content, format=form, dpi=PNG_DPI, metadata=_METADATA[form], **options)
    return content.getvalue()


@contextmanager
def _fonts_without_shaping() -> Iterator[None]:
    """Leaves out of a PDF's fonts the tables for shaping: matplotlib has placed every glyph already.

    Taking the used glyphs out of those tables was half of the time that `repro figures` took. A fontTools
    without this attribute is only slower.
    """
    from fontTools.subset import Options  # type: ignore[import-untyped]

    tables = getattr(Options, "_drop_tables_default", [])
    Options._drop_tables_default = [*tables, "GDEF", "GPOS", "GSUB", "kern"]
    try:
        yield
    finally:
        Options._drop_tables_default = tables


# Verdana has DejaVu Sans's widths where that font is not installed.
_FONTS = "'DejaVu Sans', Verdana, sans-serif"
# A figure's colour → the page's; a page without a dark variant of a colour shows the colour itself.
_INKS = {colour.lower(): f"var(--{colour[1:].lower()}, {colour})" for colour in _COLOURS} | {
    BLACK: "var(--ink)",
    "#ffffff": "var(--paper)",
    QUIET: "var(--quiet)",
    GRID: "var(--line)",
}


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an `<svg>` element that stands inside a page: letters stay letters.

    `name` makes its ids unique in the page. Black and grey ink become the page's own, so that it can be dark;
    the background is left out. `description` is what a screen reader says.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        text = _rendered(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    used = {first or second for first, second in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text)}
    text = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'url\(#|href="#', lambda m: f"{m[0]}{name}-", text)
    text = re.sub(r"'DejaVu Sans'(, sans-serif)?|DejaVu Sans", _FONTS, text)
    text = re.sub(r"#[0-9a-fA-F]{6}\b", lambda m: _INKS.get(m[0].lower(), m[0]), text)
    # A hundredth of a point is finer than any screen.
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)
    # What has no fill of its own is black by default, which a style sheet could not reach.
    opening = f'<svg fill="currentColor" role="img" aria-label="{escape(description)}" '
    return Markup(re.sub(r"\s+\n", "\n", opening + text[len("<svg ") :]))
