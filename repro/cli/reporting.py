"""What the records say: aggregate, figures, report, claims; and audit, which needs none."""

import shlex
import subprocess
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repro.cli.options import (
    FILE,
    FOLDER,
    JSON,
    command,
    end_if_damaged,
    places,
    say,
    select,
    selection,
    with_own_options,
    write,
)
from repro.errors import UsageError

if TYPE_CHECKING:
    from repro.analysis.ablations import AblationEffect
    from repro.analysis.claims import ClaimVerdict
    from repro.analysis.export import Readings, TableFormat
    from repro.analysis.results import CellResult
    from repro.analysis.rules import Rules
    from repro.cli.context import Context
    from repro.record_state import RunState
    from repro.registry import Cell, Run, Selection

_NO_SEED = (
    "--seed: a mean and its verdict are over all planned seeds; single runs are listed by "
    "`repro aggregate --by run --format csv --seed 0`"
)
_OTHERS = "shown by `repro aggregate --set lr=0.05` and `repro aggregate --study ambiguities` alone"
# The options that a command about the paper's cells refuses.
of_cells = select(
    seeds=_NO_SEED, axes=f"--set: overrides are {_OTHERS}", studies=f"--study: ablations are {_OTHERS}"
)


@command()
@places
@click.option("--format", "form", default="markdown", show_default=True,
              type=click.Choice(["markdown", "latex", "macros", "csv", "json", "parquet"]))  # fmt: skip
@click.option("--by", type=click.Choice(["run", "epoch", "cell"]),
              help="One row per run, epoch or cell, as csv, json or parquet.")  # fmt: skip
@click.option("--readings", type=click.Choice(["deciding", "all"]), default="deciding", show_default=True,
              help="Of the paper's ± in csv, json and parquet: the one that decides, or each.")  # fmt: skip
@selection
@click.option("--extended", is_flag=True,
              help="Include losses beyond the paper that have no record yet.")  # fmt: skip
@click.option("--output", type=FILE, help="Write to this file instead of stdout.")
def aggregate(
    context: "Context",
    form: "TableFormat",
    by: str | None,
    readings: "Readings",
    selected: "Selection",
    extended: bool,
    output: Path | None,
) -> None:
    """Print the tables: mean ± sample std over the seeds, beside what the paper reports.

    --set shows overrides beside their baseline instead, with paired differences, --study ablations; --seed
    goes with --by run or epoch. macros: numbers for a LaTeX document that \\input's them, by
    \\repro{TABLE}{NETWORK}{ROW}. parquet needs --output.

    A damaged record is never averaged; the table names it and the exit code is 4.
    """
    if form == "parquet" and output is None:
        raise UsageError("Parquet cannot be printed: name a file with --output")
    asked = {"--by": by, "--set": selected.axes, "--study": selected.studies}
    modes = [name for name, value in asked.items() if value]
    if len(modes) > 1:
        raise UsageError(f"{modes[0]} and {modes[1]} exclude one another")
    if selected.seeds and by not in ("run", "epoch"):
        raise UsageError(_NO_SEED)
    if readings == "all":
        if modes and by != "cell":
            raise UsageError(f"--readings all is for cells, and {modes[0]} shows others")
        modes = [*modes, "--readings all"]
    if (by or readings == "all") and form not in ("csv", "json", "parquet"):
        raise UsageError(
            f"{modes[0]} needs --format csv, json or parquet; {form} is always the paper's table"
        )
    context.point_out_misnamed()
    from repro.analysis.ablations import render_effects
    from repro.analysis.overrides import render_overrides

    text: str | bytes
    damaged: Collection[str] = context.damaged
    if selected.studies:
        text = render_effects(study_effects(context, selected), context.registry, context.preset, form)
    elif selected.axes:
        text = render_overrides(overrides(context, selected), context.registry, context.preset, form)
    else:
        text, damaged = aggregate_cells(context, selected, form, by, readings, extended)
    if output is None:
        click.echo(text, nl=False)
    else:
        write(output, text)
        say(f"wrote {output}")
    end_if_damaged(damaged)


def aggregate_cells(
    context: "Context",
    selected: "Selection",
    form: "TableFormat",
    by: str | None = None,
    readings: "Readings" = "deciding",
    extended: bool = False,
) -> tuple[str | bytes, list[str]]:
    """The tables' text (Parquet: bytes), and a sentence for each record that is not valid.

    `by` "run", "epoch" or "cell", it is a frame of `repro.load()`. Losses that extend a table are in it once
    one of their runs has a record, with `extended` before that too.
    """
    from repro.analysis.export import cells_frame, render_frame, render_tables
    from repro.analysis.frames import Results

    registry, preset, supplied = context.registry, context.preset, context.project.supplied_results
    found = Results(context.project, registry, preset, selected, extended)
    if by in ("run", "epoch"):
        return render_frame(found.runs if by == "run" else found.epochs, form), found.damaged
    cells, rules = found.cell_results, found.rules
    if by == "cell":
        return render_frame(cells_frame(cells, registry, preset, readings), form, rules), found.damaged
    text = render_tables(cells, registry, preset, form, rules=rules, supplied=supplied, readings=readings)
    if form == "markdown":
        text = f"{text!s}{_overrides_beside(context, selected)}"
    return text, found.damaged


def overrides(context: "Context", selected: "Selection") -> "tuple[CellResult, ...]":
    """The cells with the overrides selected, and their baselines.

    Losses without a parameter of that name are left out; UsageError where none has it.
    """
    from repro.analysis.results import summarise
    from repro.record_state import recorded_runs

    registry, preset = context.registry, context.preset
    baselines = registry.select_runs(replace(selected, axes=()), preset)
    runs = registry.select_runs(selected, preset)
    known = {run.cell: {key for keys in registry.defaults(run.cell, preset) for key in keys} for run in runs}
    runs = tuple(run for run in runs if known[run.cell] >= dict(run.cell.axes).keys()) or runs
    cells = {run.cell for run in (*baselines, *runs)}
    recorded, _ = recorded_runs(context.project, preset, registry)
    beside = [run for run in recorded if run.cell in cells and run.seed not in preset.seeds]
    states = context.states(dict.fromkeys([*baselines, *runs, *beside]), whole=False)
    return summarise(states, registry, preset)


def _overrides_beside(context: "Context", selected: "Selection") -> str:
    """A Markdown list of the commands that show the runs with overrides; empty where there are none.

    Those of a study are in its own table.
    """
    from repro.config import format_axis
    from repro.errors import counted
    from repro.experiments import AMBIGUITIES
    from repro.record_state import recorded_runs

    registry = context.registry
    shown = {cell.place for cell in shown_cells(context, selected, extended=True)}
    studied = {each.cell for each in registry.variations(AMBIGUITIES)} if registry.ablations else set()
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Run]] = {}
    for run in recorded_runs(context.project, context.preset, registry)[0]:
        cell = run.cell
        if cell.axes and cell.place in shown and cell not in studied:
            other = not registry.table(cell.table).of_paper
            table = ("--table", str(cell.table)) if other else ()
            groups.setdefault((table, tuple(name for name, _ in cell.axes)), []).append(run)
    lines = []
    for (where, names), runs in groups.items():
        words = list(where)
        for name in names:
            values = dict.fromkeys(format_axis(dict(run.cell.axes)[name]) for run in runs)
            words += ["--set", f"{name}={','.join(values)}"]
        lines.append(f"- {counted(len(runs), 'run')}: `repro aggregate {shlex.join(words)}`")
    text = "\n".join(["", "Trained with overrides, in no table above:", "", *lines, ""])
    return with_own_options(text) if lines else ""


def shown_cells(context: "Context", selected: "Selection", extended: bool = False) -> "Collection[Cell]":
    """The cells selected, with those of losses beyond the paper that have a record; `extended`, of all."""
    from repro.analysis.frames import selected_runs

    runs = selected_runs(context.project, context.registry, context.preset, selected, extended)
    return dict.fromkeys(run.cell for run in runs)


def study_effects(context: "Context", selected: "Selection") -> "tuple[AblationEffect, ...]":
    """Every alternative of the studies, in the cells selected."""
    from repro.analysis.ablations import compute_effects
    from repro.analysis.results import summarise

    registry = context.registry
    # Spreads are pooled over the whole study, whichever of its cells are shown.
    states = context.states(context.runs(studies=selected.studies))
    results = {result.cell: result for result in summarise(states, registry, context.preset)}
    effects = compute_effects(registry.variations(*selected.studies), results, registry.paper.metric)
    chosen = set(registry.select_cells(selected))
    return tuple(each for each in effects if each.variation.cell in chosen)


@command()
@places
@of_cells
@click.option("--width", type=click.Choice(["column", "page"]), default="page", show_default=True,
              help="Of a two-column paper: 3.3 or 6.9 inches.")  # fmt: skip
@click.option("--title", "titled", is_flag=True, help="Draw title and caption on each figure.")
@click.option("--output", type=FOLDER, help="Folder.  [default: the project's figures/<preset>/]")
def figures(context: "Context", selected: "Selection", width: str, titled: bool, output: Path | None) -> None:
    """Draw the paper's figures, training curves, gradient norms and ablations as SVG, PDF and PNG.

    Titles and captions are in captions.txt beside them. With a selection, those of its cells; verdicts stay
    corrected over all the paper's cells.
    """
    from repro.analysis.figures import draw_figures
    from repro.analysis.style import COLUMN, PAGE, Look

    registry, preset = context.registry, context.preset
    shown = narrowed(context, selected)
    runs = dict.fromkeys(context.runs(tables=tuple(table.name for table in registry.tables)))
    runs |= dict.fromkeys(registry.select_runs(selected, preset))
    states = list(context.states(runs))
    folder = output or context.project.preset_figures(preset.name)
    look = Look(COLUMN if width == "column" else PAGE, titled)
    effects = _open_points(context, shown)
    files, notices = draw_figures(states, registry, preset, folder, context.rules, effects, look, shown)
    for path in files:
        click.echo(path)
    for notice in notices:
        say(f"repro: {notice}")
    end_if_damaged(context.damaged)


def narrowed(context: "Context", selected: "Selection") -> "Collection[Cell] | None":
    """The cells of a selection that names any; None for all."""
    return shown_cells(context, selected) if any(vars(selected).values()) else None


def _open_points(context: "Context", shown: "Collection[Cell] | None") -> "list[AblationEffect]":
    """The ablations of what the paper leaves open, in the cells shown; none in a project without any."""
    from repro.experiments import AMBIGUITIES
    from repro.registry import Selection

    effects = study_effects(context, Selection(studies=(AMBIGUITIES,))) if context.registry.ablations else ()
    return [each for each in effects if shown is None or each.variation.baseline in shown]


@command()
@places
@of_cells
@click.option("--output", type=FILE, help="The file.  [default: the preset's results folder, report.html]")
def report(context: "Context", selected: "Selection", output: Path | None) -> None:
    """Write one HTML file with the tables, every run behind them, the figures, cost, and what is open.

    It needs no network and nothing beside it. With a selection, only its cells are on the page; verdicts and
    claims still rest on all the paper's cells. A damaged record is never averaged; it is named, and the exit
    code is 4.
    """
    # The paper's tables are always in it, another table or a loss beyond the paper's once it has a record.
    from repro import __version__
    from repro.analysis.claims import claim_runs
    from repro.analysis.report import Origin, render_report

    project, registry, preset, rules = context.project, context.registry, context.preset, context.rules
    shown = narrowed(context, selected)
    states = _reported_states(context)
    found = {state.run for state in states}
    if shown is not None:
        more = [run for run in registry.select_runs(selected, preset) if run not in found]
        states += context.states(more)
        found.update(more)
    needed = [run for run in claim_runs(rules, registry, preset) if run not in found] if rules else []
    folder = project.preset_results(preset.name)
    # The page goes to other people: a folder within the project is named without this machine's path.
    within = folder.is_relative_to(project.root)
    place = str(folder.relative_to(project.root)) if within else folder.name
    origin = Origin(__version__, _commit(project.root), place, project.supplied_results)
    effects, further = _open_points(context, shown), list(context.states(needed))
    path = output or folder / "report.html"
    write(path, render_report(states, further, registry, preset, rules, origin, effects, shown))
    click.echo(path)
    end_if_damaged(context.damaged)


def _reported_states(context: "Context") -> "list[RunState]":
    from repro.analysis.frames import extension_runs
    from repro.record_state import RecordState

    states: list[RunState] = []
    for table in context.registry.tables:
        if table.extends is None:
            runs = context.runs(tables=(table.name,))
            beyond = extension_runs(context.project, context.registry, context.preset, table.name)
            found = list(context.states([*runs, *beyond]))
            if table.of_paper or any(state.record_state is not RecordState.MISSING for state in found):
                states += found
    return states


def _commit(root: Path) -> str | None:
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@command()
@places
@of_cells
@click.option("--json", "as_json", is_flag=True, help="For programs: every cell and claim in full.")
def claims(context: "Context", selected: "Selection", as_json: bool) -> None:
    """Judge the paper's claims and each of its cells by the records so far.

    With a selection, show its cells' verdicts only, corrected over all the paper's cells. The rules are
    experiments/claims.toml; docs/statistics.md has the formulas.
    """
    from repro.analysis.claims import claims_text, judgement_json
    from repro.analysis.rules import RULES_FILE, read_rules

    shown = narrowed(context, selected)
    rules = read_rules(context.project.experiments / RULES_FILE)
    claimed, cells = judge(context, rules)
    if shown is not None:
        claimed, cells = (), tuple(result for result in cells if result.cell in shown)
        if not cells:
            raise UsageError("the selection has none of the paper's cells, and claims are about these")
    text = judgement_json if as_json else claims_text
    click.echo(text(claimed, cells, context.preset, rules), nl=False)
    if shown is not None and not as_json:
        click.echo("\n" + "\n\n".join(map(cell_text, cells)))
    end_if_damaged(context.damaged)


def judge(context: "Context", rules: "Rules") -> "tuple[tuple[ClaimVerdict, ...], tuple[CellResult, ...]]":
    """The verdicts on the paper's claims and cells."""
    from repro.analysis.claims import claim_runs, judge_claims
    from repro.analysis.results import summarise
    from repro.analysis.verdicts import judge_cells

    registry, preset = context.registry, context.preset
    of_tables = dict.fromkeys(context.runs())
    states = list(context.states(dict.fromkeys([*of_tables, *claim_runs(rules, registry, preset)])))
    results = summarise(states[: len(of_tables)], registry, preset)
    return judge_claims(states, registry, preset, rules), judge_cells(results, registry, preset, rules)


def cell_text(result: "CellResult") -> str:
    """A cell in words: its id, each run, mean ± sample std, what the paper reports, and the verdict on it."""
    from repro.analysis.text import mean_text

    runs = [
        f"{mean_text(run.accuracy)} % top-1" if not run.short else run.reason or run.short
        for run in result.runs
    ]
    lines = [
        result.cell.id,
        *(f"  seed {run.seed}: {text}" for run, text in zip(result.runs, runs, strict=True)),
    ]
    lines.append(f"  mean: {' '.join(filter(None, (result.value, f'({result.count})')))}")
    if result.reported:
        lines.append(f"  reported: {mean_text(result.reported.mean, result.reported.std)}")
    lines += [f"  {text}" for text in (*result.notes, result.beside) if text]
    if result.verdict:
        lines.append(f"  verdict: {result.verdict.sentence}")
    return "\n".join(lines)


@command()
@JSON
def audit(as_json: bool) -> None:
    """Audit the paper by its own printed numbers; needs no record."""
    from repro.analysis.audit import audit_json, audit_paper, audit_text
    from repro.cli.context import Context

    context = Context.open("paper")
    found = audit_paper(context.registry, context.rules)
    click.echo(audit_json(found) if as_json else audit_text(found), nl=False)
