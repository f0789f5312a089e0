"""Where every run of a sweep stands: queued, with a worker, or ended, as the disk tells it.

The ledger decides what a worker's end means; `repro.scheduling.scheduler` starts and stops the workers.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repro.commit import RunBusyError, is_held, is_reported_elsewhere, quarantine_damaged, run_lock
from repro.errors import NoSpaceError, SetupError
from repro.paths import Project, RunPaths
from repro.record_state import RecordState, RunState
from repro.registry import Run
from repro.scheduling.causes import (
    MEMORY,
    Cause,
    Kind,
    cause_of_end,
    cause_of_failure,
    is_setup_error,
    oom_kills,
)
from repro.scheduling.devices import Devices
from repro.scheduling.events import (
    Elsewhere,
    Failed,
    Finished,
    Listener,
    Notice,
    Quarantined,
    Requeued,
    Tick,
)
from repro.scheduling.executors.base import Ending, Job
from repro.scheduling.groups import group_runs
from repro.scheduling.held import HeldRuns
from repro.scheduling.launch import Launch
from repro.scheduling.outcome import Failure, Interrupter, Outcome
from repro.scheduling.slots import Slot
from repro.scheduling.train_command import TrainCommand
from repro.scheduling.troubles import Troubles
from repro.scheduling.verdict import SAME_ERRORS, Advice, ErrorStreak, normalise
from repro.scheduling.watch import RunWatch

_DAMAGED = (RecordState.CORRUPT, RecordState.MISPLACED)


@dataclass
class Ledger:
    """The runs of one sweep; every method tells the listener what it finds."""

    states: Sequence[RunState]
    command: TrainCommand
    project: Project
    examine: Callable[[Run], RunState]
    tell: Listener
    devices: Devices
    count_oom_kills: Callable[[], int] = oom_kills
    queue: deque[tuple[Run, ...]] = field(default_factory=deque)
    alone: deque[Run] = field(default_factory=deque)
    held: HeldRuns = field(init=False)
    stopped_early: str | None = None
    _skipped: list[str] = field(default_factory=list)
    _done: list[str] = field(default_factory=list)
    _failed: dict[str, Failure] = field(default_factory=dict)
    _launches: dict[str, int] = field(default_factory=dict)
    _troubles: Troubles = field(default_factory=Troubles)
    _streak: ErrorStreak = field(default_factory=ErrorStreak)
    _left_datasets: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.held = HeldRuns(self.tell)

    def fill(self, slots: int) -> None:
        """Queues every run without a record that counts, in groups for `slots` workers.

        Damaged records are quarantined first; SetupError if the results folder cannot be written.
        """
        runs: list[Run] = []
        for state in self.states:
            if self._counts(state):
                self._skipped.append(state.run.id)
                continue
            if state.record_state in _DAMAGED:
                self._quarantine(state.run)
            runs.append(state.run)
        self.queue.extend(group_runs(runs, slots))

    @property
    def has_work(self) -> bool:
        """Whether a run waits for a worker."""
        return bool(self.queue or self.alone)

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
        watches = {run.id: RunWatch.resume(run, self._paths(run)) for run in theirs}
        return Launch(job, watches, self.count_oom_kills())

    def next_run(self, empty_device: bool) -> Run | None:
        """The first run of the next group, as far as can be told without reading records."""
        if self.alone and empty_device:
            return self.alone[0]
        return self.queue[0][0] if self.queue else None

    def next_group(self, empty_device: bool) -> tuple[tuple[Run, ...], bool]:
        """The next runs for a worker, and whether they must be alone: such go first on an empty device.

        Runs that another process has trained meanwhile are passed over; no runs: there are no more.
        """
        while self.alone and empty_device:
            run = self.alone.popleft()
            if not self._done_meanwhile(run):
                return (run,), True
        while self.queue:
            group = tuple(run for run in self.queue.popleft() if not self._done_meanwhile(run))
            if group:
                return group, False
        return (), False

    def begin(self, job: Job, group: Sequence[Run], alone: bool) -> Launch:
        """Notes how things stand on disk before `job` is submitted."""
        for run in group:
            self._launches[run.id] = self._launches.get(run.id, 0) + 1
        watches = {run.id: RunWatch.begin(run, self._paths(run)) for run in group}
        return Launch(job, watches, self.count_oom_kills(), alone)

    def take_back(self, launch: Launch) -> None:
        """A worker could not be started: its runs are the next to be."""
        group = tuple(watch.run for watch in launch.watches.values())
        for run in group:
            self._launches[run.id] -= 1
        if launch.alone:
            self.alone.extendleft(reversed(group))
        else:
            self.queue.appendleft(group)

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
                text, traceback = failure
                del launch.watches[run]
                cause = cause_of_failure(text, launch.on_gpu)
                cause = self.devices.judge(launch.job.slot, cause)
                if cause.kind is Kind.ERROR:
                    log = traceback or launch.job.log
                    self._fail([watch.run], cause.text, log, launch.job.slot, is_setup_error(text))
                else:
                    self._again([watch], cause, launch.job, traceback)
                    if cause.kind is Kind.DEVICE_LOST:
                        launch.ending = cause

    def close(self, launch: Launch, code: int, ending: Ending | None = None) -> None:
        """A worker has ended: what its runs did not settle on disk, its exit code or `ending` explains."""
        self.look(launch)
        rest: list[RunWatch] = []
        for watch in launch.watches.values():
            # An attempt of this worker is not another machine's, however fresh its last report.
            elsewhere = watch.latest_attempt() is None and is_reported_elsewhere(watch.paths)
            if elsewhere or is_held(watch.paths):
                self.held.add(watch)
            else:
                rest.append(watch)
        if not rest:
            return
        job = launch.job
        cause = launch.ending or self._cause(launch, code, ending)
        for watch in rest:
            watch.note_death(_last_words(cause))
        if launch.told and launch.ending is None:
            return
        if cause.kind is Kind.ERROR:
            runs = [watch.run for watch in rest]
            self._fail(runs, cause.text, job.log, job.slot, setup=code == SetupError.exit_code)
        else:
            self._again(rest, cause, job)

    def reclaim(self, elapsed: float, patience: float) -> None:
        """Queues those runs that others held and hold no more; see `HeldRuns.freed`."""
        self.queue.extend((run,) for run in self.held.freed(elapsed, patience, self._done_meanwhile))

    def tick(self, launches: Sequence[Launch]) -> Tick:
        """How things stand."""
        running = tuple(launch.in_hand() for launch in launches)
        busy = sum(entry.run is not None for entry in running)
        todo = len(self.states) - self._ended - busy - len(self.held)
        return Tick(running, len(self._done), len(self._failed), self._ended, todo, len(self.states))

    def outcome(self, interrupted: Interrupter | None, seconds: float) -> Outcome:
        """What it all came to."""
        known = {*self._skipped, *self._done, *self._failed, *self.held}
        return Outcome(
            done=tuple(self._done),
            skipped=tuple(self._skipped),
            failed=tuple(self._failed.values()),
            left=tuple(self.held),
            unfinished=tuple(state.run.id for state in self.states if state.run.id not in known),
            stopped_early=self.stopped_early,
            no_device=self.devices.none_left,
            interrupted=interrupted,
            seconds=seconds,
        )

    @property
    def _ended(self) -> int:
        return len(self._skipped) + len(self._done) + len(self._failed)

    def _counts(self, state: RunState) -> bool:
        older = state.record_state is RecordState.OLDER_CODE
        return state.counts and not (older and self.command.stale == "rerun")

    def _quarantine(self, run: Run) -> None:
        paths = self._paths(run)
        try:
            with run_lock(paths):
                # Under the lock it is read again: another scheduler may have been here first.
                state = self.examine(run)
                if state.record_state not in _DAMAGED:
                    return
                moved = quarantine_damaged(paths, run.id, self.command.preset)
        except RunBusyError:
            self.tell(Elsewhere(run.id))
            return
        except NoSpaceError:
            # The run's worker does it as soon as there is room.
            return
        if moved:
            self.tell(Quarantined(run.id, moved, state.reason))

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

    def _cause(self, launch: Launch, code: int, ending: Ending | None) -> Cause:
        """Why a worker ended that was not ended by the scheduler itself."""
        kills = self.count_oom_kills() - launch.oom_kills if launch.here else 0
        cause = cause_of_end(code, launch.job.log, launch.began_a_run, launch.on_gpu, kills)
        if ending:
            return Cause(Kind.BLAMELESS if ending.blameless else cause.kind, ending.cause)
        return cause if launch.told else self.devices.judge(launch.job.slot, cause)

    def _again(self, rest: Sequence[RunWatch], cause: Cause, job: Job, traceback: Path | None = None) -> None:
        """Queues runs again, singly unless they are beyond suspicion.

        Only those that were under way are charged, so it comes to an end.
        """
        attempts = {watch.run.id: watch.latest_attempt() for watch in rest}
        charged = [watch for watch in rest if attempts[watch.run.id]] or rest
        again: list[Run] = []
        for watch in rest:
            attempt = attempts[watch.run.id]
            started_at = attempt.resumed_at_step if attempt else None
            if watch not in charged or self._troubles.add(watch.run.id, cause, started_at):
                again.append(watch.run)
            else:
                self._fail([watch.run], self._troubles.describe(watch.run.id), traceback or job.log, job.slot)
        if cause.kind is Kind.DEVICE_LOST:
            self._set_device_aside(job.slot, cause.text)
        if again and not self.stopped_early:
            self.tell(Requeued(tuple(run.id for run in again), cause.text))
        if cause.kind is Kind.BLAMELESS and again:
            self.queue.appendleft(tuple(again))
            return
        if cause.kind in MEMORY and job.slot.host is None:
            if limit := self.devices.lower(job.slot):
                self.tell(Notice(f"memory ran out: from now on {limit} at once on {job.slot.name}"))
            crowded = [watch.run for watch in charged if watch.run in again]
            self.alone.extend(crowded)
            again = [run for run in again if run not in crowded]
        self.queue.extendleft((run,) for run in reversed(again))

    def _set_device_aside(self, slot: Slot, reason: str) -> None:
        if self.devices.set_aside(slot, reason):
            self.tell(Notice(f"{slot.label} ({slot.name}) is set aside, its runs go elsewhere: {reason}"))
        if self.devices.none_left and not self.stopped_early:
            self.stopped_early = f"no device is left: {reason}"

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
        waiting = [*(group[0] for group in self.queue), *self.alone]
        others = any(run.cell.dataset != dataset for run in waiting)
        if advice is Advice.LEAVE_DATASET and others:
            self._left_datasets.add(dataset)
            self.queue = deque(group for group in self.queue if group[0].cell.dataset != dataset)
            self.alone = deque(run for run in self.alone if run.cell.dataset != dataset)
            self.tell(Notice(f"{dataset} is left out, going on with the other data sets: {cause}"))
        elif advice is not Advice.GO_ON:
            self.stopped_early = f"the same error {SAME_ERRORS} times in a row: {cause}"
            self.tell(Notice(f"stopping early: {self.stopped_early}"))

    def _paths(self, run: Run) -> RunPaths:
        return self.project.run(self.command.preset, run.id)


def _last_words(cause: Cause) -> str:
    """What the note of an attempt says that could not say it itself."""
    if cause.kind is Kind.INTERRUPTED:
        return "interrupted"
    words = {Kind.HUNG: "hung", Kind.DEVICE_LOST: "device lost", Kind.BLAMELESS: "interrupted"}
    return f"{words.get(cause.kind, 'killed')}: {cause.text}"
