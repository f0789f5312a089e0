"""What trains: plan, run, train, probe."""

import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from repro.cli.options import (
    DETERMINISTIC,
    DEVICE,
    JSON,
    LOG,
    PRECISION,
    STALE,
    cluster,
    devices,
    places,
    selection,
    stoppable,
    techniques,
)
from repro.system import keep_freed_memory

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.commands.stop import Stop
    from repro.registry import Selection
    from repro.scheduling.train_command import StalePolicy


@click.command()
@places
@selection
@devices
@JSON
@click.option("--probe", is_flag=True, help="Measure, for seconds each, what no record knows the speed of.")
def plan(
    context: "Context",
    selected: "Selection",
    gpus: str | None,
    per_gpu: "int | Literal['auto']",
    stale: "StalePolicy",
    budget: str | None,
    probe: bool,
    as_json: bool,
) -> None:
    """Show cells and runs: done, stale, to do, and about how long the rest takes.

    Speeds are those of records made on this device, else of short probes, else of a table.
    """
    from repro.commands.packing import pack, probe_unknown
    from repro.scheduling.durations import parse_duration
    from repro.scheduling.plan import make_plan

    def say(line: str) -> None:
        click.echo(line, err=True)

    seconds = None if budget is None else parse_duration(budget)
    survey = context.survey(context.registry.select_runs(selected, context.preset))
    to_do = survey.to_do(stale)
    packing = pack(context, to_do, gpus, per_gpu, probing=say if probe else None)
    if probe and per_gpu != "auto":
        probe_unknown(context, to_do, packing.slots, survey.measured, say)
    survey.measured.take_probes(context.probes())
    made = make_plan(
        survey,
        context.registry,
        context.preset,
        context.project,
        packing.slots,
        stale=stale,
        begun=context.begun(to_do),
        budget=seconds,
        without_data=[name for name, known in context.fingerprints(to_do).items() if known is None],
        packing=packing.lines(),
    )
    click.echo(made.to_json() if as_json else made.to_text())


@click.command()
@places
@selection
@devices
@PRECISION
@DETERMINISTIC
@techniques
@click.option("--checkpoint-interval", type=click.FloatRange(min=0), metavar="SECONDS",
              help="At least so long between checkpoints.  [default: 60]")  # fmt: skip
@click.option("--executor", type=click.Choice(["local", "inline", "slurm", "ray"]), default="local",
              show_default=True,
              help="A process a group of runs; all in this one; a cluster's jobs.")  # fmt: skip
@cluster
@LOG
def run(context: "Context", selected: "Selection", **options: Any) -> None:
    """Train what is missing, on every device found.

    Finished runs are skipped. Ctrl-C lets the runs in progress finish; a second one makes them write a
    checkpoint and stops. Started again it goes on where it stopped.
    """
    from repro.commands.run import RunOptions, run_sweep

    sys.exit(run_sweep(context, selected, RunOptions(**options)))


@click.command()
@stoppable
@places
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN_ID…")
@DEVICE
@PRECISION
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the preset's]")
@DETERMINISTIC
@techniques
@click.option(
    "--co-tenants", type=click.IntRange(min=0), default=0, help="Other runs on this device; recorded."
)
@STALE
@click.option("--checkpoint-interval", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds.")  # fmt: skip
@LOG
def train(context: "Context", run_ids: tuple[str, ...], stale: str, stop: "Stop", **options: Any) -> None:
    """Train runs by id, one after another in this process.

    This is what every executor launches; pasting its line repeats a run. An id is
    dataset/network/loss[+axis=value]/seedK, as in cifar100/resnet18/scaled-bn-m1/seed0.
    """
    keep_freed_memory()  # before torch is imported
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


@click.command()
@stoppable
@places
@click.argument("run_id", metavar="RUN_ID")
@DEVICE
@PRECISION
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the preset's]")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
@click.option("--wait", is_flag=True, help="Say `ready`, then wait for a line before measuring.")
def probe(context: "Context", run_id: str, stop: "Stop", **options: Any) -> None:
    """Measure how fast a run would train here and the memory it takes, on generated data; writes nothing."""
    keep_freed_memory()  # before torch is imported
    from repro.commands.probe import ProbeOptions
    from repro.commands.probe import probe as measure

    click.echo(measure(context, run_id, ProbeOptions(**options), stop))
