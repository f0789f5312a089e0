"""`repro report`: the page of a preset's records."""

import subprocess
from pathlib import Path

from repro import __version__
from repro.analysis.aggregate import integrity_errors
from repro.analysis.claims import claim_runs
from repro.analysis.report import Origin, render_report
from repro.commands.aggregate import extension_runs, weigh_studies
from repro.commands.context import Context
from repro.commands.judge import project_rules
from repro.commit import make_folder, write_whole
from repro.experiments import AMBIGUITIES
from repro.record_state import RecordState, RunState
from repro.registry import Selection


def write_report(context: Context, output: Path | None) -> tuple[Path, list[str]]:
    """Writes the page, whole: its path, and a sentence for each record that could not be believed.

    The paper's tables are always in it, another table or a loss beyond the paper's once it has a record.
    """
    states = _states(context)
    rules = project_rules(context)
    shown = {state.run for state in states}
    needed = claim_runs(rules, context.registry, context.preset)
    moves, damaged = weigh_studies(context, [AMBIGUITIES]) if context.registry.ablations else ((), [])
    text = render_report(
        states,
        list(context.states(run for run in needed if run not in shown)),
        context.registry,
        context.preset,
        rules,
        Origin(
            version=__version__,
            commit=_commit(context.project.root),
            results=_shown(context),
            supplied=context.project.supplied_results,
        ),
        moves,
    )
    path = output or context.project.preset_results(context.preset.name) / "report.html"
    make_folder(path.parent)
    write_whole(path, text.encode())
    return path, list(dict.fromkeys([*map(str, integrity_errors(states)), *damaged]))


def _states(context: Context) -> list[RunState]:
    states: list[RunState] = []
    for table in context.registry.tables:
        if table.extends is not None:
            continue
        runs = context.registry.select_runs(Selection(tables=(table.name,)), context.preset)
        found = list(context.states([*runs, *extension_runs(context, table.name)]))
        if table.of_paper or any(state.record_state is not RecordState.MISSING for state in found):
            states += found
    return states


def _shown(context: Context) -> str:
    """The folder as the page names it: within the project without the machine's path."""
    folder = context.project.preset_results(context.preset.name)
    root = context.project.root
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else folder.name


def _commit(root: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
