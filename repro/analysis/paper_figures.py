"""The paper's Figures 2 and 3: logits and class weights of two losses, ResNet-18 on CIFAR-100."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from repro.analysis import style
from repro.analysis.curves import Column, Series, columns_of
from repro.analysis.text import plain, preset_sentence, qualified_title
from repro.config import Preset
from repro.record_state import RunState
from repro.records import LogitHistogram, RunRecord
from repro.registry import Registry

FIGURE_CELLS = ("cifar100/resnet18/cross-entropy", "cifar100/resnet18/scaled-bn-m1")

_ZOOM = 20
_ZOOM_FROM_CLASSES = (
    40  # with fewer an image's own class is more than 2.5 % of the logits: seen without a zoom
)
_CLASSES = 10  # in Figure 3, as many as the paper shows
_BAR = 0.38


def find_comparison(states: Sequence[RunState], registry: Registry) -> Column | None:
    """The column of FIGURE_CELLS with their records that have probes, by seed; None where either has none."""
    found = [
        state
        for cell in FIGURE_CELLS
        for state in sorted(states, key=lambda state: state.run.seed)
        if state.run.cell.id == cell and _has_probes(state)
    ]
    columns = columns_of(found, registry)
    return columns[0] if columns and len(columns[0].series) == len(FIGURE_CELLS) else None


def one_seed(pair: Column) -> tuple[RunRecord, ...]:
    """A record of each loss: of the lowest seed that both have, else of each one's lowest."""
    by_seed = [{record.config.seed: record for record in series.ended} for series in pair.series]
    shared = set.intersection(*map(set, by_seed))
    return tuple(records[min(shared or records)] for records in by_seed)


def weight_norms(series: Series) -> np.ndarray:
    """‖w_k‖₂, float64 of (seeds, classes)."""
    return np.array([record.probes.weight_norms for record in series.ended])


def _has_probes(state: RunState) -> bool:
    probes = state.record.probes if state.counts and state.record else None
    return probes is not None and probes.logits is not None and probes.weight_norms is not None


def missing_for_figures(states: Sequence[RunState], preset: Preset) -> list[str]:
    """For each cell that Figures 2 and 3 wait for: what became of its runs, and what makes one."""
    sentences = []
    for cell in FIGURE_CELLS:
        of_cell = [state for state in states if state.run.cell.id == cell]
        if any(map(_has_probes, of_cell)):
            continue
        reasons = "; ".join(
            f"seed {state.run.seed} diverged" if state.counts else f"seed {state.run.seed}: {state.reason}"
            for state in of_cell
        )
        dataset, network, loss = cell.split("/")
        sentences.append(
            f"Figures 2 and 3 need a run of {cell} ({reasons or 'none was selected'}): "
            f"repro run --preset {preset.name} --dataset {dataset} --network {network} "
            f"--loss {loss} --seed {preset.seeds[0]}"
        )
    return sentences


def draw_figure2(pair: Column, preset: Preset) -> Figure:
    """The density of the logits of all test images and classes in evaluation mode, after the last epoch.

    One seed is drawn (`one_seed`), (a) the first loss above (b) the second, the central 95 %
    of each marked with its numbers.
    """
    records = one_seed(pair)
    histograms = [record.probes.logits for record in records if record.probes.logits is not None]
    low, high = _common_range(histograms)
    data = records[0].data
    zoom = data.classes >= _ZOOM_FROM_CLASSES
    seeds = [record.config.seed for record in records]
    drawn = f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seed {seeds[0]} (a), seed {seeds[1]} (b)"
    caption = [
        f"Density of the logits after the last epoch: {data.test_images:,} test images × "
        f"{data.classes} classes, {drawn}. Shaded: the central 95 % of the logits.",
        f"One logit in {data.classes} is that of the image's own class.",
        f"The thin line repeats the right tail {_ZOOM} times higher." if zoom else "",
        *_outside(histograms, low, high),
        preset_sentence(preset),
    ]
    title = f"Figure 2: logits of {pair.title}, evaluation mode"
    figure, axes = style.make_page(
        qualified_title(title, preset, pair.generated),
        " ".join(filter(None, caption)),
        panels=((6.2, 1.7), (6.2, 1.7)),
        margins=style.Margins(between=0.42, panel_title=0.22),
    )
    peak = max(float(_density(histogram).max()) for histogram in histograms)
    for panel, letter, series, histogram in zip(axes, "ab", pair.series, histograms, strict=True):
        _draw_logits(panel, histogram, series.line["color"], peak)
        if zoom:
            _draw_tail(panel, histogram, series.line["color"], peak)
        panel.set_xlim(low, high)
        panel.set_ylim(0, 1.32 * peak)
        panel.set_ylabel("density")
        heading = panel.set_title(f"({letter}) {series.label}", loc="left", size=8, weight="bold")
        heading.set(color=series.line["color"], parse_math=False)
        stats = f"mean {plain(histogram.mean)}, std {plain(histogram.std)}"
        panel.set_title(stats, loc="right", size=style.LABEL_SIZE, color=style.QUIET)
        panel.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    figure.align_ylabels()
    axes[0].tick_params(labelbottom=False)
    axes[1].set_xlabel("logit")
    return figure


def _draw_logits(panel: Axes, histogram: LogitHistogram, colour: str, peak: float) -> None:
    """The histogram, and above it the central 95 % as a bracket with its numbers."""
    density, edges = _density(histogram), _edges(histogram)
    left, right = histogram.quantiles["2.5"], histogram.quantiles["97.5"]
    panel.axvspan(left, right, color=colour, alpha=0.09, lw=0)
    panel.stairs(density, edges, fill=True, color=colour, alpha=0.45, lw=0)
    panel.stairs(density, edges, color=colour, lw=1.0)
    height = 1.1 * peak
    panel.plot((left, right), (height, height), color=colour, lw=0.8, marker="|", ms=5, mew=0.8)
    text = f"central 95 %: {plain(left)} to {plain(right)}"
    panel.text((left + right) / 2, 1.15 * peak, text, ha="center", size=style.LABEL_SIZE, color=colour)


def _draw_tail(panel: Axes, histogram: LogitHistogram, colour: str, peak: float) -> None:
    """Right of the interval the density again, enlarged, from where it stays well under the bracket."""
    tail, edges = _density(histogram) * _ZOOM, _edges(histogram)
    fits = (edges[:-1] >= histogram.quantiles["97.5"]) & (tail < 0.8 * peak)
    if not tail[fits].any():
        return
    start = int(np.argmax(fits))
    panel.stairs(tail[start:], edges[start:], color=colour, lw=0.8)
    share = np.cumsum(tail[start:]) / tail[start:].sum()
    middle = start + int(np.searchsorted(share, 0.75))
    place = (float(edges[middle]), float(tail[middle:].max()))
    offset: Any = {"xytext": (6, 5), "textcoords": "offset points"}
    panel.annotate(f"right tail × {_ZOOM}", place, size=style.LABEL_SIZE, color=colour, **offset)


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
            limits = f"{plain(histogram.low, 0)} … {plain(histogram.high, 0)}"
            sentence += f", {beyond:,} of them beyond the recorded range {limits}"
        sentences.append(sentence + ".")
    return sentences


def draw_figure3(pair: Column, preset: Preset) -> Figure:
    """‖w_k‖₂ of the classifier's rows of classes 0–9 after the last epoch: bars of means, a dot per seed.

    A dashed line is the mean over all classes.
    """
    norms = [weight_norms(series) for series in pair.series]
    classes = min(_CLASSES, *(norm.shape[1] for norm in norms))
    counts = [len(norm) for norm in norms]
    labels = [f"{series.label}\nmean {n.mean():.2f}" for series, n in zip(pair.series, norms, strict=True)]
    title = f"Figure 3: norms of the class weights, {pair.title}"
    figure, (panel,) = style.make_page(
        qualified_title(title, preset, pair.generated),
        "The ℓ₂ norm of each class's row of the last linear layer, after the last epoch; "
        f"{'the mean over seeds, with a dot for each' if max(counts) > 1 else 'one seed'} "
        f"({style.sample_size(counts)}). Dashed, and beside the labels: the mean over all "
        f"{norms[0].shape[1]} classes. {preset_sentence(preset)}",
        panels=((4.9, 2.6),),
        margins=style.Margins(right=1.7),
    )
    entries = []
    for series, norm, label, shift in zip(pair.series, norms, labels, (-_BAR / 2, _BAR / 2), strict=True):
        places, colour = np.arange(classes) + shift, series.line["color"]
        bars = panel.bar(places, norm[:, :classes].mean(axis=0), _BAR * 0.94, color=colour, alpha=0.78, lw=0)
        if len(norm) > 1:
            dots: Any = {"ms": 2.6, "mfc": "white", "mec": colour, "mew": 0.7, "zorder": 3}
            panel.plot(places, norm[:, :classes].T, "o", **dots)
        panel.axhline(float(norm.mean()), color=colour, lw=0.9, dashes=(4, 2), zorder=2.5)
        entries.append((float(norm.mean()), bars[0], label))
    panel.set_xlim(-0.6, classes - 0.4)
    panel.set_ylim(0, 1.08 * max(float(norm[:, :classes].max()) for norm in norms))
    panel.set_xticks(range(classes))
    panel.set_xlabel("class k")
    panel.set_ylabel(r"$\Vert w_k\Vert_2$")
    # The longer bars' loss is named first, as it stands.
    entries.sort(key=lambda entry: entry[0], reverse=True)
    style.add_legend(panel, [(bar, label) for _, bar, label in entries])
    return figure
