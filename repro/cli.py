"""The command line: parse, call one function, print.

Nothing but click is imported before a command runs, so that `repro --help` and completion answer at once;
torch is imported by `repro train` alone. Progress goes to stderr, data to stdout.
"""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro import __version__
from repro.errors import ReproError, UsageError

if TYPE_CHECKING:
    from repro.analysis.tables import TableFormat
    from repro.commands.context import Context
    from repro.commands.stop import Stop

FOLDER = click.Path(file_okay=False, path_type=Path)


class TableType(click.ParamType):
    """The number of a table of the paper, or another table's name."""

    name = "table"

    def convert(  # noqa: D102
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        return int(value) if str(value).isdecimal() else str(value)


TABLE = TableType()


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


def places(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --preset, --results and --data-dir, and hands the command a Context instead of them."""

    @click.option(
        "--preset", default="paper", show_default=True, help="How runs are trained: paper, quick, …"
    )
    @click.option("--results", type=FOLDER, help="Folder of the records.  [default: the project's results/]")
    @click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
    @wraps(command)
    def wrapped(preset: str, results: Path | None, data_dir: Path | None, **options: Any) -> Any:
        from repro.commands.context import Context

        return command(Context.open(preset, results, data_dir), **options)

    return wrapped


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --table, --dataset, --network, --loss, --seed and --set, and hands over a Selection."""

    @click.option("--table", "tables", type=TABLE, multiple=True, help="1, 2, 3 or a name; repeatable.")
    @click.option("--dataset", "datasets", multiple=True, help="As in `cifar100`; globs, repeatable.")
    @click.option("--network", "networks", multiple=True, help="As in `resnet*`; globs, repeatable.")
    @click.option("--loss", "losses", multiple=True, help="As in `scaled-bn-*`; globs, repeatable.")
    @click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, help="Repeatable.")
    @click.option("--set", "axes", multiple=True, metavar="AXIS=VALUE", help="Depart from the recipe.")
    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        from repro.recipes import parse_axis
        from repro.registry import Selection

        axes = tuple(parse_axis(text) for text in options.pop("axes"))
        fields = {name: options.pop(name) for name in ("tables", "datasets", "networks", "losses", "seeds")}
        return command(*args, selected=Selection(**fields, axes=axes), **options)

    return wrapped


def stoppable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Listens to signals before anything is imported that takes long, and hands the command a Stop."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        from repro.commands.stop import Stop, die_with_parent

        stop = Stop()
        stop.listen()
        die_with_parent(stop)
        return command(*args, stop=stop, **options)

    return wrapped


@main.command()
@places
@selection
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(context: "Context", selected: Any, as_json: bool) -> None:
    """Show cells and runs: done, stale, to do, and about how long the rest takes."""
    from repro.commands.plan import make_plan

    made = make_plan(context, selected)
    click.echo(made.to_json() if as_json else made.to_text())


@main.command()
@places
@selection
@click.option("--gpus", metavar="LIST", help="Indices among the visible GPUs, as in 0,2.  [default: all]")
@click.option("--per-gpu", type=click.IntRange(min=1), default=1, show_default=True, help="Runs a GPU.")
@click.option("--stale", type=click.Choice(["keep", "rerun"]), default="keep", show_default=True,
              help="Whether to redo records of older code.")  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Force one.  [default: by device]"
)
@click.option("--deterministic", is_flag=True, help="Bitwise repeatable on a GPU too; slower.")
@click.option("--checkpoint-interval", type=click.FloatRange(min=0), metavar="SECONDS",
              help="At least so long between checkpoints.  [default: 60]")  # fmt: skip
@click.option("--executor", type=click.Choice(["local", "inline"]), default="local", show_default=True,
              help="A process a group of runs, or all in this one.")  # fmt: skip
def run(context: "Context", selected: Any, **options: Any) -> None:
    """Train what is missing, on every device found.

    Finished runs are skipped. Ctrl-C lets the runs in progress finish; a second one makes them write a
    checkpoint and stops. Started again it goes on where it stopped.
    """
    from repro.commands.run import RunOptions, run_sweep

    sys.exit(run_sweep(context, selected, RunOptions(**options)))


@main.command()
@stoppable
@places
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN_ID…")
@click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda if there is one]")
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Force one.  [default: by device]"
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the preset's]")
@click.option("--deterministic", is_flag=True, help="Bitwise repeatable on a GPU too; slower.")
@click.option(
    "--co-tenants", type=click.IntRange(min=0), default=0, help="Other runs on this device; recorded."
)
@click.option("--stale", type=click.Choice(["keep", "rerun"]), default="keep", show_default=True,
              help="Whether to redo records of older code.")  # fmt: skip
@click.option("--checkpoint-interval", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds.")  # fmt: skip
def train(context: "Context", run_ids: tuple[str, ...], stale: str, stop: "Stop", **options: Any) -> None:
    """Train runs by id, one after another in this process.

    This is what every executor launches; pasting its line repeats a run. An id is
    dataset/network/loss[+axis=value]/seedK, as in cifar100/resnet18/scaled-bn-m1/seed0.
    """
    from repro.commands.train import train as train_runs
    from repro.commands.worker import TrainOptions

    sys.exit(
        train_runs(
            run_ids,
            context.registry,
            context.preset,
            context.project,
            TrainOptions(redo_stale=stale == "rerun", **options),
            stop=stop,
        )
    )


@main.command()
@places
@click.option("--format", "form", type=click.Choice(["markdown", "latex", "csv", "json"]), default="markdown",
              show_default=True)  # fmt: skip
@click.option("--table", "tables", type=TABLE, multiple=True,
              help="1, 2, 3 or a name; repeatable.  [default: the paper's]")  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
def aggregate(
    context: "Context", form: "TableFormat", tables: tuple[int | str, ...], output: Path | None
) -> None:
    """Make the tables: mean ± sample std of the seeds, beside what the paper reports.

    A damaged record is never averaged; the table names it and the exit code is 4.
    """
    from repro.commands.aggregate import aggregate_tables

    text, damaged = aggregate_tables(context, tables, form)
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)
        click.echo(f"wrote {output}", err=True)
    for reason in damaged:
        click.echo(f"repro: {reason}", err=True)
    if damaged:
        sys.exit(4)


@main.command()
@places
@click.option("--output", type=FOLDER, help="Folder.  [default: the project's figures/<preset>/]")
def figures(context: "Context", output: Path | None) -> None:
    """Draw Figures 2 and 3, the training curves and the gradient norms from the records, as PNG and PDF."""
    from repro.commands.aggregate import make_figures

    written, notices = make_figures(context, output)
    for path in written:
        click.echo(path)
    for notice in notices:
        click.echo(f"repro: {notice}", err=True)


@main.command()
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


@main.command()
@places
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path),
              help="The file.  [default: the preset's results folder, report.html]")  # fmt: skip
def report(context: "Context", output: Path | None) -> None:
    """Write one HTML file with the tables, every run behind them, the figures, cost, and what is open.

    It needs no network and nothing beside it. A damaged record is never averaged; it is named, and the exit
    code is 4.
    """
    from repro.commands.report import write_report

    path, damaged = write_report(context, output)
    click.echo(path)
    for reason in damaged:
        click.echo(f"repro: {reason}", err=True)
    if damaged:
        sys.exit(4)


@main.group()
def data() -> None:
    """Fetch, prepare, verify and list the data sets."""


def data_places(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the data set and --data-dir, and hands the command the data folder."""

    @click.argument("name", metavar="SET")
    @click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
    @wraps(command)
    def wrapped(name: str, data_dir: Path | None) -> Any:
        from repro.paths import Project

        return command(name, Project.find(data=data_dir).data)

    return wrapped


@data.command()
@data_places
def fetch(name: str, folder: Path) -> None:
    """Download SET (cifar100, …) and check it; resumes, and does nothing where it is there."""
    from repro.commands.data import fetch_set

    fetch_set(name, folder)


@data.command()
@data_places
def prepare(name: str, folder: Path) -> None:
    """Turn SET's files into memory-mapped arrays with a manifest."""
    from repro.commands.data import prepare_set

    prepare_set(name, folder)


@data.command()
@data_places
def verify(name: str, folder: Path) -> None:
    """Hash SET's arrays against the manifest: finds one flipped bit."""
    from repro.commands.data import verify_set

    verify_set(name, folder)


@data.command("list")
@click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_sets(data_dir: Path | None, as_json: bool) -> None:
    """Show every data set: prepared, fetched, missing or corrupt."""
    from repro.commands.data import list_data
    from repro.paths import Project

    click.echo(list_data(Project.find(data=data_dir).data, as_json))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
