"""The one look of all figures: page, colours, legends, and files that are the same bytes each time."""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repro.analysis.text import preset_sentence, qualified_title
from repro.config import Preset
from repro.errors import UsageError
from repro.experiments import Table
from repro.storage import make_folder, write_whole

PNG_DPI = 200
LABEL_SIZE = 7.2
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
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
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
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
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
    preset: Preset | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, each (width, height) in inches, with the title above and the caption below.

    `preset` is the one that the records are of, which title and caption say.
    Sizes are in inches rather than shares of the page, so a longer caption makes the page longer and
    leaves the panels as they are.
    """
    if preset:
        title, caption = qualified_title(title, preset), f"{caption} {preset_sentence(preset)}"
    widths, heights = zip(*panels, strict=True)
    gaps = margins.between * (len(panels) - 1)
    width = margins.left + margins.right + (sum(widths) + gaps if side_by_side else max(widths))
    body = max(heights) if side_by_side else sum(heights) + gaps
    title_lines = textwrap.wrap(title, int(_TITLE_LETTERS * width))
    lines = textwrap.wrap(caption, int(_CAPTION_LETTERS * width))
    above = margins.panel_title + (len(title_lines) * _TITLE_SIZE * 1.4 + 14) / 72
    height = above + body + margins.axis_label + (len(lines) * _CAPTION_SIZE * 1.4 + 8) / 72
    figure = Figure(figsize=(width, height), dpi=PNG_DPI)
    axes = []
    left, top = margins.left, height - above
    for panel_width, panel_height in panels:
        place = (left / width, (top - panel_height) / height, panel_width / width, panel_height / height)
        axes.append(figure.add_axes(place))
        if side_by_side:
            left += panel_width + margins.between
        else:
            top -= panel_height + margins.between
    # Labels come from the user's TOML: a dollar is a dollar, not the start of a formula.
    words: dict[str, Any] = {"parse_math": False, "linespacing": 1.25}
    figure.text(0, 1, "\n".join(title_lines), size=_TITLE_SIZE, weight="bold", va="top", **words)
    figure.text(0, 0, "\n".join(lines), size=_CAPTION_SIZE, color=QUIET, va="bottom", **words)
    return figure, axes


def add_legend(panel: Axes, entries: Sequence[tuple[Artist, str]]) -> None:
    """Names what is drawn, right of the panel, in the order given."""
    handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
    place: Any = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "borderaxespad": 0}
    legend = panel.legend(handles, labels, handlelength=2.6, labelcolor="linecolor", **place)
    for text in legend.get_texts():
        text.set_parse_math(False)


def sample_size(counts: Sequence[int]) -> str:
    """`n = 3`, or `n = 1 to 3` where the counts differ, in one piece that no line break parts."""
    low, high = min(counts), max(counts)
    return f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{low}" + (f" to {high}" if high > low else "")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `name`.png (200 dpi) and `name`.pdf whole, without dates; SetupError if it can't be written."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    for path in paths:
        save_as(figure, path)
    return paths


def save_as(figure: Figure, path: Path) -> None:
    """Writes the figure whole, in the format of the path's suffix (png or pdf), without dates.

    Raises UsageError for another suffix, SetupError if it can't be written.
    """
    suffix = path.suffix.removeprefix(".")
    if suffix not in ("png", "pdf"):
        raise UsageError(f"{path}: expected a name that ends in .png or .pdf")
    make_folder(path.parent)
    write_whole(path, _rendered(figure, suffix))


def _rendered(figure: Figure, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    # Tight: the page is as large as what is drawn on it, legends included.
    figure.savefig(
        content,
        format=form,
        dpi=PNG_DPI,
        metadata=_METADATA[form],
        bbox_inches="tight",
        pad_inches=0.1,
        **options,
    )
    return content.getvalue()


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
