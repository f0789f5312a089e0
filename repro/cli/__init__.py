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

# The files of this package and their commands: each is imported only where one of them is asked for.
_FILES = {
    "run": ("plan", "run"),
    "train": ("train", "stop"),
    "status": ("status", "show", "logs"),
    "reporting": ("aggregate", "figures", "report"),
    "claims": ("claims", "audit"),
    "share": ("bundle", "merge"),
    "compare": ("compare",),
    "clean": ("clean",),
    "bench": ("bench",),
    "doctor": ("doctor",),
    "data": ("data",),
    "init": ("init",),
}
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
COMMANDS = {command: file for file, commands in _FILES.items() for command in commands}


class Commands(click.Group):
    """Finds commands by name, and turns an error for the user into one line on stderr and its exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"repro.cli.{COMMANDS[cmd_name]}"), cmd_name)
        return command

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
