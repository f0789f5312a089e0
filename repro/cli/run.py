"""What trains: plan, run, stop, train."""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import click

from repro.cli.cluster import ClusterOptions, cluster, ray, slurm
from repro.cli.options import (
    DETERMINISTIC,
    JSON,
    LOG,
    PRECISION,
    accelerations,
    command,
    devices,
    expert,
    places,
    say,
    selection,
    with_own_options,
)
from repro.errors import DataMissingError, IntegrityError, SetupError, UsageError

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.registry import Run, Selection
    from repro.scheduling.devices import Device
    from repro.scheduling.estimate import Estimator, StalePolicy
    from repro.scheduling.executor import Executor

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
    from repro.record_state import damage
    from repro.scheduling.devices import find_devices
    from repro.scheduling.durations import parse_duration
    from repro.scheduling.plan import make_plan

    context.point_out_misnamed()
    seconds = None if budget is None else parse_duration(budget)
    here = find_devices(context.preset.threads, gpus, per_gpu)
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
        missing_data=missing,
        seeds=seeds_advice(context, {s.run.cell.table for s in survey.states}) if to_do or as_json else {},
        grid=bool(selected.axes),
    )
    click.echo(made.to_json() if as_json else with_own_options(made.to_text()))
    # A published set has a size before it is here; any other name may be mistyped.
    unknown = [name for name in missing if name not in survey.sizes]
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
    dry_run: bool = False

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
    from repro.scheduling.plan import make_plan
    from repro.scheduling.supervisor import Supervisor, TrainCommand
    from repro.scheduling.view import open_view
    from repro.sweep import RunQueue, plan_sweep

    began = time.monotonic()
    seconds = None if options.budget is None else parse_duration(options.budget)
    if options.log:
        from repro.training.live_curves import find_logger

        find_logger(options.log, context.project.experiments)
    # A wrong --gpus or a cluster out of reach is reported before any record is read.
    executor, devices = _executor(context, options)
    runs = context.registry.select_runs(selected, context.preset)
    context.point_out_misnamed()
    fingerprints = context.fingerprints(runs)
    missing = _missing_data(context, runs, fingerprints)
    for dataset, how in missing.items():
        say(f"repro: skipping {_count(sum(run.cell.dataset == dataset for run in runs))}: {how}")
    runs = tuple(run for run in runs if run.cell.dataset not in missing)
    if not runs:
        return SetupError.exit_code
    survey = context.survey(runs)
    to_do = survey.to_do(options.stale)
    estimator = Estimator(context.registry, context.preset, devices, survey, precision=options.precision)
    unfit = {run: reason for run in to_do if (reason := estimator.why_unfit(run))}
    for reason in dict.fromkeys(unfit.values()):
        say(f"repro: skipping {_count(sum(each == reason for each in unfit.values()))}: {reason}")
    to_do = [run for run in to_do if run not in unfit]
    before = len(runs) - len(to_do) - len(unfit)
    if seconds is not None:
        to_do = _spend(context, estimator, to_do, seconds)
    if options.dry_run:
        plan = make_plan(
            survey, context.registry, context.preset, context.project, devices, stale=options.stale,
            begun=context.begun(to_do), grid=bool(selected.axes),
        )  # fmt: skip
        click.echo(with_own_options(plan.to_text()))
        click.echo(f"would train {_count(len(to_do))}, in this order:" if to_do else "would train nothing")
        for run in to_do:
            click.echo(f"  {run.id}")
        return SetupError.exit_code if missing or unfit else 0
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
    command = TrainCommand(context.project, context.preset, options.for_workers())
    with contextlib.closing(open_view(sys.stderr)) as view:
        summary = Supervisor(
            RunQueue(sweep, context.registry, context.project),
            devices,
            executor,
            command,
            view,
            before=before,
            deadline=None if seconds is None else began + seconds,
        ).run()
    say(summary.to_text())
    if summary.exit_code == 0 and (missing or unfit):
        return SetupError.exit_code
    return summary.exit_code


def _executor(context: "Context", options: RunOptions) -> "tuple[Executor, tuple[Device, ...]]":
    """Whatever starts the workers, and a device for each; UsageError for options of another executor."""
    from repro.scheduling.devices import find_devices
    from repro.scheduling.executor import LocalExecutor

    if options.executor == "local":
        if options.cluster != ClusterOptions():
            raise UsageError(
                "--jobs and the cluster options of --help need --executor slurm or --executor ray"
            )
        threads = context.preset.threads
        return LocalExecutor(), find_devices(threads, options.gpus, options.per_gpu)
    if options.gpus is not None:
        raise UsageError("--gpus picks GPUs of this machine; a job's share is --job-gpus or --gres")
    if options.budget is not None:
        raise UsageError("--budget counts this machine's time; a cluster's job has --time")
    return (slurm if options.executor == "slurm" else ray)(context, options.cluster)


def _missing_data(
    context: "Context", runs: "Sequence[Run]", fingerprints: Mapping[str, str | None]
) -> dict[str, str]:
    """Each data set that is missing, with the reason or the commands that get it."""
    from repro.data import fingerprint
    from repro.manifest import prepared_folder
    from repro.paths import PUBLISHED_SETS

    reasons = {}
    for run in runs:
        dataset = run.cell.dataset
        if dataset in reasons or fingerprints[dataset] is not None:
            continue
        try:
            config = context.registry.config(run, context.preset)
            fingerprint(config, context.project.data)
        except DataMissingError as error:
            known = dataset in PUBLISHED_SETS and config.recipe.data == "real"
            known = known and not prepared_folder(context.project.data, dataset).exists()
            how = f"the data set {dataset} is not prepared: run {context.data_commands(dataset)}"
            reasons[dataset] = how if known else str(error)
    return reasons


def _spend(context: "Context", estimator: "Estimator", to_do: "Sequence[Run]", seconds: float) -> "list[Run]":
    """The runs to do in the order in which a budget buys most; says what it buys."""
    from repro.scheduling.plan import spend

    bought = spend(seconds, to_do, replace(estimator, begun=context.begun(to_do)).estimate)
    say("\n".join(bought.lines()))
    return list(bought.runs)


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"
