"""The command line, one file per group of commands: options, body and output together.

Nothing but click and the standard library is imported before a command runs, so that `repro --help` and
completion answer at once: a body imports what it needs. torch is imported by the commands that train alone.
Progress goes to stderr, data to stdout.
"""

import errno
import os
from importlib import import_module
from typing import Any

import click

from repro import __version__
from repro.cli.options import configure_logging, prepare_streams, say
from repro.errors import ReproError, SetupError

# The files of this package and their commands as `repro --help` lists them: a file is imported only where
# one of its commands is asked for.
_FILES = {
    "run": {
        "plan": "Show what is done, what is missing, and about how long it takes.",
        "run": "Train what is missing, on every device found.",
    },
    "train": {
        "train": "Train runs by id in this process.",
        "stop": "Ask every worker of the preset to stop, on whatever machine.",
    },
    "status": {
        "status": "Show a sweep: runs by state, speed, time left, failures.",
        "show": "Show one run with its curve, or cells with their verdicts.",
        "logs": "Show how each attempt of a run ended, and its workers' logs.",
    },
    "reporting": {
        "aggregate": "Print the tables: mean ± sample std, beside what is reported.",
        "figures": "Draw the paper's figures, curves and ablations.",
        "report": "Write one HTML file with tables, runs, figures and cost.",
        "claims": "Judge the paper's claims and cells by the records so far.",
        "audit": "Audit the paper by its own printed numbers; needs no record.",
    },
    "share": {
        "bundle": "Pack the records that count into one file for others.",
        "merge": "Add records that `repro bundle` packed elsewhere.",
    },
    "compare": {"compare": "Compare two sets of results, cell by cell."},
    "clean": {"clean": "Remove what no run needs any more; lists it, then asks."},
    "bench": {"bench": "Measure training speed here, beside two other loops."},
    "doctor": {"doctor": "Check whether this machine is ready to train."},
    "data": {"data": "Fetch, prepare, verify and list the data sets."},
    "init": {"init": "Make a project for another paper, to edit."},
}
_FILE_OF = {command: file for file, commands in _FILES.items() for command in commands}
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class Commands(click.Group):
    """Finds commands by name, and turns an error for the user into one line on stderr and its exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(_FILE_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        if cmd_name not in _FILE_OF:
            return None
        command: click.Command = getattr(import_module(f"repro.cli.{_FILE_OF[cmd_name]}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        with formatter.section("Commands"):
            formatter.write_dl([row for commands in _FILES.values() for row in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: D102
        try:
            return super().invoke(ctx)
        except ReproError as error:
            say(f"repro: {error}")
            ctx.exit(error.exit_code)
        except OSError as error:
            # A closed pipe, as in `repro … | head`, is click's; a file that is named is ours to explain.
            if error.filename or error.errno not in _UNWRITABLE:
                raise
            say(f"repro: cannot write to stdout: {error.strerror}")
            # What stdout still holds cannot be written at exit either.
            os._exit(SetupError.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="repro")
def main() -> None:
    """Re-runs a paper's tables and says which of its numbers and claims hold.

    `repro plan` shows the paper's cells and what is missing, `repro run` trains it, `repro aggregate`,
    `repro figures` and `repro report` show the outcome beside the paper's. The paper is described in
    experiments/; `repro init` makes a project for another one.

    Exit codes: 0 done, 1 some runs failed, 2 usage, 3 environment or data missing, 4 a damaged record,
    75 interrupted and resumable, 130 Ctrl-C.
    """
    # A notebook's backend, inherited from it, need not exist here; nothing opens a window.
    os.environ["MPLBACKEND"] = "agg"
    prepare_streams()
    configure_logging()
