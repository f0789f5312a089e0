"""What trains and watches: plan, run, status, train, probe, bench."""

import sys
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import LOG, cluster, devices, places, selection, stoppable, techniques
from repro.system import keep_freed_memory

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.commands.stop import Stop


@click.command()
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


@click.command()
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


@click.command()
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
@click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda if there is one]")
@click.option(
    "--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Force one.  [default: by device]"
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the preset's]")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
@click.option("--wait", is_flag=True, help="Say `ready`, then wait for a line before measuring.")
def probe(context: "Context", run_id: str, stop: "Stop", **options: Any) -> None:
    """Measure how fast a run would train here and the memory it takes, on generated data; writes nothing."""
    keep_freed_memory()  # before torch is imported
    from repro.commands.probe import ProbeOptions
    from repro.commands.probe import probe as measure

    click.echo(measure(context, run_id, ProbeOptions(**options), stop))
