"""`repro figures`: what the records allow, drawn into a folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from repro.analysis import paper_figures
from repro.analysis.ablations import AblationEffect
from repro.analysis.curves import columns_of, draw_curves, draw_gradients
from repro.analysis.dot_plot import draw_ablations, draw_dots
from repro.analysis.results import summarise
from repro.analysis.rules import Rules
from repro.analysis.style import figure_style, save
from repro.analysis.verdicts import judge_cells
from repro.config import Preset
from repro.record_state import RunState
from repro.registry import Registry


def draw_figures(
    states: Sequence[RunState],
    registry: Registry,
    preset: Preset,
    folder: Path,
    rules: Rules | None = None,
    effects: Sequence[AblationEffect] = (),
) -> tuple[list[Path], list[str]]:
    """Draws what the records allow into `folder`, each as PNG (200 dpi) and PDF: the files, and notices.

    `figure2`, `figure3`: ResNet-18 on CIFAR-100, as in the paper. `curves-…` and `gradients-…`: one of each
    for every column that has a record. `table1`, …: a table's cells against the paper's, judged by `rules`.
    `ambiguities`: the `effects` of ablations that can be computed.
    Only records that count are drawn, and the same records give the same bytes. A figure whose run is missing
    is left out and named in a notice; raises SetupError where the folder can't be written.
    """
    notices = paper_figures.missing_for_figures(states, preset)
    columns = columns_of(states, registry)
    if not columns:
        notices.append("no record counts yet, so there is no training curve and no gradient figure")

    def figures() -> Iterator[tuple[str, Figure]]:
        if comparison := paper_figures.find_comparison(states, registry):
            yield "figure2", paper_figures.draw_figure2(comparison, preset)
            yield "figure3", paper_figures.draw_figure3(comparison, preset)
        for column in columns:
            yield f"curves-{column.name}", draw_curves(column, preset)
            yield f"gradients-{column.name}", draw_gradients(column, preset)
        if rules is not None:
            results = [result for result in summarise(states, registry, preset) if result.reported]
            judged = judge_cells(results, registry, preset, rules)
            for table in registry.tables:
                of_table = [result for result in judged if result.cell.table == table.name]
                if any(result.n for result in of_table):
                    yield f"table{table.name}", draw_dots(table, of_table, rules, preset)

        if any(effect.difference is not None for effect in effects):
            yield "ambiguities", draw_ablations(effects, registry, preset)

    with figure_style():
        files = [path for name, figure in figures() for path in save(figure, folder, name)]
    return files, notices
