"""`python -m chaos` in tests/: how many faults, from which seed, of which kinds; the report goes to stdout."""

import sys

import click

from chaos.run_chaos import ChaosOptions, run_chaos
from repro.errors import ReproError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--faults", type=click.IntRange(min=1), default=200, show_default=True, help="Stop after this many."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything that is drawn.")
@click.option(
    "--kind", "only", multiple=True, metavar="GLOB", default=("*",), help="Only such faults; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(faults: int, seed: int, only: tuple[str, ...], as_json: bool) -> None:
    """Find out on this machine whether a sweep survives what can happen to it.

    Trains tiny networks on handwritten digits, in processes of their own and a temporary folder, while they are
    killed, paused, denied disk space and given damaged files; then counts the records that were lost, committed
    twice, accepted though damaged or unequal, and the processes left over. Exit code 4 if there were any.
    """
    try:
        report = run_chaos(ChaosOptions(faults, seed, only))
    except ReproError as error:
        click.echo(f"chaos: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    click.echo(report.to_json() if as_json else report.to_text())
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main(prog_name="python -m chaos")
