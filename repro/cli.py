"""The command line: parse, call one function, print.

Nothing but click is imported before a command runs, so that `repro --help` and completion answer at once;
torch is imported by `repro train` alone. Progress goes to stderr, data to stdout.
"""

import sys
from collections.abc import Callable, Sequence
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


def cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what a job asks of Slurm or Ray, and hands over ClusterOptions."""

    @click.option("--jobs", type=click.IntRange(min=1),
                  help="Slurm, Ray: jobs at once.  [default: 16; Ray: what there is room for]")  # fmt: skip
    @click.option("--job-gpus", type=click.FloatRange(min=0), default=1.0, show_default=True,
                  help="Slurm, Ray: GPUs of a job; 0: train on the CPU; Ray: 0.5 shares one.")  # fmt: skip
    @click.option("--partition", help="Slurm.")
    @click.option("--account", help="Slurm.")
    @click.option("--qos", help="Slurm.")
    @click.option("--time", help="Slurm: a job's limit, as in 4:00:00; it goes on in another job.")
    @click.option("--mem", "memory", help="Slurm: a job's memory, as in 16G.")
    @click.option("--gres", help="Slurm: instead of --job-gpus, as in gpu:a100:1 or shard:2.")
    @click.option("--sbatch", multiple=True, metavar="OPTION[=VALUE]",
                  help="Slurm: any other option of sbatch, as in constraint=a100; repeatable.")  # fmt: skip
    @click.option("--ray-address", default="auto", show_default=True, help="Ray: the cluster's address.")
    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        from dataclasses import fields

        from repro.commands.cluster import ClusterOptions

        asked = {each.name: options.pop(each.name) for each in fields(ClusterOptions)}
        return command(*args, cluster=ClusterOptions(**asked), **options)

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
@click.option("--executor", type=click.Choice(["local", "inline", "slurm", "ray"]), default="local",
              show_default=True,
              help="A process a group of runs; all in this one; a cluster's jobs.")  # fmt: skip
@cluster
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
    _end_if_damaged(damaged)


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
    _end_if_damaged(damaged)


@main.command()
@places
@click.option("--json", "as_json", is_flag=True, help="For programs: every cell and claim in full.")
def claims(context: "Context", as_json: bool) -> None:
    """Judge the paper's claims, and each of its cells, by the records there are.

    The rules are experiments/claims.toml; docs/statistics.md has the formulas.
    """
    from repro.analysis.verdict_text import claims_text, judgement_json
    from repro.commands.judge import judge

    judged = judge(context)
    write = judgement_json if as_json else claims_text
    click.echo(write(judged.claims, judged.cells, context.preset, judged.rules), nl=False)
    _end_if_damaged(judged.damaged)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def audit(as_json: bool) -> None:
    """Audit the paper by its own printed numbers; needs no record."""
    from repro.analysis.verdict_text import audit_json, audit_text
    from repro.commands.context import Context
    from repro.commands.judge import audit as audit_numbers

    context = Context.open("paper")
    found = audit_numbers(context)
    click.echo(audit_json(found) if as_json else audit_text(found, context.registry), nl=False)


@main.command("show")
@places
@click.argument("run_id", metavar="RUN_ID")
@click.option("--json", "as_json", is_flag=True, help="The record as it stands on disk.")
def show_run(context: "Context", run_id: str, as_json: bool) -> None:
    """Show one run: result, data, configuration, device, attempts and curve."""
    from repro.commands import run_details

    click.echo(run_details.show_run(context, run_id, as_json))


@main.command()
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


@main.command()
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


@main.group()
def data() -> None:
    """Fetch, prepare, verify and list the data sets."""


def data_places(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the data set and --data-dir, and hands the command the data folder."""

    @click.argument("name", metavar="SET")
    @click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
    @wraps(command)
    def wrapped(name: str, data_dir: Path | None, **options: Any) -> Any:
        from repro.paths import Project

        return command(name, Project.find(data=data_dir).data, **options)

    return wrapped


@data.command()
@data_places
@click.option("--url", help="A mirror of the set's archive.")
def fetch(name: str, folder: Path, **options: Any) -> None:
    """Download SET (cifar100, …) and check it; resumes, and does nothing where it is there."""
    from repro.commands.data import fetch_set
    from repro.data import FetchOptions

    fetch_set(name, folder, FetchOptions(**options))


@data.command()
@data_places
@click.option("--from", "source", type=click.Path(exists=True, path_type=Path), metavar="PATH",
              help="Folder or archive of the source files, where not in the data folder.")  # fmt: skip
@click.option("--as", "save_as", metavar="NAME", help="Keep it under a name of its own.")
@click.option("--title", help="What tables call a set of your own.")
@click.option("--allow-partial", is_flag=True, help="Take a set that lacks images; tables will say so.")
@click.option("--min-images", type=click.IntRange(min=2), help="Leave out people with fewer.  [default: 70]")
@click.option("--crop", type=click.FloatRange(min=0, max=1, min_open=True),
              help="Keep a central square, its side this fraction of the shorter side.")  # fmt: skip
def prepare(name: str, folder: Path, save_as: str | None, **options: Any) -> None:
    """Turn SET's files into memory-mapped arrays with a manifest.

    Any other name than a known set's is one of your own: --from a folder with a folder of images a class.
    """
    from repro.commands.data import prepare_set
    from repro.data import PrepareOptions

    prepare_set(name, folder, PrepareOptions(name=save_as, **options))


@data.command()
@data_places
def verify(name: str, folder: Path) -> None:
    """Hash SET's arrays against the manifest: finds one flipped bit."""
    from repro.commands.data import verify_set

    verify_set(name, folder)


@data.command()
@places
@click.argument("name", metavar="SET")
@click.option("--classes", type=click.IntRange(min=1), default=16, show_default=True, help="Rows.")
@click.option("--images", type=click.IntRange(min=1, max=40), default=8, show_default=True,
              help="Images of each class.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Whose augmentation.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path),
              help="A .png or .pdf.  [default: beside the set's arrays]")  # fmt: skip
def show(context: "Context", name: str, output: Path | None, **options: int) -> None:
    """Write a contact sheet of SET: images by class, before and after the preset's augmentation."""
    from repro.commands.contact_sheet import write_contact_sheet

    click.echo(write_contact_sheet(context, name, seed=options["seed"], output=output,
                                   classes=options["classes"], images=options["images"]))  # fmt: skip


@data.command("list")
@click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_sets(data_dir: Path | None, as_json: bool) -> None:
    """Show every data set: prepared, fetched, missing or corrupt."""
    from repro.commands.data import list_data
    from repro.paths import Project

    click.echo(list_data(Project.find(data=data_dir).data, as_json))


def _end_if_damaged(reasons: Sequence[str]) -> None:
    """Names every record that could not be believed, and ends with the exit code of that."""
    for reason in reasons:
        click.echo(f"repro: {reason}", err=True)
    if reasons:
        sys.exit(4)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
