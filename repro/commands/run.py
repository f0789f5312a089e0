"""`repro run`: trains what is missing on every device found, through a scheduler."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from repro.cli.context import Context
from repro.commands.cluster import ClusterOptions, open_cluster
from repro.commands.live_curves import require_tensorboard
from repro.commands.packing import Packing, PerGpu, pack, tenants
from repro.errors import DataMissingError, SetupError, UsageError
from repro.manifest import read_manifest
from repro.record_state import RunState, assess_run
from repro.registry import Run, Selection
from repro.scheduling.budget import Budget, spend
from repro.scheduling.durations import parse_duration
from repro.scheduling.estimate import Estimator
from repro.scheduling.events import Event
from repro.scheduling.executors.base import Executor, Job
from repro.scheduling.executors.inline import InlineExecutor, StopRequest
from repro.scheduling.executors.local import LocalExecutor
from repro.scheduling.heartbeat import HeartbeatFile
from repro.scheduling.scheduler import Scheduler
from repro.scheduling.sentences import summarise
from repro.scheduling.slots import Slot
from repro.scheduling.survey import Survey
from repro.scheduling.train_command import StalePolicy, TrainCommand
from repro.scheduling.view import open_view


@dataclass(frozen=True)
class RunOptions:
    """How a sweep is run, beside what it trains."""

    gpus: str | None = None
    per_gpu: PerGpu = 1
    stale: StalePolicy = "keep"
    precision: str | None = None
    deterministic: bool = False
    switch_on: tuple[str, ...] = ()
    switch_off: tuple[str, ...] = ()
    checkpoint_interval: float | None = None
    executor: Literal["local", "inline", "slurm", "ray"] = "local"
    budget: str | None = None
    log: Literal["tensorboard"] | None = None
    cluster: ClusterOptions = field(default_factory=ClusterOptions)


def run_sweep(context: Context, selected: Selection, options: RunOptions) -> int:
    """Trains the selected runs that are not done and returns the exit code.

    A data set that is not there leaves out its runs with the reason, and so does a device that has not the
    memory; the others are trained, and the code is 3 if nothing worse happened.
    """
    began = time.monotonic()
    seconds = None if options.budget is None else parse_duration(options.budget)
    if options.log:
        require_tensorboard()
    # A wrong --gpus or a cluster out of reach is said before anything is read.
    remote = _cluster(context, options)
    if remote is None:
        pack(context, (), options.gpus, 1)
    runs = context.registry.select_runs(selected, context.preset)
    fingerprints = context.fingerprints(runs)
    missing = _missing_data(context, runs, fingerprints)
    for reason in missing.values():
        _say(f"repro: {reason}")
    runs = tuple(run for run in runs if run.cell.dataset not in missing)
    if not runs:
        return SetupError.exit_code

    survey = context.survey(runs)
    to_do = survey.to_do(options.stale)
    if remote is None:
        packing = pack(context, to_do, options.gpus, options.per_gpu, options.precision, probing=_say)
    else:
        packing = Packing(remote[1])
    slots = packing.slots
    for line in packing.lines():
        _say(line)
    survey.measured.take_probes(context.probes())
    states, unfit = _fitting(context, survey, slots, to_do, options.precision)
    to_do = [run for run in to_do if run not in unfit]
    if seconds is not None:
        bought = _spend(context, survey, slots, to_do, seconds)
        _say("\n".join(bought.lines()))
        states = _in_order(states, bought.runs)

    def examine(run: Run) -> RunState:
        config = context.registry.config(run, context.preset)
        fingerprint = fingerprints[run.cell.dataset]
        return assess_run(run, config, context.preset, context.project, fingerprint)

    command = TrainCommand(
        preset=context.preset.name,
        results=context.project.results,
        data=context.project.data,
        threads=context.preset.threads,
        stale=options.stale,
        precision=options.precision,
        deterministic=options.deterministic,
        switch_on=options.switch_on,
        switch_off=options.switch_off,
        log=options.log,
        checkpoint_interval=options.checkpoint_interval,
    )
    executor = remote[0] if remote else LocalExecutor()
    if options.executor == "inline":
        # One process has one torch: its threads and its memory are shared, so runs go one after another.
        slots = (replace(slots[0], co_tenants=0),)
        executor = InlineExecutor(_inline_worker(context, options))
    with (
        open_view(sys.stderr, context.project, context.preset.name, slots) as view,
        HeartbeatFile(context.project.schedulers(context.preset.name), slots, seconds) as heartbeat,
    ):

        def tell(event: Event) -> None:
            view(event)
            heartbeat(event)

        outcome = Scheduler(
            states,
            slots,
            executor,
            command,
            context.project,
            examine,
            tell,
            deadline=None if seconds is None else began + seconds,
            tenants=tenants(context, packing, to_do),
        ).run()
    _say(summarise(outcome))
    if outcome.exit_code == 0 and (missing or unfit):
        return SetupError.exit_code
    return outcome.exit_code


def _cluster(context: Context, options: RunOptions) -> tuple[Executor, tuple[Slot, ...]] | None:
    """The executor of a cluster and its slots; None where this machine trains."""
    if options.executor not in ("slurm", "ray"):
        if options.cluster != ClusterOptions():
            raise UsageError("--jobs and what follows it in --help need --executor slurm or --executor ray")
        return None
    if options.gpus is not None or options.per_gpu != 1:
        raise UsageError("--gpus and --per-gpu are of this machine; a job's share is --job-gpus or --gres")
    if options.budget is not None:
        raise UsageError("--budget counts this machine's time; a job of a cluster has --time")
    return open_cluster(options.executor, context, options.cluster)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _missing_data(
    context: Context, runs: Sequence[Run], fingerprints: dict[str, str | None]
) -> dict[str, str]:
    """Each data set that is not prepared, with the reason."""
    reasons = {}
    for run in runs:
        dataset = run.cell.dataset
        if dataset in reasons or fingerprints[dataset] is not None:
            continue
        try:
            read_manifest(context.project.data, dataset)
        except DataMissingError as error:
            count = sum(run.cell.dataset == dataset for run in runs)
            reasons[dataset] = f"{count} runs on {dataset} are left out: {error}"
    return reasons


def _fitting(
    context: Context, survey: Survey, slots: Sequence[Slot], to_do: Sequence[Run], precision: str | None
) -> tuple[tuple[RunState, ...], frozenset[Run]]:
    """The states without the runs to do that fit no slot's memory, and those runs; each reason is said."""
    estimator = replace(_estimator(context, survey, slots, {}), precision=precision)
    reasons = {run: reason for run in to_do if (reason := estimator.why_unfit(run))}
    for reason in dict.fromkeys(reasons.values()):
        count = sum(each == reason for each in reasons.values())
        _say(f"repro: {count} runs are left out: {reason}")
    states = tuple(state for state in survey.states if state.run not in reasons)
    return states, frozenset(reasons)


def _spend(
    context: Context, survey: Survey, slots: Sequence[Slot], to_do: Sequence[Run], seconds: float
) -> Budget:
    """What the budget buys of the runs to do."""
    estimator = _estimator(context, survey, slots, context.begun(to_do))
    return spend(seconds, to_do, estimator.estimate)


def _estimator(
    context: Context, survey: Survey, slots: Sequence[Slot], begun: Mapping[str, float]
) -> Estimator:
    return Estimator(
        context.registry, context.preset, slots, survey.sizes, survey.measured, survey.recorded, begun
    )


def _in_order(states: Sequence[RunState], first: Sequence[Run]) -> tuple[RunState, ...]:
    """The states with the runs of `first` in that order, behind all others (which are done)."""
    place = {run.id: number for number, run in enumerate(first)}
    return tuple(sorted(states, key=lambda state: place.get(state.run.id, -1)))


def _inline_worker(context: Context, options: RunOptions) -> Callable[[Job, Callable[[], StopRequest]], int]:
    from repro.commands.stop import Stop
    from repro.commands.train import train
    from repro.commands.worker import TrainOptions

    class Asked(Stop):
        """Reads what the scheduler asks instead of waiting for signals."""

        def __init__(self, asked: Callable[[], StopRequest]) -> None:
            super().__init__()
            self.asked = asked

        @property
        def now(self) -> bool:
            return self.asked() is StopRequest.TERMINATE

        @now.setter
        def now(self, value: bool) -> None:
            assert not value

        @property
        def after_run(self) -> bool:
            return self.asked() is not StopRequest.NONE

        @after_run.setter
        def after_run(self, value: bool) -> None:
            assert not value

    def work(job: Job, asked: Callable[[], StopRequest]) -> int:
        how = TrainOptions(
            device=job.slot.device,
            precision=options.precision,
            deterministic=options.deterministic,
            switch_on=options.switch_on,
            switch_off=options.switch_off,
            co_tenants=job.slot.co_tenants,
            redo_stale=options.stale == "rerun",
            log=options.log,
        )
        if options.checkpoint_interval is not None:
            how = replace(how, checkpoint_interval=options.checkpoint_interval)
        return train(job.runs, context.registry, context.preset, context.project, how, stop=Asked(asked))

    return work
