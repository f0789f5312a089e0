"""This machine: doctor."""

import sys
from typing import TYPE_CHECKING

import click

from repro.cli.options import places

if TYPE_CHECKING:
    from repro.cli.context import Context


@click.command()
@places
@click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), default="local", show_default=True,
              help="Whose needs to check.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Do not hash the data sets.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(context: "Context", executor: str, quick: bool, as_json: bool) -> None:
    """Check this machine: Python, torch against the GPU, memory, disk, folders, data sets.

    Each line is ok, a warning or an error with what to do about it; the exit code is 3 if one is an error.
    """
    from repro.commands.doctor import examine, show_findings

    sys.exit(show_findings(examine(context, executor, hash_data=not quick), as_json))
