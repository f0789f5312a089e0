"""Options that commands share, and what each hands its command instead of them."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
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


class ExpertOption(click.Option):
    """One that --help lists below the everyday ones."""


class ClusterOption(click.Option):
    """One for a cluster's jobs; --help names them all in a paragraph."""


class Command(click.Command):
    """A command whose --help has the everyday options first; options with the same text share a line."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        kinds = {"Options": click.Option, "More options": ExpertOption, "Cluster options": ClusterOption}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in kinds}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                of_kind = rows[next(title for title in reversed(kinds) if isinstance(param, kinds[title]))]
                record = (record[0], re.sub(r" *\[x>=[\d.]+\]", "", record[1]))
                if of_kind and of_kind[-1][1] == record[1]:
                    record = (f"{of_kind.pop()[0].rpartition(' ')[0]}, {record[0]}", record[1])
                of_kind.append(record)
        cluster = rows.pop("Cluster options")
        for title, of_kind in rows.items():
            if of_kind:
                with formatter.section(title):
                    formatter.write_dl(of_kind)
        if cluster:
            with formatter.section("Cluster options, with --executor slurm or ray (docs/cluster.md)"):
                formatter.write_text(
                    ", ".join(f"{names} ({text})" if text else names for names, text in cluster)
                )


command = partial(click.command, cls=Command)
expert = partial(click.option, cls=ExpertOption)


def completed(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """What the shell completes an option or argument with; `repro.cli.completion` has the kinds."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from repro.cli.completion import complete

        return complete(kind, ctx.params, incomplete)

    return complete


def _keep_own(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Remembers an option as it was given, for the commands that messages suggest."""
    if value not in (None, param.default):
        ctx.meta[param.opts[0]] = str(value)
    return value


def with_own_options(text: str) -> str:
    """`text` with the user's own --preset, --results and --data-dir in each `repro …` that takes them."""
    from repro.cli import main

    context = click.get_current_context(silent=True)
    own = {name: value for name, value in context.meta.items() if name.startswith("--")} if context else {}

    def extended(found: re.Match[str]) -> str:
        words = found[1].split()
        command: click.Command | None = main
        for word in words[1:]:
            if isinstance(command, click.Group):
                command = command.get_command(click.Context(command), word)
        takes = {option for param in command.params for option in param.opts} if command else set()
        given = [word for option in own if option in takes - {*words} for word in (option, own[option])]
        return f"`{' '.join([found[1], shlex.join(given)]).strip()}`"

    return re.sub(r"`(repro [a-z][^`]*)`", extended, text) if own else text


def say(text: str) -> None:
    """A message on stderr, dropped where that cannot be written: a full disk must not end a sweep."""
    with suppress(OSError, ValueError):
        click.echo(printable(with_own_options(text)), err=True)


class _Messages(logging.Handler):
    """Plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


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
    "--results",
    type=FOLDER,
    metavar="DIR",
    callback=_keep_own,
    help="Folder of the records.  [default: results/]",
)
DATA_DIR = expert(
    "--data-dir",
    type=FOLDER,
    metavar="DIR",
    callback=_keep_own,
    help="Data folder.  [default: $REPRO_DATA or data/]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
DEVICE = click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda if there is one]")
PRECISION = expert(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    help="Force this precision.  [default: by device]",
)
STALE = expert(
    "--stale",
    type=click.Choice(["keep", "rerun"]),
    default="keep",
    show_default=True,
    help="Results from older code.",
)
_ACCELERATIONS = click.Choice(["channels-last", "fused-sgd", "cuda-graph", "compile"])
_FORCE = "On or off: channels-last, fused-sgd, cuda-graph, compile.  [default: by device]"
accelerations = all_of(
    *(
        expert(option, name, type=_ACCELERATIONS, multiple=True, metavar="NAME", help=_FORCE)
        for option, name in (("--with", "switch_on"), ("--without", "switch_off"))
    )
)
"""What makes a run faster and is no part of its recipe."""

training = all_of(
    PRECISION,
    expert("--deterministic", is_flag=True, help="Bitwise repeatable on a GPU too; slower."),
    accelerations,
    expert(
        "--checkpoint-interval",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="Least time between two.  [default: 60]",
    ),
    expert("--log", metavar="NAME", help="Live: tensorboard, csv or mylog.py:MyLogger."),
)
"""What `train` takes beside its device, and `run` hands on to it."""


def as_words(options: Mapping[str, Any]) -> Iterator[str]:
    """Options of the present command, by the names of its parameters, as words of a command line."""
    names = {param.name: param.opts[0] for param in click.get_current_context().command.params}
    for name, value in options.items():
        if value is True:
            yield names[name]
        elif value is not None and value is not False:  # 0 is a value
            for each in value if isinstance(value, tuple) else (value,):
                yield from (names[name], str(each))


PRESET = click.option("--preset", default="paper", show_default=True, metavar="NAME", callback=_keep_own,
                      shell_complete=completed("presets"), help="How runs are trained.")  # fmt: skip


def places(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --preset, --results and --data-dir, and hands the command a Context instead of them."""

    @PRESET
    @RESULTS
    @DATA_DIR
    @wraps(command)
    def wrapped(preset: str, results: Path | None, data_dir: Path | None, **options: Any) -> Any:
        from repro.cli.context import Context

        return command(Context.open(preset, results, data_dir), **options)

    return wrapped


def _grid(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    if not values:
        return ()  # also when the shell completes, which must not wait for pydantic
    from repro.config import parse_grid

    return parse_grid(values)


SELECTED = ("tables", "datasets", "networks", "losses", "seeds", "axes", "studies")


def select(**refused: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --table, --dataset, --network, --loss, --seed, --set and --study, and hands over a Selection.

    Those `refused`, by the field's name, make no sense for the command: a UsageError gives the reason.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        def option(name: str, field: str, **settings: Any) -> Callable[[Any], Any]:
            settings |= {"multiple": True, "hidden": field in refused, "shell_complete": completed(field)}
            return click.option(name, field, **settings)

        named = {"metavar": "NAME", "help": "Name, label or glob (resnet*); repeatable."}

        @option("--table", "tables", callback=_split, metavar="TABLE[,…]",
                help="1, 2, 3 or a name.  [default: the paper's]")  # fmt: skip
        @option("--dataset", "datasets", **named)
        @option("--network", "networks", **named)
        @option("--loss", "losses", **named)
        @option("--seed", "seeds", callback=_split, metavar="SEED[,…]", help="[default: the preset's]")
        @option("--set", "axes", callback=_grid, metavar="NAME=VALUE[,…]",
                help="Override the recipe; several values: a grid.")  # fmt: skip
        @option("--study", "studies", metavar="NAME", help="Ablations: `ambiguities`, or one by name.")
        @wraps(command)
        def wrapped(*args: Any, **options: Any) -> Any:
            from repro.registry import Selection

            fields = {name: options.pop(name) for name in SELECTED}
            for name, reason in refused.items():
                if fields[name]:
                    raise UsageError(reason)
            return command(*args, selected=Selection(**fields), **options)

        return wrapped

    return add


selection = select()


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
    click.option("--gpus", metavar="LIST", help="Visible GPUs by index: 0,2.  [default: all]"),
    click.option("--budget", metavar="TIME", help="Stop after this long: 30m, 20h, 1d2h."),
    expert(
        "--per-gpu",
        default="auto",
        metavar="N|auto",
        callback=parse_per_gpu,
        help="Concurrent runs; auto: while it gets faster.",
    ),
    STALE,
)
"""What `plan` and `run` share."""


def end_if_damaged(reasons: Collection[str]) -> None:
    """Names every record that is not valid, and ends with the exit code for that."""
    for reason in reasons:
        say(f"repro: {reason}")
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
