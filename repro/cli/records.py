"""Single runs, and records passed on: show, logs, bundle, merge."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import EXISTING, FILE, FOLDER, places, selection

if TYPE_CHECKING:
    from repro.cli.context import Context


@click.command("show")
@places
@click.argument("run_id", metavar="RUN_ID")
@click.option("--json", "as_json", is_flag=True, help="The record as it stands on disk.")
def show_run(context: "Context", run_id: str, as_json: bool) -> None:
    """Show one run: result, data, configuration, device, attempts and curve."""
    from repro.commands import run_details

    click.echo(run_details.show_run(context, run_id, as_json))


@click.command()
@places
@click.argument("run_id", metavar="RUN_ID")
@click.option(
    "--lines", type=click.IntRange(min=1), default=40, show_default=True, help="Of each log, from its end."
)
def logs(context: "Context", run_id: str, lines: int) -> None:
    """Show what a run's attempts left: how each ended, tracebacks, and its workers' logs."""
    from repro.commands.run_details import log_lines

    for line in log_lines(context, run_id, lines):
        click.echo(line)


@click.command()
@places
@selection
@click.option("-o", "--output", type=FILE, help="[default: <preset>-records.tar.gz]")
def bundle(context: "Context", selected: Any, output: Path | None) -> None:
    """Pack the records that count into one file for others, without paths or names of this machine."""
    from repro.commands.bundle import write_bundle

    made = write_bundle(context, selected, output or Path(f"{context.preset.name}-records.tar.gz"))
    for reason in made.left_out:
        click.echo(f"left out: {reason}", err=True)
    click.echo(f"{made.packed} records packed", err=True)
    click.echo(made.file)
    if made.damaged:
        sys.exit(4)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=EXISTING)
@click.option("--results", type=FOLDER, help="Folder of the records.  [default: the project's results/]")
@click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
@click.option("--dry-run", is_flag=True, help="Only say what would be taken.")
def merge(files: tuple[Path, ...], results: Path | None, data_dir: Path | None, dry_run: bool) -> None:
    """Take records in that `repro bundle` packed elsewhere: valid ones of today's recipes, under free names.

    Nothing that is here is replaced. Exit codes: 0 all taken or here already, 1 another recipe's or another
    record of the same run was left out, 4 something could not be believed.
    """
    from repro.cli.context import Context
    from repro.commands.merge import merge_bundles

    merged = merge_bundles(Context.open("paper", results, data_dir), list(files), dry_run)
    for line in merged.lines():
        click.echo(line, err=True)
    sys.exit(merged.exit_code)
