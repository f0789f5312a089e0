"""What trains: plan, run, stop, train."""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from repro.cli.cluster import ClusterOptions, cluster, ray, slurm
from repro.cli.options import (
    DETERMINISTIC,
    DEVICE,
    JSON,
    LOG,
    PRECISION,
    STALE,
    accelerations,
    command,
    completed,
    devices,
    expert,
    parse_per_gpu,
    places,
    selection,
    stoppable,
)
from repro.errors import DataMissingError, IntegrityError, SetupError, UsageError
from repro.system import keep_freed_memory

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.registry import Run, Selection
    from repro.scheduling.devices import Device
    from repro.scheduling.estimate import Estimator, StalePolicy
    from repro.scheduling.executor import Executor
    from repro.signals import Stop

PerGpu = int | Literal["auto"]


@command()
@places
@selection
@devices
@JSON
def plan(
    context: "Context",
    selected: "Selection",
    gpus: str | None,
    per_gpu: PerGpu,
    stale: "StalePolicy",
    budget: str | None,
    as_json: bool,
) -> None:
    """Show cells and runs: done, to do, missing data, and about how long the rest takes.

    Speeds are those of records made on this device, else a share of its roofline.
    """
    from repro.cli.reporting import seeds_advice
    from repro.gpus import parse_gpus
    from repro.record_state import damage
    from repro.scheduling.devices import find_devices
    from repro.scheduling.durations import parse_duration
    from repro.scheduling.plan import make_plan

    context.point_out_misnamed()
    seconds = None if budget is None else parse_duration(budget)
    here = find_devices(context.preset.threads, gpus=parse_gpus(gpus), per_gpu=per_gpu)
    survey = context.survey(context.registry.select_runs(selected, context.preset))
    to_do = survey.to_do(stale)
    fingerprints = context.fingerprints(to_do)
    missing = _missing_data(context, to_do, fingerprints)
    made = make_plan(
        survey,
        context.registry,
        context.preset,
        context.project,
        here,
        stale=stale,
        begun=context.begun(to_do),
        budget=seconds,
        without_data=list(missing),
        seeds=seeds_advice(context, {state.run.cell.table for state in survey.states}),
        grid=bool(selected.axes),
    )
    click.echo(made.to_json() if as_json else made.to_text())
    # A published set has a size before it is here; any other name may be mistyped.
    unknown = [name for name in missing if name not in survey.sizes]
    for name in unknown:
        _say(f"repro: {missing[name]}")
    if damage(survey.states):
        sys.exit(IntegrityError.exit_code)
    sys.exit(SetupError.exit_code if to_do and all(run.cell.dataset in unknown for run in to_do) else 0)


@dataclass(frozen=True)
class RunOptions:
    """How a sweep is run, beside what it trains."""

    gpus: str | None = None
    per_gpu: PerGpu = "auto"
    stale: "StalePolicy" = "keep"
    precision: str | None = None
    deterministic: bool = False
    switch_on: tuple[str, ...] = ()
    switch_off: tuple[str, ...] = ()
    checkpoint_interval: float | None = None
    executor: Literal["local", "slurm", "ray"] = "local"
    budget: str | None = None
    log: str | None = None
    cluster: ClusterOptions = field(default_factory=ClusterOptions)

    def for_workers(self) -> tuple[str, ...]:
        """The options of `repro train` that say the same."""
        words = ["--per-gpu", str(self.per_gpu)]
        if self.precision:
            words += ["--precision", self.precision]
        if self.deterministic:
            words += ["--deterministic"]
        for option, names in (("--with", self.switch_on), ("--without", self.switch_off)):
            words += [word for name in names for word in (option, name)]
        if self.log:
            words += ["--log", self.log]
        if self.checkpoint_interval is not None:
            words += ["--checkpoint-interval", f"{self.checkpoint_interval:g}"]
        return tuple(words)


@command()
@places
@selection
@devices
@PRECISION
@DETERMINISTIC
@accelerations
@expert("--checkpoint-interval", type=click.FloatRange(min=0), metavar="SECONDS",
        help="Least time between two.  [default: 60]")  # fmt: skip
@click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), default="local", show_default=True,
              help="Where workers run.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be trained; train nothing.")
@cluster
@LOG
def run(context: "Context", selected: "Selection", **options: Any) -> None:
    """Train what is missing, on every device found. Ctrl-C lets the runs in progress finish, a second one
    makes them write a checkpoint and stop; the same command resumes.
    """
    sys.exit(run_sweep(context, selected, RunOptions(**options)))


def run_sweep(context: "Context", selected: "Selection", options: RunOptions) -> int:
    """Trains the selected runs that are not done and returns the exit code.

    Runs whose data set is missing, or that fit no device's memory, are left out with the reason; the others
    are trained, and the code is 3 if nothing worse happened.
    """
    from repro.scheduling.durations import parse_duration
    from repro.scheduling.estimate import Estimator
    from repro.scheduling.supervisor import Supervisor, TrainCommand
    from repro.scheduling.view import open_view
    from repro.sweep import RunQueue, plan_sweep

    began = time.monotonic()
    seconds = None if options.budget is None else parse_duration(options.budget)
    if options.log:
        from repro.training.tensorboard import require_tensorboard

        require_tensorboard()
    # A wrong --gpus or a cluster out of reach is reported before any record is read.
    executor, devices = _executor(context, options)
    runs = context.registry.select_runs(selected, context.preset)
    context.point_out_misnamed()
    fingerprints = context.fingerprints(runs)
    missing = _missing_data(context, runs, fingerprints)
    for without_data in missing.values():
        _say(f"repro: {without_data}")
    runs = tuple(run for run in runs if run.cell.dataset not in missing)
    if not runs:
        return SetupError.exit_code
    survey = context.survey(runs)
    to_do = survey.to_do(options.stale)
    estimator = Estimator(
        context.registry,
        context.preset,
        devices,
        survey.sizes,
        survey.measured,
        survey.recorded,
        precision=options.precision,
    )
    unfit = {run: reason for run in to_do if (reason := estimator.why_unfit(run))}
    for reason in dict.fromkeys(unfit.values()):
        _say(f"repro: skipping {_count(sum(each == reason for each in unfit.values()))}: {reason}")
    to_do = [run for run in to_do if run not in unfit]
    before = len(runs) - len(to_do) - len(unfit)
    if seconds is not None:
        to_do = _spend(context, estimator, to_do, seconds)
    on_cpu = devices[0].kind == "cpu" and devices[0].host is None
    sweep = plan_sweep(
        to_do,
        context.registry,
        context.preset,
        context.project,
        fingerprints,
        workers=len(devices),
        workers_per_device=len(devices) if on_cpu else 1,
    )
    command = TrainCommand(
        context.preset.name,
        context.project.results,
        context.project.data,
        context.preset.threads,
        options.for_workers(),
    )
    with open_view(sys.stderr) as view:
        summary = Supervisor(
            sweep,
            RunQueue(sweep, context.registry, context.project),
            devices,
            executor,
            command,
            context.project,
            view,
            before=before,
            deadline=None if seconds is None else began + seconds,
        ).run()
    _say(summary.to_text())
    if summary.exit_code == 0 and (missing or unfit):
        return SetupError.exit_code
    return summary.exit_code


def _executor(context: "Context", options: RunOptions) -> "tuple[Executor, tuple[Device, ...]]":
    """Whatever starts the workers, and a device for each; UsageError for options of another executor."""
    from repro.gpus import parse_gpus
    from repro.scheduling.devices import find_devices
    from repro.scheduling.executor import LocalExecutor

    if options.executor == "local":
        if options.cluster != ClusterOptions():
            raise UsageError(
                "--jobs and the cluster options of --help need --executor slurm or --executor ray"
            )
        threads = context.preset.threads
        return LocalExecutor(), find_devices(threads, gpus=parse_gpus(options.gpus), per_gpu=options.per_gpu)
    if options.gpus is not None:
        raise UsageError("--gpus picks GPUs of this machine; a job's share is --job-gpus or --gres")
    if options.budget is not None:
        raise UsageError("--budget counts this machine's time; a cluster's job has --time")
    return (slurm if options.executor == "slurm" else ray)(context, options.cluster)


def _missing_data(
    context: "Context", runs: "Sequence[Run]", fingerprints: Mapping[str, str | None]
) -> dict[str, str]:
    """Each data set that is not prepared, with the reason."""
    from repro.manifest import read_manifest

    reasons = {}
    for run in runs:
        dataset = run.cell.dataset
        if dataset in reasons or fingerprints[dataset] is not None:
            continue
        try:
            read_manifest(context.project.data, dataset)
        except DataMissingError as error:
            count = sum(run.cell.dataset == dataset for run in runs)
            reasons[dataset] = f"skipping {_count(count)}: {error}"
    return reasons


def _spend(context: "Context", estimator: "Estimator", to_do: "Sequence[Run]", seconds: float) -> "list[Run]":
    """The runs to do in the order in which a budget buys most; says what it buys."""
    from repro.scheduling.plan import spend

    bought = spend(seconds, to_do, replace(estimator, begun=context.begun(to_do)).estimate)
    _say("\n".join(bought.lines()))
    return list(bought.runs)


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a log on a full disk is no reason to end a sweep
        click.echo(line, err=True)


@command()
@places
@click.option(
    "--now", is_flag=True, help="Write checkpoints and stop, instead of finishing runs in progress."
)
def stop(context: "Context", now: bool) -> None:
    """Ask every worker of the preset to stop, on whatever machine it is."""
    from repro.sweep import request_stop

    folder = context.project.sweeps(context.preset.name)
    sweeps = sorted(folder.glob("*.json")) if folder.is_dir() else []
    for sweep in sweeps:
        request_stop(sweep, "now" if now else "drain")
    count = f"{len(sweeps)} sweeps" if len(sweeps) != 1 else "1 sweep"
    click.echo(
        f"asked {count} to stop" if sweeps else f"no sweep is running in {folder.parents[1]}", err=True
    )


@command()
@stoppable
@places
@click.argument("run_ids", nargs=-1, metavar="RUN_ID…", shell_complete=completed("runs"))
@DEVICE
@expert("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: the preset's]")
@expert("--per-gpu", default="1", metavar="N|auto", callback=parse_per_gpu, show_default=True,
        help="Runs at once in this process.")  # fmt: skip
@STALE
@PRECISION
@DETERMINISTIC
@accelerations
@expert("--checkpoint-interval", type=click.FloatRange(min=0), default=60.0, metavar="SECONDS",
        help="Least time between two.  [default: 60]")  # fmt: skip
@LOG
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
            "repro train needs run ids, as in: repro train cifar100/resnet18/cross-entropy/seed0"
        )
    if sweep_file:
        # Before torch is imported: an array's late task has nothing to take, and is gone within a second.
        if not sweep_file.exists():
            _say(f"{sweep_file} is gone: its sweep has ended")
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
    asked = TrainOptions(**options)
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
            _say(f"{state.run.id}: already done")
    fingerprints = context.fingerprints(to_do)
    return plan_sweep(to_do, context.registry, context.preset, context.project, fingerprints)
