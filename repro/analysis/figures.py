"""All figures of a preset, drawn from records alone; the modules beside this know how each looks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from repro.analysis.aggregate import summarise
from repro.analysis.cell_verdict import Judged
from repro.analysis.comparison import FIGURE_CELLS, make_comparison
from repro.analysis.curves import columns_of, draw_curves, draw_gradients
from repro.analysis.dot_plot import draw_dots
from repro.analysis.logit_figure import draw_figure2
from repro.analysis.rules import Rules
from repro.analysis.style import figure_style, save
from repro.analysis.verdicts import judge_cells
from repro.analysis.weight_figure import draw_figure3
from repro.config import Preset
from repro.record_state import RunState
from repro.records import RunRecord
from repro.registry import Registry


@dataclass(frozen=True)
class Drawing:
    """The files that were written, and a sentence for each figure that lacks a run it needs."""

    files: tuple[Path, ...]
    notices: tuple[str, ...]


def draw_figures(
    states: Sequence[RunState], registry: Registry, preset: Preset, folder: Path, rules: Rules | None = None
) -> Drawing:
    """Draws what the records allow into `folder`, each figure as PNG (200 dpi) and PDF.

    `figure2`, `figure3`: ResNet-18 on CIFAR-100, as in the paper. `curves-…` and `gradients-…`: one of each
    for every column that has a record. `table1`, …: a table's cells against the paper's, judged by `rules`.
    Only records that count are drawn, and the same records give the
    same bytes. A figure whose run is missing is left out and named in `notices`; raises SetupError where
    the folder can't be written.
    """
    files: list[Path] = []
    with figure_style():
        found = [with_probes(states, cell) for cell in FIGURE_CELLS]
        notices = missing_for_figures(states, preset)
        if not notices:
            comparison = make_comparison(registry, found)
            files += save(draw_figure2(comparison, preset), folder, "figure2")
            files += save(draw_figure3(comparison, preset), folder, "figure3")
        columns = columns_of(states, registry)
        for column in columns:
            files += save(draw_curves(column, preset), folder, f"curves-{column.name}")
            files += save(draw_gradients(column, preset), folder, f"gradients-{column.name}")
        if rules is not None:
            for name, figure in _dots(states, registry, preset, rules):
                files += save(figure, folder, name)
        if not columns:
            notices.append("no record counts yet, so there is no training curve and no gradient figure")
    return Drawing(tuple(files), tuple(notices))


def _dots(
    states: Sequence[RunState], registry: Registry, preset: Preset, rules: Rules
) -> Iterator[tuple[str, Figure]]:
    """The dot plot of each of the paper's tables that has a number of ours."""
    summaries = [summary for summary in summarise(states, registry, preset) if summary.reported is not None]
    judged = Judged(judge_cells(summaries, registry, preset, rules), rules)
    for table in registry.tables:
        of_table = [summary for summary in summaries if summary.cell.table == table.name]
        if any(summary.n for summary in of_table):
            yield f"table{table.name}", draw_dots(table, of_table, judged, preset)


def missing_for_figures(states: Sequence[RunState], preset: Preset) -> list[str]:
    """A sentence for each cell that Figures 2 and 3 wait for."""
    return [_needed(states, cell, preset) for cell in FIGURE_CELLS if not with_probes(states, cell)]


def with_probes(states: Sequence[RunState], cell: str) -> list[RunRecord]:
    """The records of a cell that Figures 2 and 3 can be drawn from."""
    return [
        state.record
        for state in states
        if state.run.cell.id == cell
        and state.counts
        and state.record is not None
        and state.record.probes.logits is not None
        and state.record.probes.weight_norms is not None
    ]


def _needed(states: Sequence[RunState], cell: str, preset: Preset) -> str:
    """Which run Figures 2 and 3 wait for, what became of it, and the command that makes it."""
    dataset, network, loss = cell.split("/")
    seed = preset.seeds[0]
    found = [state for state in states if state.run.cell.id == cell]
    reasons = [
        f"seed {state.run.seed} diverged" if state.counts else f"seed {state.run.seed}: {state.reason}"
        for state in found
    ]
    return (
        f"Figures 2 and 3 need a run of {cell} ({'; '.join(reasons) or 'none was selected'}): "
        f"repro run --preset {preset.name} --dataset {dataset} --network {network} "
        f"--loss {loss} --seed {seed}"
    )
