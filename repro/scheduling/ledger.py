"""Where every run of a sweep stands: queued, with a worker, or ended, as the disk tells it.

The ledger decides what a worker's end means; `repro.scheduling.scheduler` starts and stops the workers.
"""

import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from repro.commit import RunBusyError, attempts_of, break_lock, is_held, run_lock, set_aside
from repro.errors import SetupError
from repro.paths import Project, RunPaths
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
    Requeued,
    Running,
    SetAside,
    Tick,
)
from repro.scheduling.executors.base import Job
from repro.scheduling.groups import group_runs
from repro.scheduling.interruption import Stage
from repro.scheduling.outcome import Failure, Outcome
from repro.scheduling.progress import read_progress
from repro.scheduling.pulse import Pulse
from repro.scheduling.slots import Slot
from repro.scheduling.train_command import TrainCommand
from repro.scheduling.troubles import Troubles
from repro.scheduling.verdict import SAME_ERRORS, Advice, ErrorStreak, normalise
from repro.scheduling.watch import RunWatch
from repro.standings import RunState, Standing

_DAMAGED = (Standing.CORRUPT, Standing.FOREIGN)


@dataclass
class Launch:
    """A worker under way: `watches` are its runs that have not ended, `told` what it was asked.

    `alone`: its run must have the device to itself. `ending` is why the scheduler itself ends the worker, at
    `kill_at` (of time.monotonic) the hard way. `oom_kills` is the kernel's count when it began.
    """

    job: Job
    watches: dict[str, RunWatch]
    alone: bool = False
    told: Stage = Stage.GO_ON
    began_a_run: bool = False
    ending: Cause | None = None
    kill_at: float | None = None
    oom_kills: int = 0
    pulse: Pulse = field(default_factory=Pulse)


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
    held: dict[str, RunWatch] = field(default_factory=dict)
    stopped_early: str | None = None
    _skipped: list[str] = field(default_factory=list)
    _done: list[str] = field(default_factory=list)
    _failed: dict[str, Failure] = field(default_factory=dict)
    _launches: dict[str, int] = field(default_factory=dict)
    _troubles: Troubles = field(default_factory=Troubles)
    _holders: dict[str, Pulse] = field(default_factory=dict)
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

    @property
    def has_work(self) -> bool:
        """Whether a run waits for a worker."""
        return bool(self.queue or self.alone)

    def next_group(self, empty_device: bool = True) -> tuple[tuple[Run, ...], bool]:
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

    def begin(self, job: Job, group: Sequence[Run], alone: bool = False) -> Launch:
        """Notes how things stand on disk before `job` is submitted."""
        for run in group:
            self._launches[run.id] = self._launches.get(run.id, 0) + 1
        watches = {run.id: RunWatch.begin(run, self._paths(run)) for run in group}
        return Launch(job, watches, alone, oom_kills=self.count_oom_kills())

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
                cause = cause_of_failure(text, on_gpu=launch.job.slot.device == "cuda")
                cause = self.devices.judge(launch.job.slot, cause)
                if cause.kind is Kind.ERROR:
                    log = traceback or launch.job.log
                    self._fail([watch.run], cause.text, log, launch.job.slot, is_setup_error(text))
                else:
                    self._again([watch], cause, launch.job, traceback)
                    if cause.kind is Kind.DEVICE_LOST:
                        launch.ending = cause

    def feel(self, launch: Launch, elapsed: float) -> bool:
        """Looks for a sign of life; whether the run in hand has reported any progress yet."""
        hand = _in_hand(launch)
        watch = launch.watches.get(hand.run) if hand.run else None
        try:
            written = launch.job.log.stat().st_size
        except FileNotFoundError:
            written = 0
        launch.pulse.feel((written, hand.run, watch and watch.signs()), elapsed)
        report = watch and read_progress(watch.paths.progress)
        return bool(report and report.attempt == hand.attempt)

    def close(self, launch: Launch, code: int) -> None:
        """A worker has ended: what its runs did not settle on disk, its exit code explains."""
        self.look(launch)
        rest: list[RunWatch] = []
        for watch in launch.watches.values():
            if is_held(watch.paths):
                self._leave(watch)
            else:
                rest.append(watch)
        if not rest:
            return
        job = launch.job
        cause = launch.ending
        if cause is None:
            kills = self.count_oom_kills() - launch.oom_kills
            on_gpu = job.slot.device == "cuda"
            cause = cause_of_end(code, job.log, launch.began_a_run, on_gpu, kills)
            cause = cause if launch.told else self.devices.judge(job.slot, cause)
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
        """Looks again, `elapsed` seconds later, at the runs that others held: done, free again, or held.

        A lock that another machine has held without a sign of life for `patience` seconds counts no more:
        a network file system may keep a dead machine's locks for ever.
        """
        for run, watch in list(self.held.items()):
            if self._done_meanwhile(watch.run):
                del self.held[run]
                continue
            if is_held(watch.paths):
                holder = self._holders.setdefault(run, Pulse())
                holder.feel(watch.signs(), elapsed)
                attempts = attempts_of(watch.paths)
                host = attempts[-1].host if attempts else None
                if host in (None, socket.gethostname()) or not holder.stopped(patience):
                    continue
                break_lock(watch.paths)
                self.tell(Notice(f"{run} is taken over: {host} holds it and has shown no sign of life"))
            del self.held[run]
            self._holders.pop(run, None)
            self.queue.append((watch.run,))

    def tick(self, launches: Sequence[Launch]) -> Tick:
        """How things stand."""
        running = tuple(_in_hand(launch) for launch in launches)
        busy = sum(entry.run is not None for entry in running)
        todo = len(self.states) - self._ended - busy - len(self.held)
        return Tick(running, len(self._done), len(self._failed), self._ended, todo, len(self.states))

    def outcome(self, interrupted: Literal["SIGINT", "SIGTERM"] | None, seconds: float) -> Outcome:
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

    def _leave(self, watch: RunWatch) -> None:
        self.held[watch.run.id] = watch
        self.tell(Elsewhere(watch.run.id))

    def _again(self, rest: Sequence[RunWatch], cause: Cause, job: Job, traceback: Path | None = None) -> None:
        """Queues runs singly; only those that were under way are charged, so it comes to an end."""
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
        if cause.kind in MEMORY:
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


def _in_hand(launch: Launch) -> Running:
    for run, watch in reversed(launch.watches.items()):
        if attempt := watch.latest_attempt():
            return Running(launch.job, run, attempt.number, began=True)
    return Running(launch.job, None, 0, launch.began_a_run)


def _last_words(cause: Cause) -> str:
    """What the note of an attempt says that could not say it itself."""
    word = {Kind.HUNG: "hung", Kind.DEVICE_LOST: "device lost"}.get(cause.kind, "killed")
    return "interrupted" if cause.kind is Kind.INTERRUPTED else f"{word}: {cause.text}"
