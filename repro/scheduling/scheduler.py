"""Trains what is not done yet: a queue of groups, one worker a slot, and the disk as the only witness.

    states → skip what counts → groups → free slot → worker → records and attempts on disk → verdict

A run ends as done, failed, left to another process, or unfinished. Nothing a worker says is believed
before its record is there, and no worker's end stops the others.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

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
    Started,
    Tick,
)
from repro.scheduling.executors.base import Executor, Job
from repro.scheduling.groups import group_runs
from repro.scheduling.interruption import Interruption, Stage
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
    normalise,
)
from repro.scheduling.watch import RunWatch, is_held
from repro.standings import RunState, Standing

FURTHER_LAUNCHES = 2
"""How often a run is launched again after its worker died under it."""

FURTHER_INTERRUPTED = 1
"""How often a run is launched again after somebody else interrupted its worker."""


@dataclass(frozen=True)
class Pace:
    """Seconds between two polls, two looks at the disk, until SIGKILL, and of waiting for others' locks."""

    poll: float = 0.1
    look: float = 0.5
    checkpoint: float = 60.0
    held: float = 2.0


DEFAULT_PACE = Pace()


@dataclass
class _Launch:
    """A worker under way; `watches` are its runs that have not ended yet."""

    job: Job
    watches: dict[str, RunWatch]
    told: Stage = Stage.GO_ON
    began_a_run: bool = False


@dataclass
class _Tally:
    """What is known of the runs so far, by id."""

    skipped: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    held: dict[str, Run] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)
    troubles: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        return len(self.skipped) + len(self.done) + len(self.failed)


class Scheduler:
    """One sweep over `states`, in their order; `run()` does it once.

    `examine` reads a run's standing anew (`repro.standings.assess_run`), `listener` hears of every event.
    Under the `stale` policy "rerun" of `command`, records made by older code are trained again too.
    """

    def __init__(
        self,
        states: Sequence[RunState],
        slots: Sequence[Slot],
        executor: Executor,
        command: TrainCommand,
        project: Project,
        examine: Callable[[Run], RunState],
        listener: Listener = lambda event: None,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        assert slots, "find_slots gives at least one"
        self._states = states
        self._slots = tuple(slots)
        self._executor = executor
        self._command = command
        self._project = project
        self._examine = examine
        self._tell = listener
        self._pace = pace
        self._queue: deque[tuple[Run, ...]] = deque()
        self._launches: dict[int, _Launch] = {}
        self._jobs = 0
        self._tally = _Tally()
        self._streak = ErrorStreak()
        self._left_datasets: set[str] = set()
        self._stopped: str | None = None
        self._interruption = Interruption()
        self._kill_at: float | None = None

    def run(self) -> Outcome:
        """Trains until nothing is left or it was told to stop. Raises SetupError if it cannot launch."""
        started = time.monotonic()
        with self._interruption:
            self._fill_queue()
            try:
                self._loop()
            finally:
                self._abandon()
        return self._outcome(time.monotonic() - started)

    def _loop(self) -> None:
        next_look = 0.0
        while True:
            self._obey()
            for launch in list(self._launches.values()):
                code = self._executor.poll(launch.job)
                if code is not None:
                    del self._launches[launch.job.place]
                    self._end(launch, code)
            self._fill_slots()
            if not self._launches and not (self._going_on() and self._reclaim()):
                break
            if time.monotonic() >= next_look:
                self._look_around()
                next_look = time.monotonic() + self._pace.look
            time.sleep(self._pace.poll)
        self._look_around()

    # What is to be trained

    def _fill_queue(self) -> None:
        runs: list[Run] = []
        for state in self._states:
            if self._counts(state):
                self._tally.skipped.append(state.run.id)
                continue
            if state.standing in (Standing.CORRUPT, Standing.FOREIGN):
                self._set_aside(state.run)
            runs.append(state.run)
        self._queue.extend(group_runs(runs, len(self._slots)))

    def _counts(self, state: RunState) -> bool:
        return state.counts and not (state.standing is Standing.OLDER_CODE and self._command.stale == "rerun")

    def _set_aside(self, run: Run) -> None:
        paths = self._paths(run)
        try:
            with run_lock(paths):
                # Under the lock it is read again: another scheduler may have been here first.
                state = self._examine(run)
                if state.standing not in (Standing.CORRUPT, Standing.FOREIGN):
                    return
                moved = set_aside(paths.record, paths.quarantine, state.reason)
        except RunBusyError:
            self._tell(Elsewhere(run.id))
            return
        self._tell(SetAside(run.id, moved, state.reason))

    def _fill_slots(self) -> None:
        for place, slot in enumerate(self._slots):
            while self._going_on() and place not in self._launches and self._queue:
                group = [run for run in self._queue.popleft() if not self._done_meanwhile(run)]
                if group:
                    self._launch(group, place, slot)

    def _done_meanwhile(self, run: Run) -> bool:
        """Another process may have trained it since the queue was made."""
        if not self._paths(run).record.exists():
            return False
        state = self._examine(run)
        if self._counts(state):
            self._finish(state)
            return True
        return False

    def _launch(self, group: Sequence[Run], place: int, slot: Slot) -> None:
        self._jobs += 1
        ids = tuple(run.id for run in group)
        name = f"{datetime.now():%Y%m%dT%H%M%S}-{os.getpid()}-{self._jobs:04d}.log"
        job = Job(
            number=self._jobs,
            runs=ids,
            argv=self._command.argv(ids, slot),
            environment={**slot.environment, "REPRO_ROOT": str(self._project.root)},
            log=self._project.work(self._command.preset) / "logs" / name,
            slot=slot,
            place=place,
        )
        watches = {run.id: RunWatch.begin(run, self._paths(run)) for run in group}
        self._executor.submit(job)
        self._launches[place] = _Launch(job, watches)
        for run in ids:
            self._tally.launches[run] = self._tally.launches.get(run, 0) + 1
        self._tell(Started(job))

    def _reclaim(self) -> bool:
        """With nothing else left, looks again at the runs that others hold; whether there is work again."""
        deadline = time.monotonic() + self._pace.held
        while self._tally.held and self._going_on():
            for run in list(self._tally.held.values()):
                if self._done_meanwhile(run):
                    del self._tally.held[run.id]
                elif not is_held(self._paths(run)):
                    del self._tally.held[run.id]
                    self._queue.append((run,))
            if self._queue or time.monotonic() >= deadline:
                break
            time.sleep(self._pace.poll)
            self._obey()
        return bool(self._queue)

    # What became of it

    def _look_around(self) -> None:
        for launch in self._launches.values():
            self._look(launch)
        running = tuple(self._in_hand(launch) for launch in self._launches.values())
        tally = self._tally
        busy = sum(entry.run is not None for entry in running)
        todo = len(self._states) - tally.ended - busy - len(tally.held)
        tick = Tick(running, len(tally.done), len(tally.failed), tally.ended, todo, len(self._states))
        self._tell(tick)

    def _look(self, launch: _Launch) -> None:
        """Settles the runs of a worker that have a record or a failed attempt by now."""
        for run, watch in list(launch.watches.items()):
            launch.began_a_run = launch.began_a_run or watch.latest_attempt() is not None
            if watch.record_is_new():
                state = self._examine(watch.run)
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

    def _in_hand(self, launch: _Launch) -> Running:
        for run, watch in reversed(launch.watches.items()):
            if attempt := watch.latest_attempt():
                return Running(launch.job, run, attempt.number)
        return Running(launch.job, None, 0)

    def _end(self, launch: _Launch, code: int) -> None:
        """A worker has ended: what its runs did not settle on disk, its exit code explains."""
        self._look(launch)
        rest: list[RunWatch] = []
        for watch in launch.watches.values():
            if is_held(watch.paths):
                self._tally.held[watch.run.id] = watch.run
                self._tell(Elsewhere(watch.run.id))
            else:
                rest.append(watch)
        job = launch.job
        if not rest or launch.told:
            return
        if is_hopeless(code, launch.began_a_run):
            cause = last_line(job.log) or describe_end(code, job.log)
            runs = [watch.run for watch in rest]
            self._fail(runs, cause, job.log, job.slot, setup=code == SetupError.exit_code)
        else:
            self._retry(rest, code, job)

    def _retry(self, rest: Sequence[RunWatch], code: int, job: Job) -> None:
        """Queues runs singly; only those that were under way are charged, so it comes to an end."""
        cause = describe_end(code, job.log)
        charged = [watch for watch in rest if watch.latest_attempt()] or rest
        for watch in charged:
            self._tally.troubles.setdefault(watch.run.id, []).append(cause)
        again: list[Run] = []
        for watch in rest:
            troubles = self._tally.troubles.get(watch.run.id, [])
            interrupted = troubles.count(cause) if code == RunInterruptedError.exit_code else 0
            if len(troubles) > FURTHER_LAUNCHES or interrupted > FURTHER_INTERRUPTED:
                self._fail([watch.run], "; then ".join(_merged(troubles)), job.log, job.slot)
            else:
                again.append(watch.run)
        if again and self._going_on():
            self._tell(Requeued(tuple(run.id for run in again), cause))
        self._queue.extendleft((run,) for run in reversed(again))

    def _finish(self, state: RunState) -> None:
        assert state.record is not None
        self._streak.reset()
        self._tally.done.append(state.run.id)
        record = state.record
        seconds = sum(epoch.seconds for epoch in record.curve)
        ended = self._tally.ended
        self._tell(Finished(state.run.id, record.result.accuracy, seconds, ended, len(self._states)))

    def _fail(self, runs: Sequence[Run], cause: str, log: Path, slot: Slot, setup: bool = False) -> None:
        """Gives runs up for one cause, which counts once however many runs it took."""
        for run in runs:
            failure = Failure(
                run=run.id,
                cause=cause,
                launches=self._tally.launches.get(run.id, 0),
                log=log,
                command=self._command.line([run.id], slot),
                setup=setup,
            )
            self._tally.failed[run.id] = failure
            self._tell(Failed(failure, self._tally.ended, len(self._states)))
        dataset = runs[0].cell.dataset
        if dataset in self._left_datasets or self._stopped:
            return
        advice = self._streak.add(normalise(cause, runs[0].id), dataset, setup)
        others = any(group[0].cell.dataset != dataset for group in self._queue)
        if advice is Advice.LEAVE_DATASET and others:
            self._left_datasets.add(dataset)
            self._queue = deque(group for group in self._queue if group[0].cell.dataset != dataset)
            self._tell(Notice(f"{dataset} is left out, going on with the other data sets: {cause}"))
        elif advice is not Advice.GO_ON:
            self._stopped = f"the same error {SAME_ERRORS} times in a row: {cause}"
            self._tell(Notice(f"stopping early: {self._stopped}"))

    # Stopping

    def _going_on(self) -> bool:
        return self._interruption.stage is Stage.GO_ON and self._stopped is None

    def _obey(self) -> None:
        """Passes a request to stop on to the workers that have not heard of it."""
        stage = max(self._interruption.stage, Stage.DRAIN if self._stopped else Stage.GO_ON)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            stage = Stage.KILL
        deaf = [launch for launch in self._launches.values() if launch.told < stage]
        if not deaf:
            return
        word = {
            Stage.DRAIN: self._executor.drain,
            Stage.CHECKPOINT: self._executor.terminate,
            Stage.KILL: self._executor.kill,
        }[stage]
        for launch in deaf:
            launch.told = stage
            word(launch.job)
        if stage is Stage.CHECKPOINT:
            self._kill_at = time.monotonic() + self._pace.checkpoint
        self._tell(Notice(self._stopping(stage, len(deaf))))

    def _stopping(self, stage: Stage, workers: int) -> str:
        who = "1 worker" if workers == 1 else f"{workers} workers"
        if stage is Stage.DRAIN:
            return f"nothing new starts; waiting for {who} to finish the run in hand (Ctrl-C: stop them now)"
        if stage is Stage.CHECKPOINT:
            seconds = f"{self._pace.checkpoint:g} s"
            return f"stopping {who} at the next checkpoint, {seconds} at most (Ctrl-C: kill them)"
        return f"killing {who}"

    def _abandon(self) -> None:
        """Leaves no worker behind, whatever ended the loop; after an orderly end there is none."""
        for launch in self._launches.values():
            self._executor.terminate(launch.job)
        deadline = time.monotonic() + self._pace.checkpoint
        while any(self._executor.poll(launch.job) is None for launch in self._launches.values()):
            if time.monotonic() >= deadline or self._interruption.stage is Stage.KILL:
                for launch in self._launches.values():
                    self._executor.kill(launch.job)
            time.sleep(self._pace.poll)

    def _outcome(self, seconds: float) -> Outcome:
        tally = self._tally
        known = {*tally.skipped, *tally.done, *tally.failed, *tally.held}
        return Outcome(
            done=tuple(tally.done),
            skipped=tuple(tally.skipped),
            failed=tuple(tally.failed.values()),
            left=tuple(tally.held),
            unfinished=tuple(state.run.id for state in self._states if state.run.id not in known),
            stopped_early=self._stopped,
            interrupted=self._interruption.signal,
            seconds=seconds,
        )

    def _paths(self, run: Run) -> RunPaths:
        return self._project.run(self._command.preset, run.id)


def _merged(troubles: Sequence[str]) -> list[str]:
    """Equal causes in a row as one: `… (3 times)`."""
    merged: list[tuple[str, int]] = []
    for trouble in troubles:
        if merged and merged[-1][0] == trouble:
            merged[-1] = (trouble, merged[-1][1] + 1)
        else:
            merged.append((trouble, 1))
    return [f"{text} ({count} times)" if count > 1 else text for text, count in merged]
