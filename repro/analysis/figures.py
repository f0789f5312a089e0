"""`repro figures`: the figures of the paper that records can redraw, and all others that they allow."""

import gc
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.patches import Patch
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
from repro.storage import write_whole

_Drawing = tuple[str, Callable[[], style.Drawing]]  # its file's name, and what draws it

_CLASSES = 10  # whose weight norms are drawn as bars
_BAR, _SHADE = 0.38, 0.78


def draw_figures(
    states: Sequence[RunState],
    registry: Registry,
    preset: Preset,
    folder: Path,
    rules: Rules | None = None,
    effects: Sequence[AblationEffect] = (),
    look: style.Look = style.DEFAULT_LOOK,
    shown: Collection[Cell] | None = None,
) -> tuple[list[Path], list[str]]:
    """Draws what the records allow into `folder`, each as SVG, PDF and PNG (200 dpi): the files, and notices.

    `figure2`, …: the paper's own, as `paper.toml` names them. `curves-…` and `gradients-…`: one of each
    for every column that has a record. `table1`, …: a table's cells against the paper's, judged by `rules`.
    `ambiguities`: the `effects` of ablations that can be computed. `captions.txt`: what each shows. Only
    records that count are drawn, and the same records give the same bytes. Of cells not among `shown` (None:
    all) nothing is drawn; the verdicts rest on all `states`. A figure whose run is missing is left out and
    named in a notice; raises SetupError where the folder can't be written.
    """
    every = states
    if shown is not None:
        states = [state for state in states if state.run.cell in shown]
    notices = missing_for_figures(states, registry, preset)
    columns = columns_of(states, registry)
    if not columns:
        notices.append("no record counts yet, so there is no training curve and no gradient figure")

    drawings: list[_Drawing] = [
        (of_paper.file, draw) for of_paper, _, draw in redrawn(states, registry, preset, look)
    ]
    for column in columns:
        drawings.append((f"curves-{column.name}", partial(draw_curves, column, preset, look)))
        drawings.append((f"gradients-{column.name}", partial(draw_gradients, column, preset, look)))
    if rules is not None:
        results = judge_cells(summarise(every, registry, preset), registry, preset, rules)
        for table in registry.tables:
            of_table = [
                result
                for result in results
                if result.reported
                and result.cell.table == table.name
                and (shown is None or result.cell in shown)
            ]
            if any(result.n for result in of_table):
                dots = partial(draw_dots, table, of_table, registry.paper.metric, rules, preset, look)
                drawings.append((f"table{table.name}", dots))
    if any(effect.difference is not None for effect in effects):
        drawings.append(("ambiguities", partial(draw_ablations, effects, registry, preset, look)))

    written = _write_all(drawings, folder)
    files = [path for paths, _ in written for path in paths]
    if files:
        files.append(folder / "captions.txt")
        write_whole(files[-1], "\n".join(caption for _, caption in written).encode())
    return files, notices


def _write_all(drawings: list[_Drawing], folder: Path) -> list[tuple[list[Path], str]]:
    """The files and the caption of each drawing, made in a process per core; raises what drawing raises.

    The processes are forked, so that they share the records. Elsewhere than on Linux it is done in this one.
    """
    global _write
    _write = partial(_draw_and_save, drawings, folder)  # a forked process inherits what could not be pickled
    places = range(len(drawings))
    workers = min(len(drawings), len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
    if workers < 2:
        return list(map(_write, places))
    with warnings.catch_warnings():
        # Python warns of threads at a fork: the only ones here are numpy's BLAS's, which it ends before.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Short-lived: looking for cycles among matplotlib's many objects would take a tenth of their time.
        with ProcessPoolExecutor(workers, get_context("fork"), initializer=gc.disable) as pool:
            return list(pool.map(_write_one, places))


_write: Callable[[int], tuple[list[Path], str]]


def _write_one(place: int) -> tuple[list[Path], str]:
    return _write(place)


def _draw_and_save(drawings: list[_Drawing], folder: Path, place: int) -> tuple[list[Path], str]:
    name, draw = drawings[place]
    with style.figure_style():
        figure = draw()
        return style.save(figure, folder, name), f"{name}: {figure.title}. {figure.caption}\n"


def redrawn(
    states: Sequence[RunState], registry: Registry, preset: Preset, look: style.Look = style.DEFAULT_LOOK
) -> Iterator[tuple[PaperFigure, Column, Callable[[], style.Drawing]]]:
    """Each figure of the paper whose two cells have a record: what it is, what it compares, what draws it."""
    figures = registry.paper.figures
    for of_paper, draw in ((figures.logits, draw_logits), (figures.weight_norms, draw_weight_norms)):
        if of_paper and (pair := find_comparison(of_paper, states, registry)):
            yield of_paper, pair, partial(draw, of_paper, pair, preset, look)


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


def draw_logits(
    of_paper: PaperFigure, pair: Column, preset: Preset, look: style.Look = style.DEFAULT_LOOK
) -> style.Drawing:
    """How often each logit occurs among those of all test images and classes, evaluated after the last epoch.

    One seed is drawn (`one_seed`), (a) the first loss left of (b) the second, the central 95 % of each marked
    with its numbers. Both share their axes, which hold all but the outermost 0.02 % of the logits on each
    side; what lies beyond ±10 is given in figures, those beyond the recorded range included.
    """
    records = one_seed(pair)
    histograms = [record.probes.logits for record in records if record.probes.logits is not None]
    shares = [_shares(histogram) for histogram in histograms]
    peak = max(float(share.max()) for _, share, _ in shares)
    data, seeds = records[0].data, [record.config.seed for record in records]
    drawn = f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seed {seeds[0]} (a), seed {seeds[1]} (b)"
    headings = [
        style.wrap_label(f"({letter}) {series.label}", 22 if look.narrow else 44)
        for letter, series in zip("ab", pair.series, strict=True)
    ]
    low, high = histograms[0].low, histograms[0].high
    beyond = sum(histogram.underflow + histogram.overflow for histogram in histograms)
    unseen = f", {beyond:,} of them beyond the recorded range {plain(low, 0)} … {plain(high, 0)}"
    figure, panels = style.make_page(
        f"{of_paper.name}: logits of {pair.title}, evaluation mode",
        f"The logits after the last epoch, each bin as a share of them all: {data.test_images:,} test images "
        f"× {data.classes} classes, {drawn}. Shaded: the central 95 % of the logits. One logit in "
        f"{data.classes} is that of the image's own class. The axis leaves out the outermost 0.02 % on each "
        f"side{unseen if beyond else ''}.",
        heights=(1.7, 1.7) if look.narrow else (2.1, 2.1),
        look=look,
        margins=style.Margins(
            between=0.18, panel_title=0.1 + 0.13 * (1 + max(text.count("\n") for text in headings))
        ),
        side_by_side=True,
        preset=preset,
    )
    ends = []
    for panel, heading, series, histogram, (edges, share, below) in zip(
        panels, headings, pair.series, histograms, shares, strict=True
    ):
        colour = series.line["color"]
        left, right = histogram.quantiles["2.5"], histogram.quantiles["97.5"]
        panel.axvspan(left, right, color=colour, alpha=0.09, lw=0)
        panel.stairs(share, edges, fill=True, color=colour, alpha=0.45, lw=0)
        panel.stairs(share, edges, color=colour, lw=0.8)
        panel.plot((left, right), [1.08 * peak] * 2, color=colour, lw=0.8, marker="|", ms=5, mew=0.8)
        break_ = "\n" if look.narrow else " "
        text = f"central 95 %:{break_}{plain(left)} to {plain(right)}"
        panel.text((left + right) / 2, 1.12 * peak, text, ha="center", size=style.LABEL_SIZE, color=colour)
        panel.set_ylim(0, (1.45 if look.narrow else 1.3) * peak)
        panel.set_title(heading, loc="left", size=8, pad=4, color=colour, parse_math=False)
        limit = float(min(edges, key=lambda edge: abs(edge - 10)))
        outside = 1 - float(share[(edges[:-1] >= -limit - 1e-9) & (edges[1:] <= limit + 1e-9)].sum()) / 100
        stats = f"std {plain(histogram.std)}\nbeyond ±{limit:g}:\n{100 * outside:.2g} %"
        panel.text(0.98, 0.62, stats, transform=panel.transAxes, ha="right", va="top", size=style.LABEL_SIZE)
        panel.xaxis.set_major_locator(MaxNLocator(4 if look.narrow else 6, steps=[1, 2, 5, 10], integer=True))
        panel.set_xlabel("logit")
        ends += np.interp((2e-4, 1 - 2e-4), below + np.cumsum(share) / 100, edges[1:]).tolist()
    for panel in panels:
        panel.set_xlim(np.floor(min(ends)), np.ceil(max(ends)))
    panels[0].set_ylabel(f"frequency (% per bin of {edges[1] - edges[0]:.2g})")
    panels[1].tick_params(labelleft=False)
    return figure


def _shares(histogram: LogitHistogram) -> tuple[np.ndarray, np.ndarray, float]:
    """Edges, the percentage of all logits in each bin, and the share below the first bin (0 to 1)."""
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    total = sum(histogram.counts) + histogram.underflow + histogram.overflow
    return edges, 100 * np.array(histogram.counts) / total, histogram.underflow / total


def draw_weight_norms(
    of_paper: PaperFigure, pair: Column, preset: Preset, look: style.Look = style.DEFAULT_LOOK
) -> style.Drawing:
    """‖w_k‖₂ of the classifier's rows of classes 0–9 after the last epoch: bars of means, a dot per seed.

    A dashed line is the mean over all classes.
    """
    norms = [weight_norms(series) for series in pair.series]
    classes = min(_CLASSES, *(norm.shape[1] for norm in norms))
    counts = [len(norm) for norm in norms]
    key: list[tuple[Artist, str]] = [
        (Patch(color=series.line["color"], alpha=_SHADE, lw=0), f"{series.label}, mean {norm.mean():.2f}")
        for series, norm in zip(pair.series, norms, strict=True)
    ]
    figure, (panel,) = style.make_page(
        f"{of_paper.name}: norms of the class weights, {pair.title}",
        "The ℓ₂ norm of each class's row of the last linear layer, after the last epoch; "
        f"{'the mean over seeds, with a dot for each' if max(counts) > 1 else 'one seed'} "
        f"({style.sample_size(counts)}). Dashed, and beside the labels: the mean over all "
        f"{norms[0].shape[1]} classes.",
        heights=(1.8 if look.narrow else 2.1,),
        look=look,
        preset=preset,
        key=key,
    )
    for series, norm, shift in zip(pair.series, norms, (-_BAR / 2, _BAR / 2), strict=True):
        places, colour, shown = np.arange(classes) + shift, series.line["color"], norm[:, :classes]
        panel.bar(places, shown.mean(axis=0), _BAR * 0.94, color=colour, alpha=_SHADE, lw=0)
        if len(norm) > 1:
            panel.plot(places, shown.T, "o", ms=2.2, mfc="white", mec=colour, mew=0.6, zorder=3)
        panel.axhline(float(norm.mean()), color=colour, lw=0.9, dashes=(4, 2), zorder=2.5)
    panel.set_xlim(-0.6, classes - 0.4)
    panel.set_ylim(0, 1.08 * max(float(norm[:, :classes].max()) for norm in norms))
    panel.set_xticks(range(classes))
    panel.set_xlabel("class k")
    panel.set_ylabel(r"$\Vert w_k\Vert_2$")
    return figure
