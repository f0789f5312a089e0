"""The command line, one file per group of commands: options, body and output together.

Nothing but click and the standard library is imported before a command runs, so that `repro --help` and
completion answer at once: a body imports what it needs. torch is imported by the commands that train alone.
Progress goes to stderr, data to stdout.
"""

from typing import Any

import click

from repro import __version__
from repro.cli.bench import bench
from repro.cli.data import data
from repro.cli.doctor import doctor
from repro.cli.reporting import aggregate, audit, claims, figures, report
from repro.cli.share import bundle, merge
from repro.cli.status import logs, show_run, status
from repro.cli.training import plan, probe, run, train
from repro.errors import ReproError


class Commands(click.Group):
    """Turns an error for the user into one line on stderr and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: D102
        try:
            return super().invoke(ctx)
        except ReproError as error:
            click.echo(f"repro: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="repro")
def main() -> None:
    """Reproduces the tables and figures of Zhu et al. 2020 (batch norm with a fixed scale on the logits).

    72 cells (3 data sets × 3 networks × 8 losses), 3 seeds each: `repro plan` shows them, `repro run` trains
    what is missing, `repro aggregate` and `repro figures` show the outcome beside the paper's.

    Exit codes: 0 done, 1 some runs failed, 2 usage, 3 environment or data missing, 4 a damaged record,
    75 interrupted and resumable, 130 Ctrl-C.
    """


for command in (
    plan, run, status, train, probe, bench,
    aggregate, figures, report, claims, audit,
    show_run, logs, bundle, merge,
    doctor, data,
):  # fmt: skip
    main.add_command(command)
