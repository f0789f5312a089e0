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
    from repro.commands.aggregate import AnyFormat
    from repro.commands.context import Context
    from repro.commands.stop import Stop

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


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


_SELECTED = ("tables", "datasets", "networks", "losses", "seeds", "studies")


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --table, --dataset, --network, --loss, --seed, --set and --study, and hands over a Selection."""

    @click.option("--table", "tables", type=TABLE, multiple=True, help="1, 2, 3 or a name; repeatable.")
    @click.option("--dataset", "datasets", multiple=True, help="As in `cifar100`; globs, repeatable.")
    @click.option("--network", "networks", multiple=True, help="As in `resnet*`; globs, repeatable.")
    @click.option("--loss", "losses", multiple=True, help="As in `scaled-bn-*`; globs, repeatable.")
    @click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, help="Repeatable.")
    @click.option("--set", "axes", multiple=True, metavar="AXIS=VALUE", help="Depart from the recipe.")
    @click.option("--study", "studies", multiple=True, metavar="NAME",
                  help="`ambiguities`: what the paper leaves open; `vgg`, …: one such point.")  # fmt: skip
    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        from repro.recipes import parse_axis
        from repro.registry import Selection

        axes = tuple(parse_axis(text) for text in options.pop("axes"))
        fields = {name: options.pop(name) for name in _SELECTED}
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


def techniques(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --with and --without: what makes a run faster and is no part of its recipe."""
    names = click.Choice(["channels-last", "fused-sgd", "cuda-graph", "compile"])

    @click.option(
        "--with", "switch_on", type=names, multiple=True, help="Use a technique.  [default: by device]"
    )
    @click.option("--without", "switch_off", type=names, multiple=True, help="Do without a technique.")
    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        return command(*args, **options)

    return wrapped


LOG = click.option("--log", type=click.Choice(["tensorboard"]), help="Live curves, with the extra installed.")


def _per_gpu(context: click.Context, parameter: click.Parameter, value: str) -> "int | str":
    """A number of at least 1, or `auto`."""
    if value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"expected a number of at least 1, or auto; got {value!r}")
    return int(value)


def devices(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what `plan` and `run` share: --gpus, --per-gpu, --stale and --budget."""

    @click.option("--gpus", metavar="LIST", help="Indices among the visible GPUs, as in 0,2.  [default: all]")
    @click.option("--per-gpu", default="1", show_default=True, metavar="N|auto", callback=_per_gpu,
                  help="Runs a GPU; auto measures how many pay (on a CPU too).")  # fmt: skip
    @click.option("--stale", type=click.Choice(["keep", "rerun"]), default="keep", show_default=True,
                  help="Whether to redo records of older code.")  # fmt: skip
    @click.option(
        "--budget", metavar="TIME", help="As in 30m, 20h, 1d2h: what fits, then stop.  [default: none]"
    )
    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        return command(*args, **options)

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
@devices
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--probe", is_flag=True, help="Measure, for seconds each, what no record knows the speed of.")
def plan(context: "Context", selected: Any, as_json: bool, **options: Any) -> None:
    """Show cells and runs: done, stale, to do, and about how long the rest takes.

    Speeds are those of records made on this device, else of short probes, else of a table.
    """
    from repro.commands.plan import PlanOptions, make_plan

    made = make_plan(context, selected, PlanOptions(**options))
    click.echo(made.to_json() if as_json else made.to_text())


@main.command()
@places
@selection
@devices
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Force one.  [default: by device]"
)
@click.option("--deterministic", is_flag=True, help="Bitwise repeatable on a GPU too; slower.")
@techniques
@click.option("--checkpoint-interval", type=click.FloatRange(min=0), metavar="SECONDS",
              help="At least so long between checkpoints.  [default: 60]")  # fmt: skip
@click.option("--executor", type=click.Choice(["local", "inline", "slurm", "ray"]), default="local",
              show_default=True,
              help="A process a group of runs; all in this one; a cluster's jobs.")  # fmt: skip
@cluster
@LOG
def run(context: "Context", selected: Any, **options: Any) -> None:
    """Train what is missing, on every device found.

    Finished runs are skipped. Ctrl-C lets the runs in progress finish; a second one makes them write a
    checkpoint and stops. Started again it goes on where it stopped.
    """
    from repro.commands.run import RunOptions, run_sweep

    sys.exit(run_sweep(context, selected, RunOptions(**options)))


@main.command()
@places
@selection
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(context: "Context", selected: Any, watch: bool, as_json: bool) -> None:
    """Show how a sweep stands: runs by state, speed, time left, failures. Changes nothing.

    Works from another terminal or machine while schedulers are at work, and without one.
    """
    from repro.commands import status as command

    observer = command.Observer(context, selected)
    if watch:
        command.watch(observer, as_json)
    now = observer.look()
    click.echo(now.to_json() if as_json else now.to_text())


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
@techniques
@click.option(
    "--co-tenants", type=click.IntRange(min=0), default=0, help="Other runs on this device; recorded."
)
@click.option("--stale", type=click.Choice(["keep", "rerun"]), default="keep", show_default=True,
              help="Whether to redo records of older code.")  # fmt: skip
@click.option("--checkpoint-interval", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds.")  # fmt: skip
@LOG
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
@stoppable
@places
@click.argument("run_id", metavar="RUN_ID")
@click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda if there is one]")
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Force one.  [default: by device]"
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the preset's]")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
@click.option("--wait", is_flag=True, help="Say `ready`, then wait for a line before measuring.")
def probe(context: "Context", run_id: str, stop: "Stop", **options: Any) -> None:
    """Measure how fast a run would train here and the memory it takes, on generated data; writes nothing."""
    from repro.commands.probe import ProbeOptions
    from repro.commands.probe import probe as measure

    click.echo(measure(context, run_id, ProbeOptions(**options), stop))


@main.command()
@places
@click.option(
    "--network", "networks", multiple=True, default=("resnet18",), show_default=True, help="Repeatable."
)
@click.option("--size", "sizes", multiple=True, type=int, default=(32,), show_default=True,
              help="Pixels, 32 or 64; repeatable.")  # fmt: skip
@click.option("--loss", "losses", multiple=True, default=("scaled-bn-m1",), show_default=True,
              help="A table's row; repeatable.")  # fmt: skip
@click.option("--against", multiple=True, type=click.Choice(["plain", "tuned"]), default=("plain", "tuned"),
              show_default=True, help="Other loops beside ours; repeatable.")  # fmt: skip
@click.option("--packed", multiple=True, type=click.IntRange(min=2), default=(2,), show_default=True,
              help="Also so many runs at once; repeatable.")  # fmt: skip
@click.option("--alone", is_flag=True, help="Our loop alone: no other loop, no packing.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.01), default=3.0, show_default=True,
              help="Of each program's window in a round.")  # fmt: skip
@click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda if there is one]")
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Force one.  [default: by device]"
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the cores]")
@click.option("--deterministic", is_flag=True, help="What it costs to be bitwise repeatable.")
@techniques
@click.option("--json", "json_file", type=FILE, help="Write everything to a file as JSON too.")
@click.option("--plot", type=FILE, help="Draw it: a .png or .pdf.")
def bench(context: "Context", alone: bool, json_file: Path | None, plot: Path | None, **options: Any) -> None:
    """Measure training here: images a second beside the device's roofline and two other loops. Minutes.

    plain: float32, DataLoader with a worker a core, PIL transforms, `.item()` every step. tuned:
    channels_last, bf16 and torch.compile. All run in turn, window by window. Uses prepared data where there
    are some, else generated ones, and says which.
    """
    from repro.commands.bench import BenchOptions
    from repro.commands.bench import bench as measure

    if alone:
        options |= {"against": (), "packed": ()}
    result = measure(context, BenchOptions(**options), lambda line: click.echo(line, err=True))
    click.echo(result.to_text())
    if json_file:
        _write(json_file, result.to_json())
    if plot:
        from repro.commands.bench_plot import draw_bench

        draw_bench(result, plot)


@main.command()
@places
@click.option("--format", "form", default="markdown", show_default=True,
              type=click.Choice(["markdown", "latex", "macros", "csv", "json", "parquet"]))  # fmt: skip
@click.option("--table", "tables", type=TABLE, multiple=True,
              help="1, 2, 3 or a name; repeatable.  [default: the paper's]")  # fmt: skip
@click.option("--extended", is_flag=True,
              help="Losses beyond the paper also where none has a record yet.")  # fmt: skip
@click.option("--study", "studies", multiple=True, metavar="NAME",
              help="`ambiguities` or a point of it: where alternatives move a cell.")  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
def aggregate(
    context: "Context",
    form: "AnyFormat",
    tables: tuple[int | str, ...],
    studies: tuple[str, ...],
    extended: bool,
    output: Path | None,
) -> None:
    """Make the tables: mean ± sample std of the seeds, beside what the paper reports.

    macros: a LaTeX macro a number, for a paper that \\input's them. parquet needs --output.

    A damaged record is never averaged; the table names it and the exit code is 4.
    """
    from repro.commands.aggregate import aggregate_studies, aggregate_tables

    if form == "parquet" and output is None:
        raise UsageError("Parquet is no text to print: name a file with --output")
    if tables and studies:
        raise UsageError("--table and --study exclude one another")
    text: str | bytes
    if studies:
        text, damaged = aggregate_studies(context, studies, form)
    else:
        text, damaged = aggregate_tables(context, tables, form, extended=extended)
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


@main.command()
@places
@selection
@click.option("-o", "--output", type=FILE, help="[default: <preset>-records.tar.gz]")
def bundle(context: "Context", selected: Any, output: Path | None) -> None:
    """Pack the records that count into one file for others, without paths or names of this machine."""
    from repro.commands.bundle import write_bundle

    made = write_bundle(context, selected, output or Path(f"{context.preset.name}-records.tar.gz"))
    for reason in made.left_out:
        click.echo(f"left out: {reason}", err=True)
    click.echo(f"{made.packed} records packed", err=True)
    click.echo(made.file)
    if made.damaged:
        sys.exit(4)


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=EXISTING)
@click.option("--results", type=FOLDER, help="Folder of the records.  [default: the project's results/]")
@click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
@click.option("--dry-run", is_flag=True, help="Only say what would be taken.")
def merge(files: tuple[Path, ...], results: Path | None, data_dir: Path | None, dry_run: bool) -> None:
    """Take records in that `repro bundle` packed elsewhere: valid ones of today's recipes, under free names.

    Nothing that is here is replaced. Exit codes: 0 all taken or here already, 1 another recipe's or another
    record of the same run was left out, 4 something could not be believed.
    """
    from repro.commands.context import Context
    from repro.commands.merge import merge_bundles

    merged = merge_bundles(Context.open("paper", results, data_dir), list(files), dry_run)
    for line in merged.lines():
        click.echo(line, err=True)
    sys.exit(merged.exit_code)


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE.tex")
@click.option("--results", type=FOLDER, help="Folder of the records.  [default: the project's results/]")
@click.option("--data-dir", type=FOLDER, help="Folder of the data.  [default: $REPRO_DATA or data/]")
def check(file: Path, results: Path | None, data_dir: Path | None) -> None:
    """Compare the numbers that a LaTeX file quotes with the records, and name each that differs.

    Macros of `repro aggregate --format macros`, \\repronum{cell}{field}{number}, and lines that end in
    `% repro: cell field …` are compared, also in files that it inputs. Exit code 1 where one differs.
    """
    from repro.commands.check import check_file
    from repro.commands.context import Context

    found = check_file(file, lambda preset: Context.open(preset, results, data_dir))
    for problem in found.problems:
        click.echo(problem)
    for notice in found.notices:
        click.echo(f"repro: {notice}", err=True)
    click.echo(f"{found.compared} numbers compared, {len(found.problems)} problems", err=True)
    if found.problems:
        sys.exit(1)


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
@click.option("--lists", type=FOLDER, help="FaceScrub: folder of the lists that its publishers send.")
@click.option("--retry-dead", is_flag=True, help="FaceScrub: ask once more where no picture came before.")
@click.option("--allow-private-addresses", is_flag=True,
              help="FaceScrub: fetch from your own network too, as from a mirror there.")  # fmt: skip
def fetch(name: str, folder: Path, **options: Any) -> None:
    """Download SET (cifar100, …) and check it; resumes, and does nothing where it is there."""
    from repro.commands.data import fetch_set
    from repro.data import FetchOptions

    fetch_set(name, folder, FetchOptions(**options))


@data.command()
@data_places
@click.option("--from", "source", type=click.Path(exists=True, path_type=Path), metavar="PATH",
              help="Folder or archive of the source files, where not in the data folder.")  # fmt: skip
@click.option("--lists", type=FOLDER, help="FaceScrub: folder of the lists that its publishers send.")
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


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
