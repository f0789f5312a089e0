"""Figures as SVG that stands inside a page: letters stay letters, ink follows the page's colours."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from repro.analysis.style import PALETTE, QUIET

# Verdana has DejaVu Sans's widths where that font is not installed, so direct labels keep their room.
_FONTS = "'DejaVu Sans', Verdana, sans-serif"
_INKS = {colour.lower(): f"var(--{colour[1:].lower()}, {colour})" for colour in PALETTE} | {
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    QUIET: "var(--quiet)",
    "#999999": "var(--line)",
}
"""A figure's colour → the page's; a page without a dark variant of a colour shows the colour itself."""
_ID = re.compile(r'\bid="([^"]+)"')


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an `<svg>` element; `name` makes its ids unique in the page.

    Black and grey ink become the page's own, so that it can be dark; the background is left out.
    `description` is what a screen reader says.
    """
    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    referenced = {first or second for first, second in used}
    text = _ID.sub(lambda match: f'id="{name}-{match[1]}"' if match[1] in referenced else "", text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"'DejaVu Sans'(, sans-serif)?|DejaVu Sans", _FONTS.replace("\\", ""), text)
    text = re.sub(r"#[0-9a-fA-F]{6}\b", lambda match: _INKS.get(match[0].lower(), match[0]), text)
    # What has no fill of its own is black by default, which a style sheet could not reach.
    opening = f'<svg fill="currentColor" role="img" aria-label="{escape(description)}" '
    return Markup(re.sub(r"\s+\n", "\n", opening + text[len("<svg ") :]))


@dataclass(frozen=True)
class Line:
    """One line of a small plot: points (x, y) in order, and a colour that CSS knows."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str


def small_plot(
    lines: Sequence[Line], epochs: int, description: str, reference: tuple[str, float] | None = None
) -> Markup:
    """Values by epoch in a plot of 360 × 150: a run's own curve, small enough to have 72 of them in a page.

    `reference` is a named level, drawn dashed where it lies inside the range from 0 to the data's top
    stretched to include it.
    """
    width, height, left, right, top, bottom = 360, 150, 34, 60, 10, 24
    heights = [y for line in lines for _, y in line.points] + ([reference[1]] if reference else [])
    peak = max(heights, default=1.0) * 1.05 or 1.0
    inner = (width - left - right, height - top - bottom)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + inner[0] * x / max(epochs, 1), top + inner[1] * (1 - y / peak)

    parts = [
        f'<svg class="small-plot" role="img" aria-label="{escape(description)}" '
        f'viewBox="0 0 {width} {height}">'
    ]
    for tick in _ticks(peak):
        _, y = place(0, tick)
        parts.append(
            f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>'
            f'<text class="tick" x="{left - 4}" y="{y + 3:.1f}" text-anchor="end">{tick:g}</text>'
        )
    base = height - bottom
    parts.append(
        f'<text class="tick" x="{left}" y="{base + 13}">0</text>'
        f'<text class="tick" x="{width - right}" y="{base + 13}" text-anchor="end">{epochs} epochs</text>'
    )
    if reference:
        _, y = place(0, reference[1])
        parts.append(
            f'<path class="reference" d="M{left} {y:.1f}H{width - right}"/>'
            f'<text class="tick" x="{width - right + 3}" y="{y + 3:.1f}">{escape(reference[0])}</text>'
        )
    for line in lines:
        points = [place(x, y) for x, y in line.points]
        if len(points) == 1:
            parts.append(
                f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2" fill="{line.colour}"/>'
            )
        elif points:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(
                f'<path class="curve" style="stroke:{line.colour}" d="M{path}">'
                f"<title>{escape(line.label)}</title></path>"
            )
    parts.append("</svg>")
    return Markup("".join(parts))


def _ticks(peak: float) -> list[float]:
    """Three to five round levels from 0 to `peak`."""
    step = 10.0 ** len(str(int(peak)))
    for divisor in (2, 2.5, 2):
        while peak / step < 2.5:
            step /= divisor
    count = int(peak / step)
    return [round(step * index, 6) for index in range(count + 1)][:: max(1, count // 4)]
