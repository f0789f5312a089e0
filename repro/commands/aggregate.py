"""`repro aggregate` and `repro figures`: what the records say, as text and pictures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from repro.analysis.aggregate import integrity_errors, summarise
from repro.analysis.open_points import Move, weigh
from repro.analysis.open_points_text import open_points_csv, open_points_json, open_points_markdown
from repro.analysis.tables import TableFormat, render_tables
from repro.commands.context import Context
from repro.commands.judge import judge_summaries, optional_rules
from repro.errors import UsageError
from repro.experiments import TableName
from repro.record_state import RunState
from repro.registry import Run, Selection

AnyFormat = TableFormat | Literal["parquet"]


def aggregate_tables(
    context: Context,
    tables: Sequence[TableName],
    form: AnyFormat,
    standalone: bool = False,
    extended: bool = False,
) -> tuple[str | bytes, list[str]]:
    """The tables' text (Parquet: bytes), and a sentence for each record that could not be believed.

    Losses that extend a table are in it once one of their runs has a record, with `extended` before that too.
    Verdicts are corrected over all the paper's cells, so its tables are read whichever are asked for.
    """
    registry, preset = context.registry, context.preset
    asked = dict.fromkeys(registry.select_runs(Selection(tables=tuple(tables)), preset))
    shown = dict.fromkeys(run.cell.table for run in asked)
    beyond = [run for name in shown for run in extension_runs(context, name, extended) if run not in asked]
    asked |= dict.fromkeys(beyond)
    further = [run for run in registry.select_runs(Selection(), preset) if run not in asked]
    damaged: list[str] = []

    def noting(states: Iterable[RunState]) -> Iterator[RunState]:
        for state in states:
            if state.run in asked:
                damaged.extend(map(str, integrity_errors([state])))
            yield state

    every = summarise(noting(context.states([*asked, *further], whole=False)), registry, preset)
    judged = judge_summaries(context, every)
    cells = {run.cell for run in asked}
    summaries = [summary for summary in every if summary.cell in cells]
    if form == "parquet":
        from repro.analysis.parquet import to_parquet

        return to_parquet(summaries, registry, preset, judged), damaged
    text = render_tables(
        summaries,
        registry,
        preset,
        form,
        judged=judged,
        supplied=context.project.supplied_results,
        standalone=standalone,
    )
    return text, damaged


def extension_runs(context: Context, table: TableName, every: bool = False) -> list[Run]:
    """The runs of the losses that extend a table and have a record, of `every` such loss if asked."""
    registry, preset = context.registry, context.preset
    names = tuple(extension.name for extension in registry.extensions(table))
    runs = registry.select_runs(Selection(tables=names), preset) if names else ()
    have = {run.cell.row for run in runs if context.project.run(preset.name, run.id).record.exists()}
    return [run for run in runs if every or run.cell.row in have]


def weigh_studies(context: Context, studies: Sequence[str]) -> tuple[tuple[Move, ...], list[str]]:
    """Every alternative of the studies' points, and a sentence for each record that could not be believed."""
    registry, preset = context.registry, context.preset
    runs = registry.select_runs(Selection(studies=tuple(studies)), preset)
    states = list(context.states(runs))
    summaries = {summary.cell: summary for summary in summarise(states, registry, preset)}
    return weigh(registry.variations(*studies), summaries), [str(error) for error in integrity_errors(states)]


def aggregate_studies(context: Context, studies: Sequence[str], form: AnyFormat) -> tuple[str, list[str]]:
    """The table of open points as text, with what could not be believed; UsageError for another format."""
    moves, damaged = weigh_studies(context, studies)
    match form:
        case "markdown":
            return open_points_markdown(moves, context.registry, context.preset), damaged
        case "csv":
            return open_points_csv(moves, context.preset), damaged
        case "json":
            return open_points_json(moves, context.preset), damaged
    raise UsageError(f"--study comes as markdown, csv or json, not as {form}")


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
        optional_rules(context),
    )
    return drawing.files, drawing.notices
