"""Options that commands share, and what each hands its command instead of them."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click

from repro.errors import SetupError, UsageError, printable


class _Path(click.Path):
    """A path in which a leading ~ is the home folder: after `--results=` no shell expands it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 - Path would raise


FOLDER = _Path(file_okay=False, path_type=Path)
FILE = _Path(dir_okay=False, path_type=Path)
EXISTING = _Path(exists=True, dir_okay=False, path_type=Path)


def _split(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[int | str, ...]:
    """`1,2` and an option given twice are the same; numbers become such."""
    words = [word.strip() for value in values for word in value.split(",")]
    if wrong := [word for word in words if not word or (param.name == "seeds" and not word.isdecimal())]:
        raise click.BadParameter(f"{wrong[0]!r}: expected a number such as 0, or several: 0,1")
    return tuple(int(word) if word.isdecimal() else word for word in words)


TABLES = click.option(
    "--table",
    "tables",
    multiple=True,
    callback=_split,
    metavar="TABLE[,…]",
    help="1, 2, 3 or a name.  [default: the paper's]",
)


class _Messages(logging.Handler):
    """Plain lines on stderr; one that cannot be written, as to a full disk, is dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):
            click.echo(printable(self.format(record)), err=True)


def configure_logging() -> None:
    """Shows what the package logs, from INFO on, as messages to the user."""
    logger = logging.getLogger("repro")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Messages) for handler in logger.handlers):
        logger.addHandler(_Messages())


def all_of(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Adds several options, listed by --help in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


RESULTS = click.option(
    "--results", type=FOLDER, help="Folder of the records.  [default: the project's results/]"
)
DATA_DIR = click.option(
    "--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]"
)
JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
DEVICE = click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda if there is one]")
PRECISION = click.option(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    help="Force this precision.  [default: by device]",
)
DETERMINISTIC = click.option("--deterministic", is_flag=True, help="Bitwise repeatable on a GPU too; slower.")
STALE = click.option(
    "--stale",
    type=click.Choice(["keep", "rerun"]),
    default="keep",
    show_default=True,
    help="What to do with results from older training code.",
)
LOG = click.option(
    "--log", metavar="NAME", help="Live curves: tensorboard, csv or your own logger, mylog.py:MyLogger."
)

_ACCELERATIONS = click.Choice(["channels-last", "fused-sgd", "cuda-graph", "compile"])
accelerations = all_of(
    click.option(
        "--with",
        "switch_on",
        type=_ACCELERATIONS,
        multiple=True,
        help="Use an acceleration.  [default: by device]",
    ),
    click.option(
        "--without", "switch_off", type=_ACCELERATIONS, multiple=True, help="Disable an acceleration."
    ),
)
"""What makes a run faster and is no part of its recipe."""


def places(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --preset, --results and --data-dir, and hands the command a Context instead of them."""

    @click.option(
        "--preset", default="paper", show_default=True, help="How runs are trained: paper, quick, …"
    )
    @RESULTS
    @DATA_DIR
    @wraps(command)
    def wrapped(preset: str, results: Path | None, data_dir: Path | None, **options: Any) -> Any:
        from repro.cli.context import Context

        return command(Context.open(preset, results, data_dir), **options)

    return wrapped


def _grid(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    from repro.config import parse_grid

    return parse_grid(values)


SET = click.option(
    "--set",
    "axes",
    multiple=True,
    callback=_grid,
    metavar="NAME=VALUE[,…]",
    help="Override the recipe; several values are a grid. Repeatable.",
)
SELECTED = ("tables", "datasets", "networks", "losses", "seeds", "axes", "studies")


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --table, --dataset, --network, --loss, --seed, --set and --study, and hands over a Selection."""

    @TABLES
    @click.option("--dataset", "datasets", multiple=True, help="As in `cifar100`; globs, repeatable.")
    @click.option("--network", "networks", multiple=True, help="As in `resnet*`; globs, repeatable.")
    @click.option("--loss", "losses", multiple=True, help="As in `am-softmax-*`; globs, repeatable.")
    @click.option("--seed", "seeds", multiple=True, callback=_split, metavar="SEED[,…]",
                  help="[default: the preset's]")  # fmt: skip
    @SET
    @click.option("--study", "studies", multiple=True, metavar="NAME",
                  help="`ambiguities`: what the paper leaves open; `vgg`, …: one such point.")  # fmt: skip
    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        from repro.registry import Selection

        fields = {name: options.pop(name) for name in SELECTED}
        return command(*args, selected=Selection(**fields), **options)

    return wrapped


def stoppable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Listens to signals before anything is imported that takes long, and hands the command a Stop."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        from repro.signals import Stop, die_with_parent

        stop = Stop()
        stop.listen()
        die_with_parent(stop)
        return command(*args, stop=stop, **options)

    return wrapped


def parse_per_gpu(context: click.Context, parameter: click.Parameter, value: str) -> "int | str":
    """A number of at least 1, or `auto`."""
    if value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"expected a number of at least 1, or auto; got {value!r}")
    return int(value)


devices = all_of(
    click.option("--gpus", metavar="LIST", help="Indices among the visible GPUs, as in 0,2.  [default: all]"),
    click.option(
        "--per-gpu",
        default="auto",
        show_default=True,
        metavar="N|auto",
        callback=parse_per_gpu,
        help="Concurrent runs per GPU. auto adds runs while throughput grows.",
    ),
    STALE,
    click.option(
        "--budget",
        metavar="TIME",
        help="Stop after this much time (30m, 20h, 1d2h). Unfinished runs resume later.  [default: none]",
    ),
)
"""What `plan` and `run` share."""


def end_if_damaged(reasons: Sequence[str]) -> None:
    """Names every record that could not be believed, and ends with the exit code of that."""
    for reason in reasons:
        click.echo(f"repro: {reason}", err=True)
    if reasons:
        sys.exit(4)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file that an option names, whole or not at all; UsageError where it cannot be."""
    from repro.storage import make_folder, write_whole

    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path} is a link or no regular file: name the file itself, or redirect stdout")
    try:
        make_folder(path.parent)
        write_whole(path, content.encode() if isinstance(content, str) else content)
    except SetupError as error:
        raise UsageError(str(error)) from None


def prepare_streams() -> None:
    """Makes stdout and stderr take every character, whatever the locale, and exist where they were closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            # A file or pipe gets UTF-8, as the files that we write; a terminal what it can show.
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
