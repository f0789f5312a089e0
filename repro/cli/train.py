"""One process of a sweep: train, and the request that ends them all: stop."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import (
    DEVICE,
    STALE,
    command,
    completed,
    expert,
    parse_per_gpu,
    places,
    say,
    stoppable,
    training,
)
from repro.errors import SetupError, UsageError
from repro.system import keep_freed_memory

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.scheduling.estimate import StalePolicy
    from repro.signals import Stop


@command()
@stoppable
@places
@click.argument("run_ids", nargs=-1, metavar="RUN_ID…", shell_complete=completed("runs"))
@DEVICE
@expert("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: the preset's]")
@expert("--per-gpu", default="1", metavar="N|auto", callback=parse_per_gpu, show_default=True,
        help="Runs at once in this process.")  # fmt: skip
@STALE
@training
@click.option("--sweep", "sweep_file", type=click.Path(path_type=Path), hidden=True)
@click.option("--job", default="", hidden=True)
@click.option("--device-lock", hidden=True)
def train(
    context: "Context",
    run_ids: tuple[str, ...],
    stale: "StalePolicy",
    stop: "Stop",
    sweep_file: Path | None,
    job: str,
    device_lock: str | None,
    **options: Any,
) -> None:
    """Train runs by id in this process.

    This is what every executor starts; pasting its line repeats a run. An id is
    dataset/network/loss[+name=value]/seedK, as in cifar100/resnet18/cross-entropy/seed0.
    """
    from repro.sweep import RunQueue, Sweep

    if bool(run_ids) == bool(sweep_file):
        raise UsageError(
            "repro train needs run ids, as in: `repro train cifar100/resnet18/cross-entropy/seed0`"
        )
    if sweep_file:
        # Before torch is imported: an array's late task has nothing to take, and is gone within a second.
        if not sweep_file.exists():
            say(f"{sweep_file} is gone: its sweep has ended")
            return
        sweep = Sweep.read(sweep_file)
        queue = RunQueue(sweep, context.registry, context.project)
        with contextlib.suppress(SetupError):  # a disk that takes no notes now may take them later
            queue.close_dead_attempts()
        locked = queue.locked()
        if all(entry.run in locked for entry in queue.takeable()):
            return
    else:
        sweep = _sweep_of(context, run_ids, stale)
        if not sweep.runs:
            return
    keep_freed_memory()  # before torch is imported
    from repro.training.process import TrainOptions
    from repro.training.worker import Worker

    lock = context.project.device_lock(context.preset.name, device_lock) if device_lock else None
    asked = TrainOptions(**{name: value for name, value in options.items() if value is not None})
    worker = Worker(
        sweep, context.registry, context.preset, context.project, asked, stop, sweep_file, job, lock
    )
    code = worker.run()
    if stop.reason == "SIGUSR1" and worker.heartbeat.note.stepped and sweep_file:
        from repro.scheduling.slurm import requeue_this_task

        requeue_this_task()
    if not sweep_file and code == 0 and worker.queue.impossible:
        raise SetupError(next(iter(worker.queue.impossible.values())))
    sys.exit(code)


def _sweep_of(context: "Context", run_ids: Sequence[str], stale: "StalePolicy") -> Any:
    """A sweep of the given runs that are not done, which is never written."""
    from repro.scheduling.estimate import is_to_do
    from repro.sweep import plan_sweep

    runs = [context.registry.parse(run_id) for run_id in run_ids]
    to_do = []
    for state in context.states(runs, whole=False):
        if is_to_do(state, stale):
            to_do.append(state.run)
        else:
            say(f"{state.run.id}: already done")
    fingerprints = context.fingerprints(to_do)
    return plan_sweep(to_do, context.registry, context.preset, context.project, fingerprints)


@command()
@places
@click.option(
    "--now", is_flag=True, help="Write checkpoints and stop, instead of finishing runs in progress."
)
def stop(context: "Context", now: bool) -> None:
    """Ask every worker of the preset to stop, on whatever machine it is."""
    from repro.errors import counted
    from repro.sweep import request_stop

    folder = context.project.sweeps(context.preset.name)
    sweeps = sorted(folder.glob("*.json"))
    for sweep in sweeps:
        request_stop(sweep, "now" if now else "drain")
    asked = f"asked {counted(len(sweeps), 'sweep')} to stop"
    say(asked if sweeps else f"no sweep is running in {folder.parents[1]}")
