"""`repro aggregate` and `repro figures`: what the records say, as text and pictures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from repro.analysis.aggregate import integrity_errors, summarise
from repro.analysis.tables import TableFormat, render_tables
from repro.commands.context import Context
from repro.experiments import TableName
from repro.registry import Selection
from repro.standings import RunState


def aggregate_tables(
    context: Context, tables: Sequence[TableName], form: TableFormat, standalone: bool = False
) -> tuple[str, list[str]]:
    """The tables' text, and a sentence for each record that could not be believed."""
    runs = context.registry.select_runs(Selection(tables=tuple(tables)), context.preset)
    damaged: list[str] = []

    def noting(states: Iterable[RunState]) -> Iterator[RunState]:
        # On the way: a record is read once and let go.
        for state in states:
            damaged.extend(map(str, integrity_errors([state])))
            yield state

    text = render_tables(
        summarise(noting(context.states(runs)), context.registry, context.preset),
        context.registry,
        context.preset,
        form,
        supplied=context.project.supplied_results,
        standalone=standalone,
    )
    return text, damaged


def make_figures(context: Context, folder: Path | None) -> tuple[Sequence[Path], Sequence[str]]:
    """Draws every figure the records allow: the files, and a sentence for each that lacks a run."""
    from repro.analysis.figures import draw_figures

    every_table = Selection(tables=tuple(table.name for table in context.registry.tables))
    runs = context.registry.select_runs(every_table, context.preset)
    drawing = draw_figures(
        list(context.states(runs)),
        context.registry,
        context.preset,
        folder or context.project.preset_figures(context.preset.name),
    )
    return drawing.files, drawing.notices
