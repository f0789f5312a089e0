"""This machine and the harness itself: doctor, selftest."""

import sys
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import places
from repro.errors import UsageError

if TYPE_CHECKING:
    from repro.commands.context import Context


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


@click.command()
@click.option("--chaos", is_flag=True, help="Train a small sweep under random faults and audit it.")
@click.option("--faults", type=click.IntRange(min=1), default=200, show_default=True, help="How many.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--kind", "only", multiple=True, metavar="GLOB", help="Only such faults; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def selftest(chaos: bool, as_json: bool, **options: Any) -> None:
    """Find out on this machine whether a sweep survives what can happen to it.

    --chaos trains tiny networks on generated data, in processes of their own and a temporary folder, while
    they are killed, paused, denied disk space and given damaged files; then it counts what was lost, done
    twice, believed though damaged, came out different, or lived on. Exit code 4 if anything was.
    """
    from repro.commands.chaos.selftest import ChaosOptions, run_chaos

    if not chaos:
        raise UsageError("the only selftest so far is `repro selftest --chaos`")
    options["only"] = options["only"] or ("*",)
    report = run_chaos(ChaosOptions(**options))
    click.echo(report.to_json() if as_json else report.to_text())
    sys.exit(report.exit_code)
