"""Where every run of a sweep stands: queued, with a worker, or ended, as the disk tells it.

The ledger decides what a worker's end means; `repro.scheduling.scheduler` starts and stops the workers.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from repro.commit import RunBusyError, run_lock, set_aside
from repro.errors import RunInterruptedError, SetupError
from repro.paths import Project, RunPaths
from repro.registry import Run
from repro.scheduling.events import (
    Elsewhere,
    Failed,
    Finished,
    Listener,
    Notice,
    Requeued,
    Running,
    SetAside,
    Tick,
)
from repro.scheduling.executors.base import Ending, Job
from repro.scheduling.groups import group_runs
from repro.scheduling.interruption import Stage
from repro.scheduling.outcome import Failure, Outcome
from repro.scheduling.slots import Slot
from repro.scheduling.train_command import TrainCommand
from repro.scheduling.verdict import (
    SAME_ERRORS,
    Advice,
    ErrorStreak,
    describe_end,
    is_hopeless,
    is_setup_error,
    last_line,
    merge_equal,
    normalise,
)
from repro.scheduling.watch import RunWatch, is_held
from repro.standings import RunState, Standing

FURTHER_LAUNCHES = 2
"""How often a run is launched again after its worker died under it."""

FURTHER_INTERRUPTED = 1
"""How often a run is launched again after somebody else interrupted its worker."""

FURTHER_WITHOUT_PROGRESS = 10
"""How often a run is launched again after ends that were not its fault, unless it got further in between."""

_DAMAGED = (Standing.CORRUPT, Standing.FOREIGN)


@dataclass
class Launch:
    """A worker under way: `watches` are its runs that have not ended, `told` what it was asked."""

    job: Job
    watches: dict[str, RunWatch]
    told: Stage = Stage.GO_ON
    began_a_run: bool = False


@dataclass
class _Setbacks:
    """Ends of a run's workers that were not its fault, since it last got further than `step`."""

    step: int = -1
    count: int = 0

    def add(self, step: int) -> None:
        """One more, of an attempt that had begun at `step`."""
        self.count = 1 if step > self.step else self.count + 1
        self.step = max(step, self.step)


@dataclass
class Ledger:
    """The runs of one sweep; every method tells the listener what it finds."""

    states: Sequence[RunState]
    command: TrainCommand
    project: Project
    examine: Callable[[Run], RunState]
    tell: Listener
    queue: deque[tuple[Run, ...]] = field(default_factory=deque)
    held: dict[str, Run] = field(default_factory=dict)
    stopped_early: str | None = None
    _skipped: list[str] = field(default_factory=list)
    _done: list[str] = field(default_factory=list)
    _failed: dict[str, Failure] = field(default_factory=dict)
    _launches: dict[str, int] = field(default_factory=dict)
    _troubles: dict[str, list[str]] = field(default_factory=dict)
    _setbacks: dict[str, _Setbacks] = field(default_factory=dict)
    _streak: ErrorStreak = field(default_factory=ErrorStreak)
    _left_datasets: set[str] = field(default_factory=set)

    def fill(self, slots: int) -> None:
        """Queues every run without a record that counts, in groups for `slots` workers.

        Damaged records are set aside first; SetupError if the results folder cannot be written.
        """
        runs: list[Run] = []
        for state in self.states:
            if self._counts(state):
                self._skipped.append(state.run.id)
                continue
            if state.standing in _DAMAGED:
                self._set_aside(state.run)
            runs.append(state.run)
        self.queue.extend(group_runs(runs, slots))

    def queued(self) -> frozenset[str]:
        """The ids of the runs in the queue."""
        return frozenset(run.id for group in self.queue for run in group)

    def adopt(self, job: Job) -> Launch:
        """A worker that an earlier scheduler started: its runs leave the queue.

        An attempt in progress is taken for this worker's.
        """
        theirs = [run for group in self.queue for run in group if run.id in job.runs]
        groups = (tuple(run for run in group if run.id not in job.runs) for group in self.queue)
        self.queue = deque(group for group in groups if group)
        for run in theirs:
            self._launches[run.id] = self._launches.get(run.id, 0) + 1
        return Launch(job, {run.id: RunWatch.resume(run, self._paths(run)) for run in theirs})

    def next_group(self) -> tuple[Run, ...]:
        """The next runs for a worker, without those that another process has trained; empty: no more."""
        while self.queue:
            group = tuple(run for run in self.queue.popleft() if not self._done_meanwhile(run))
            if group:
                return group
        return ()

    def begin(self, job: Job, group: Sequence[Run]) -> Launch:
        """Notes how things stand on disk before `job` is submitted."""
        for run in group:
            self._launches[run.id] = self._launches.get(run.id, 0) + 1
        return Launch(job, {run.id: RunWatch.begin(run, self._paths(run)) for run in group})

    def look(self, launch: Launch) -> None:
        """Settles the runs of a worker that have a record or a failed attempt by now."""
        for run, watch in list(launch.watches.items()):
            launch.began_a_run = launch.began_a_run or watch.latest_attempt() is not None
            if watch.record_is_new():
                state = self.examine(watch.run)
                # Written just now, it counts even if the code was edited meanwhile.
                if state.counts:
                    launch.began_a_run = True
                    del launch.watches[run]
                    self._finish(state)
                    continue
            if failure := watch.failure():
                cause, traceback = failure
                del launch.watches[run]
                log = traceback or launch.job.log
                self._fail([watch.run], cause, log, launch.job.slot, is_setup_error(cause))

    def close(self, launch: Launch, code: int, ending: Ending | None = None) -> None:
        """A worker has ended: what its runs did not settle on disk, its exit code or `ending` explains."""
        self.look(launch)
        rest: list[RunWatch] = []
        for watch in launch.watches.values():
            if is_held(watch.paths):
                self.held[watch.run.id] = watch.run
                self.tell(Elsewhere(watch.run.id))
            else:
                rest.append(watch)
        job = launch.job
        if not rest or launch.told:
            return
        if ending and ending.blameless:
            self._go_on(rest, ending, job)
        elif is_hopeless(code, launch.began_a_run):
            cause = ending.cause if ending else last_line(job.log) or describe_end(code, job.log)
            runs = [watch.run for watch in rest]
            self._fail(runs, cause, job.log, job.slot, setup=code == SetupError.exit_code)
        else:
            self._retry(rest, code, job, ending.cause if ending else describe_end(code, job.log))

    def reclaim(self) -> None:
        """Looks again at the runs that others held: done, free again and queued, or still held."""
        for run in list(self.held.values()):
            if self._done_meanwhile(run):
                del self.held[run.id]
            elif not is_held(self._paths(run)):
                del self.held[run.id]
                self.queue.append((run,))

    def tick(self, launches: Sequence[Launch]) -> Tick:
        """How things stand."""
        running = tuple(_in_hand(launch) for launch in launches)
        busy = sum(entry.run is not None for entry in running)
        todo = len(self.states) - self._ended - busy - len(self.held)
        return Tick(running, len(self._done), len(self._failed), self._ended, todo, len(self.states))

    def outcome(self, interrupted: Literal["SIGINT", "SIGTERM", "budget"] | None, seconds: float) -> Outcome:
        """What it all came to."""
        known = {*self._skipped, *self._done, *self._failed, *self.held}
        return Outcome(
            done=tuple(self._done),
            skipped=tuple(self._skipped),
            failed=tuple(self._failed.values()),
            left=tuple(self.held),
            unfinished=tuple(state.run.id for state in self.states if state.run.id not in known),
            stopped_early=self.stopped_early,
            interrupted=interrupted,
            seconds=seconds,
        )

    @property
    def _ended(self) -> int:
        return len(self._skipped) + len(self._done) + len(self._failed)

    def _counts(self, state: RunState) -> bool:
        older = state.standing is Standing.OLDER_CODE
        return state.counts and not (older and self.command.stale == "rerun")

    def _set_aside(self, run: Run) -> None:
        paths = self._paths(run)
        try:
            with run_lock(paths):
                # Under the lock it is read again: another scheduler may have been here first.
                state = self.examine(run)
                if state.standing not in _DAMAGED:
                    return
                moved = set_aside(paths.record, paths.quarantine, state.reason)
        except RunBusyError:
            self.tell(Elsewhere(run.id))
            return
        self.tell(SetAside(run.id, moved, state.reason))

    def _done_meanwhile(self, run: Run) -> bool:
        if not self._paths(run).record.exists():
            return False
        state = self.examine(run)
        if not self._counts(state):
            return False
        self._finish(state)
        return True

    def _finish(self, state: RunState) -> None:
        record = state.record
        assert record is not None
        self._streak.reset()
        self._done.append(state.run.id)
        seconds = sum(epoch.seconds for epoch in record.curve)
        accuracy = record.result.accuracy
        self.tell(Finished(state.run.id, accuracy, seconds, self._ended, len(self.states)))

    def _go_on(self, rest: Sequence[RunWatch], ending: Ending, job: Job) -> None:
        """Queues runs again as they were; what a run met without its fault counts until it gets further."""
        for watch in [watch for watch in rest if watch.latest_attempt()] or rest:
            attempt = watch.latest_attempt()
            setbacks = self._setbacks.setdefault(watch.run.id, _Setbacks())
            setbacks.add(attempt.resumed_at_step if attempt else -1)
        again: list[Run] = []
        for watch in rest:
            setbacks = self._setbacks.get(watch.run.id, _Setbacks())
            if setbacks.count > FURTHER_WITHOUT_PROGRESS:
                cause = f"{ending.cause}; it got no further in {setbacks.count} attempts"
                self._fail([watch.run], cause, job.log, job.slot)
            else:
                again.append(watch.run)
        if again and not self.stopped_early:
            self.tell(Requeued(tuple(run.id for run in again), ending.cause))
            self.queue.appendleft(tuple(again))

    def _retry(self, rest: Sequence[RunWatch], code: int, job: Job, cause: str) -> None:
        """Queues runs singly; only those that were under way are charged, so it comes to an end."""
        charged = [watch for watch in rest if watch.latest_attempt()] or rest
        for watch in charged:
            self._troubles.setdefault(watch.run.id, []).append(cause)
        again: list[Run] = []
        for watch in rest:
            troubles = self._troubles.get(watch.run.id, [])
            interrupted = troubles.count(cause) if code == RunInterruptedError.exit_code else 0
            if len(troubles) > FURTHER_LAUNCHES or interrupted > FURTHER_INTERRUPTED:
                self._fail([watch.run], "; then ".join(merge_equal(troubles)), job.log, job.slot)
            else:
                again.append(watch.run)
        if again and not self.stopped_early:
            self.tell(Requeued(tuple(run.id for run in again), cause))
        self.queue.extendleft((run,) for run in reversed(again))

    def _fail(self, runs: Sequence[Run], cause: str, log: Path, slot: Slot, setup: bool = False) -> None:
        """Gives runs up for one cause, which counts once however many runs it took."""
        for run in runs:
            failure = Failure(
                run=run.id,
                cause=cause,
                launches=self._launches.get(run.id, 0),
                log=log,
                command=self.command.line([run.id], slot),
                setup=setup,
            )
            self._failed[run.id] = failure
            self.tell(Failed(failure, self._ended, len(self.states)))
        dataset = runs[0].cell.dataset
        if dataset in self._left_datasets or self.stopped_early:
            return
        advice = self._streak.add(normalise(cause, runs[0].id), dataset, setup)
        others = any(group[0].cell.dataset != dataset for group in self.queue)
        if advice is Advice.LEAVE_DATASET and others:
            self._left_datasets.add(dataset)
            self.queue = deque(group for group in self.queue if group[0].cell.dataset != dataset)
            self.tell(Notice(f"{dataset} is left out, going on with the other data sets: {cause}"))
        elif advice is not Advice.GO_ON:
            self.stopped_early = f"the same error {SAME_ERRORS} times in a row: {cause}"
            self.tell(Notice(f"stopping early: {self.stopped_early}"))

    def _paths(self, run: Run) -> RunPaths:
        return self.project.run(self.command.preset, run.id)


def _in_hand(launch: Launch) -> Running:
    for run, watch in reversed(launch.watches.items()):
        if attempt := watch.latest_attempt():
            return Running(launch.job, run, attempt.number, began=True)
    return Running(launch.job, None, 0, launch.began_a_run)
