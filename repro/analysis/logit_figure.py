"""Figure 2: the distribution of the logits under both losses, on one axis."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from repro.analysis.comparison import Comparison
from repro.analysis.layout import preset_sentence, qualified_title
from repro.analysis.style import LABEL_SIZE, QUIET, Margins, make_page
from repro.config import Preset
from repro.records import LogitHistogram, RunRecord

_ZOOM = 20
# With fewer classes an image's own class is more than the 2.5 % right of the interval: seen without a zoom.
_ZOOM_FROM_CLASSES = 40


def draw_figure2(comparison: Comparison, preset: Preset) -> Figure:
    """The density of the logits of all test images and classes in evaluation mode, after the last epoch.

    One seed is drawn (`Comparison.one_seed`), (a) the first loss above (b) the second, the central 95 %
    of each marked with its numbers. Raises ValueError for a record without a logit histogram.
    """
    records = comparison.one_seed()
    histograms = [_histogram(record) for record in records]
    low, high = _common_range(histograms)
    data = records[0].data
    zoom = data.classes >= _ZOOM_FROM_CLASSES
    seeds = [record.config.seed for record in records]
    drawn = f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seed {seeds[0]} (a), seed {seeds[1]} (b)"
    figure, axes = make_page(
        qualified_title(
            f"Figure 2: logits of {comparison.network} on {comparison.dataset}, evaluation mode",
            preset,
            comparison.generated,
        ),
        " ".join(
            [
                f"Density of the logits after the last epoch: {data.test_images:,} test images × "
                f"{data.classes} classes, {drawn}. Shaded: the central 95 % of the logits.",
                f"One logit in {data.classes} is that of the image's own class.",
                f"The thin line repeats the right tail {_ZOOM} times higher." if zoom else "",
                *_outside(histograms, low, high),
                preset_sentence(preset),
            ]
        ),
        panels=((6.2, 1.7), (6.2, 1.7)),
        margins=Margins(between=0.42, panel_title=0.22),
    )
    peak = max(float(_density(histogram).max()) for histogram in histograms)
    for panel, letter, side, histogram in zip(axes, "ab", comparison.sides, histograms, strict=True):
        _draw_panel(panel, histogram, side.colour, peak)
        if zoom:
            _draw_tail(panel, histogram, side.colour, peak)
        panel.set_xlim(low, high)
        panel.set_ylim(0, 1.32 * peak)
        panel.set_ylabel("density")
        stats = f"mean {_number(histogram.mean)}, std {_number(histogram.std)}"
        for x, align, text, look in (
            (0, "left", f"({letter}) {side.label}", {"weight": "bold", "color": side.colour}),
            (1, "right", stats, {"size": LABEL_SIZE, "color": QUIET}),
        ):
            panel.text(x, 1.04, text, look, transform=panel.transAxes, ha=align, parse_math=False)
    figure.align_ylabels()
    axes[0].tick_params(labelbottom=False)
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    axes[1].set_xlabel("logit")
    return figure


def _draw_panel(panel: Axes, histogram: LogitHistogram, colour: str, peak: float) -> None:
    """The histogram, and above it the central 95 % as a bracket with its numbers."""
    density, edges = _density(histogram), _edges(histogram)
    left, right = histogram.quantiles["2.5"], histogram.quantiles["97.5"]
    panel.axvspan(left, right, color=colour, alpha=0.09, lw=0)
    panel.stairs(density, edges, fill=True, color=colour, alpha=0.45, lw=0)
    panel.stairs(density, edges, color=colour, lw=1.0)
    height = 1.1 * peak
    panel.plot((left, right), (height, height), color=colour, lw=0.8, marker="|", ms=5, mew=0.8)
    panel.text(
        (left + right) / 2,
        1.15 * peak,
        f"central 95 %: {_number(left)} to {_number(right)}",
        ha="center",
        size=LABEL_SIZE,
        color=colour,
    )


def _draw_tail(panel: Axes, histogram: LogitHistogram, colour: str, peak: float) -> None:
    """Right of the interval the density again, enlarged, from where it stays well under the bracket."""
    tail = _density(histogram) * _ZOOM
    edges = _edges(histogram)
    fits = (edges[:-1] >= histogram.quantiles["97.5"]) & (tail < 0.8 * peak)
    if not tail[fits].any():
        return
    start = int(np.argmax(fits))
    panel.stairs(tail[start:], edges[start:], color=colour, lw=0.8)
    share = np.cumsum(tail[start:]) / tail[start:].sum()
    middle = start + int(np.searchsorted(share, 0.75))
    panel.annotate(
        f"right tail × {_ZOOM}",
        (float(edges[middle]), float(tail[middle:].max())),
        xytext=(6, 5),
        textcoords="offset points",
        size=LABEL_SIZE,
        color=colour,
    )


def _histogram(record: RunRecord) -> LogitHistogram:
    if record.probes.logits is None:
        raise ValueError(f"{record.run}: expected a logit histogram, the record has none: it diverged")
    return record.probes.logits


def _edges(histogram: LogitHistogram) -> np.ndarray:
    return np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)


def _total(histogram: LogitHistogram) -> int:
    return sum(histogram.counts) + histogram.underflow + histogram.overflow


def _density(histogram: LogitHistogram) -> np.ndarray:
    """Share of all logits, those beyond the histogram included, per unit of the logit."""
    return np.array(histogram.counts) / (_total(histogram) * np.diff(_edges(histogram)))


def _common_range(histograms: Sequence[LogitHistogram]) -> tuple[float, float]:
    """The axis of both panels, in whole units: all but the outermost 0.02 % of the logits on each side."""
    lows, highs = [], []
    for histogram in histograms:
        edges, total = _edges(histogram), _total(histogram)
        filled = (histogram.underflow + np.cumsum(histogram.counts)) / total
        last = len(edges) - 2
        lows.append(edges[min(int(np.searchsorted(filled, 2e-4)), last)])
        highs.append(edges[min(int(np.searchsorted(filled, 1 - 2e-4)), last) + 1])
    return float(np.floor(min(lows))), float(np.ceil(max(highs)))


def _outside(histograms: Sequence[LogitHistogram], low: float, high: float) -> list[str]:
    """Says what the axis and the histogram leave out, where they leave out anything."""
    sentences = []
    for letter, histogram in zip("ab", histograms, strict=True):
        edges, counts = _edges(histogram), np.array(histogram.counts)
        seen = int(counts[(edges[:-1] >= low - 1e-9) & (edges[1:] <= high + 1e-9)].sum())
        if seen == _total(histogram):
            continue
        hidden = 100 * (1 - seen / _total(histogram))
        sentence = f"{hidden:.2g} % of the logits of ({letter}) lie beyond the axis"
        if beyond := histogram.underflow + histogram.overflow:
            limits = f"{_number(histogram.low, 0)} … {_number(histogram.high, 0)}"
            sentence += f", {beyond:,} of them beyond the recorded range {limits}"
        sentences.append(sentence + ".")
    return sentences


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
