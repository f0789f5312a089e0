"""`repro figures`: the figures of the paper that records can redraw, and all others that they allow."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from repro.analysis import style
from repro.analysis.ablations import AblationEffect
from repro.analysis.curves import Column, Series, columns_of, draw_curves, draw_gradients
from repro.analysis.dot_plot import draw_ablations, draw_dots
from repro.analysis.results import summarise
from repro.analysis.rules import Rules
from repro.analysis.text import plain
from repro.analysis.verdicts import judge_cells
from repro.config import Preset
from repro.paper import PaperFigure
from repro.record_state import RunState
from repro.records import LogitHistogram, RunRecord
from repro.registry import Cell, Registry

_CLASSES = 10  # whose weight norms are drawn as bars
_BAR = 0.38


def draw_figures(
    states: Sequence[RunState],
    registry: Registry,
    preset: Preset,
    folder: Path,
    rules: Rules | None = None,
    effects: Sequence[AblationEffect] = (),
    shown: Collection[Cell] | None = None,
) -> tuple[list[Path], list[str]]:
    """Draws what the records allow into `folder`, each as PNG (200 dpi) and PDF: the files, and notices.

    `figure2`, …: the paper's own, as `paper.toml` names them. `curves-…` and `gradients-…`: one of each
    for every column that has a record. `table1`, …: a table's cells against the paper's, judged by `rules`.
    `ambiguities`: the `effects` of ablations that can be computed. Only records that count are drawn, and the
    same records give the same bytes. Of cells not among `shown` (None: all) nothing is drawn; the verdicts
    rest on all `states`. A figure whose run is missing is left out and named in a notice; raises
    SetupError where the folder can't be written.
    """
    every = states
    if shown is not None:
        states = [state for state in states if state.run.cell in shown]
    notices = missing_for_figures(states, registry, preset)
    columns = columns_of(states, registry)
    if not columns:
        notices.append("no record counts yet, so there is no training curve and no gradient figure")

    def figures() -> Iterator[tuple[str, Figure]]:
        for of_paper, _, figure in redraw(states, registry, preset):
            yield of_paper.file, figure
        for column in columns:
            yield f"curves-{column.name}", draw_curves(column, preset)
            yield f"gradients-{column.name}", draw_gradients(column, preset)
        if rules is not None:
            results = [result for result in summarise(every, registry, preset) if result.reported]
            judged = judge_cells(results, registry, preset, rules)
            judged = tuple(result for result in judged if shown is None or result.cell in shown)
            for table in registry.tables:
                of_table = [result for result in judged if result.cell.table == table.name]
                if any(result.n for result in of_table):
                    yield (
                        f"table{table.name}",
                        draw_dots(table, of_table, registry.paper.metric, rules, preset),
                    )
        if any(effect.difference is not None for effect in effects):
            yield "ambiguities", draw_ablations(effects, registry, preset)

    with style.figure_style():
        files = [path for name, figure in figures() for path in style.save(figure, folder, name)]
    return files, notices


def redraw(
    states: Sequence[RunState], registry: Registry, preset: Preset
) -> Iterator[tuple[PaperFigure, Column, Figure]]:
    """Each figure of the paper whose two cells have a record: what it is, what it compares, and drawn."""
    figures = registry.paper.figures
    for of_paper, draw in ((figures.logits, draw_logits), (figures.weight_norms, draw_weight_norms)):
        if of_paper and (pair := find_comparison(of_paper, states, registry)):
            yield of_paper, pair, draw(of_paper, pair, preset)


def find_comparison(figure: PaperFigure, states: Sequence[RunState], registry: Registry) -> Column | None:
    """The column of a figure's cells with those records that have probes; None if either cell has none."""
    found = sorted(
        (state for state in states if state.run.cell.id in figure.cells and _has_probes(state)),
        key=lambda state: state.run.seed,
    )
    columns = columns_of(found, registry)
    return columns[0] if columns and len(columns[0].series) == len(figure.cells) else None


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


def missing_for_figures(states: Sequence[RunState], registry: Registry, preset: Preset) -> list[str]:
    """For each cell that figures of the paper wait for: what became of its runs, and what makes one."""
    sentences, waiting = [], registry.paper.figures.all
    for cell in dict.fromkeys(cell for figure in waiting for cell in figure.cells):
        of_cell = [state for state in states if state.run.cell.id == cell]
        if any(map(_has_probes, of_cell)):
            continue
        reasons = "; ".join(
            f"seed {state.run.seed} diverged" if state.counts else f"seed {state.run.seed}: {state.reason}"
            for state in of_cell
        )
        names = " and ".join(figure.name for figure in waiting if cell in figure.cells)
        dataset, network, loss = cell.split("/")
        sentences.append(
            f"{names} {'need' if ' and ' in names else 'needs'} a run of {cell} "
            f"({reasons or 'none was selected'}): "
            f"repro run --preset {preset.name} --dataset {dataset} --network {network} "
            f"--loss {loss} --seed {preset.seeds[0]}"
        )
    return sentences


def draw_logits(of_paper: PaperFigure, pair: Column, preset: Preset) -> Figure:
    """The density of the logits of all test images and classes in evaluation mode, after the last epoch.

    One seed is drawn (`one_seed`), (a) the first loss above (b) the second, the central 95 % of each marked
    with its numbers. The axis holds all but the outermost 0.02 % of the logits on each side.
    """
    records = one_seed(pair)
    histograms = [record.probes.logits for record in records if record.probes.logits is not None]
    densities = [_density(histogram) for histogram in histograms]
    peak = max(float(density.max()) for _, density, _ in densities)
    data, seeds = records[0].data, [record.config.seed for record in records]
    drawn = f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seed {seeds[0]} (a), seed {seeds[1]} (b)"
    low, high = histograms[0].low, histograms[0].high
    beyond = sum(histogram.underflow + histogram.overflow for histogram in histograms)
    unseen = f", {beyond:,} of them beyond the recorded range {plain(low, 0)} … {plain(high, 0)}"
    figure, panels = style.make_page(
        f"{of_paper.name}: logits of {pair.title}, evaluation mode",
        f"Density of the logits after the last epoch: {data.test_images:,} test images × {data.classes} "
        f"classes, {drawn}. Shaded: the central 95 % of the logits. One logit in {data.classes} is that of "
        "the image's own class. The axis leaves out the outermost 0.02 % on either side"
        f"{unseen if beyond else ''}.",
        panels=((6.2, 1.7), (6.2, 1.7)),
        margins=style.Margins(between=0.42, panel_title=0.22),
        preset=preset,
    )
    ends = []
    for panel, letter, series, histogram, (edges, density, total) in zip(
        panels, "ab", pair.series, histograms, densities, strict=True
    ):
        colour = series.line["color"]
        left, right = histogram.quantiles["2.5"], histogram.quantiles["97.5"]
        panel.axvspan(left, right, color=colour, alpha=0.09, lw=0)
        panel.stairs(density, edges, fill=True, color=colour, alpha=0.45, lw=0)
        panel.stairs(density, edges, color=colour, lw=1.0)
        panel.plot((left, right), [1.1 * peak] * 2, color=colour, lw=0.8, marker="|", ms=5, mew=0.8)
        text = f"central 95 %: {plain(left)} to {plain(right)}"
        panel.text((left + right) / 2, 1.15 * peak, text, ha="center", size=style.LABEL_SIZE, color=colour)
        panel.set_ylim(0, 1.32 * peak)
        panel.set_ylabel("density")
        heading = panel.set_title(f"({letter}) {series.label}", loc="left", size=8, weight="bold")
        heading.set(color=colour, parse_math=False)
        stats = f"mean {plain(histogram.mean)}, std {plain(histogram.std)}"
        panel.set_title(stats, loc="right", size=style.LABEL_SIZE, color=style.QUIET)
        panel.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
        below = np.cumsum(density) * np.diff(edges) + histogram.underflow / total
        ends += np.interp((2e-4, 1 - 2e-4), below, edges[1:]).tolist()
    for panel in panels:
        panel.set_xlim(np.floor(min(ends)), np.ceil(max(ends)))
    figure.align_ylabels()
    panels[0].tick_params(labelbottom=False)
    panels[1].set_xlabel("logit")
    return figure


def _density(histogram: LogitHistogram) -> tuple[np.ndarray, np.ndarray, int]:
    """Edges, the share of all logits per unit of the logit, and how many there are, those beyond included."""
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    total = sum(histogram.counts) + histogram.underflow + histogram.overflow
    return edges, np.array(histogram.counts) / (total * np.diff(edges)), total


def draw_weight_norms(of_paper: PaperFigure, pair: Column, preset: Preset) -> Figure:
    """‖w_k‖₂ of the classifier's rows of classes 0–9 after the last epoch: bars of means, a dot per seed.

    A dashed line is the mean over all classes.
    """
    norms = [weight_norms(series) for series in pair.series]
    classes = min(_CLASSES, *(norm.shape[1] for norm in norms))
    counts = [len(norm) for norm in norms]
    figure, (panel,) = style.make_page(
        f"{of_paper.name}: norms of the class weights, {pair.title}",
        "The ℓ₂ norm of each class's row of the last linear layer, after the last epoch; "
        f"{'the mean over seeds, with a dot for each' if max(counts) > 1 else 'one seed'} "
        f"({style.sample_size(counts)}). Dashed, and beside the labels: the mean over all "
        f"{norms[0].shape[1]} classes.",
        panels=((4.9, 2.6),),
        margins=style.Margins(right=1.7),
        preset=preset,
    )
    entries = []
    for series, norm, shift in zip(pair.series, norms, (-_BAR / 2, _BAR / 2), strict=True):
        places, colour, shown = np.arange(classes) + shift, series.line["color"], norm[:, :classes]
        bars = panel.bar(places, shown.mean(axis=0), _BAR * 0.94, color=colour, alpha=0.78, lw=0)
        if len(norm) > 1:
            panel.plot(places, shown.T, "o", ms=2.6, mfc="white", mec=colour, mew=0.7, zorder=3)
        panel.axhline(float(norm.mean()), color=colour, lw=0.9, dashes=(4, 2), zorder=2.5)
        entries.append((float(norm.mean()), bars[0], f"{series.label}\nmean {norm.mean():.2f}"))
    panel.set_xlim(-0.6, classes - 0.4)
    panel.set_ylim(0, 1.08 * max(float(norm[:, :classes].max()) for norm in norms))
    panel.set_xticks(range(classes))
    panel.set_xlabel("class k")
    panel.set_ylabel(r"$\Vert w_k\Vert_2$")
    # The longer bars' loss is named first, as it stands.
    entries.sort(key=lambda entry: entry[0], reverse=True)
    style.add_legend(panel, [(bar, label) for _, bar, label in entries])
    return figure
