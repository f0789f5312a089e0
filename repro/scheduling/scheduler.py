"""Trains what is not done yet: a queue of groups, one worker a slot, and the disk as the only witness.

    states → skip what counts → groups → free slot → worker → records and attempts on disk → verdict

A run ends as done, failed, left to another process, or unfinished. Nothing a worker says is believed
before its record is there, and no worker's end stops the others.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from repro.errors import NoSpaceError
from repro.paths import Project
from repro.record_state import RunState
from repro.registry import Run
from repro.scheduling.causes import Cause, Kind, oom_kills
from repro.scheduling.devices import Devices, Tenants
from repro.scheduling.disk import Disk
from repro.scheduling.durations import format_seconds
from repro.scheduling.events import Listener, Notice, Started
from repro.scheduling.executors.base import Executor, Job
from repro.scheduling.gpus import GpuReader, read_gpus
from repro.scheduling.interruption import Interruption, Stage
from repro.scheduling.launch import Launch
from repro.scheduling.ledger import Ledger
from repro.scheduling.outcome import Outcome
from repro.scheduling.slots import Slot
from repro.scheduling.train_command import TrainCommand


@dataclass(frozen=True)
class Pace:
    """Seconds between two polls, two looks at the disk, until SIGKILL, and between looks at others' locks.

    `lead` is how long before a deadline workers are told to write their checkpoints, and how long after it
    those that have not are killed. `full` is between two tries to write on a full disk, `room` between two
    on one that is not. Without a sign of life for `first_sign` (imports, data, compilation) or later
    `silence` seconds a worker counts as hung, and for `takeover` seconds a run that another machine holds as
    abandoned.
    """

    poll: float = 0.1
    look: float = 0.5
    checkpoint: float = 60.0
    held: float = 2.0
    lead: float = 5.0
    full: float = 2.0
    room: float = 30.0
    first_sign: float = 1800.0
    silence: float = 600.0
    takeover: float = 1800.0


DEFAULT_PACE = Pace()


class Scheduler:
    """One sweep over `states`, in their order; `run()` does it once.

    `examine` checks a run's record again (`repro.record_state.assess_run`), `listener` hears of every event.
    Under the `stale` policy "rerun" of `command`, records made by older code are trained again too. At the
    `deadline` (of time.monotonic) workers have written checkpoints and `run` returns. `tenants` says how
    many runs of a run's kind may share a slot's device, where that is fewer than its slots. `reader` lists
    the GPUs that are still there, `count_oom_kills` what the kernel has killed so far.
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
        deadline: float | None = None,
        tenants: Tenants | None = None,
        reader: GpuReader = read_gpus,
        count_oom_kills: Callable[[], int] = oom_kills,
    ) -> None:
        assert slots, "find_slots gives at least one"
        self._slots = tuple(slots)
        self._executor = executor
        self._command = command
        self._project = project
        self._tell = listener
        self._pace = pace
        self._devices = Devices(self._slots, reader, tenants)
        self._ledger = Ledger(states, command, project, examine, listener, self._devices, count_oom_kills)
        self._work = project.work(command.preset)
        self._disk = Disk(self._work, pace.full, pace.room, listener)
        self._launches: dict[int, Launch] = {}
        self._jobs = 0
        self._interruption = Interruption()
        self._kill_at: float | None = None
        self._deadline = deadline
        self._looked = self._reclaimed = time.monotonic()
        self._waiting = False

    def run(self) -> Outcome:
        """Trains until nothing is left or it was told to stop.

        Raises SetupError if a worker cannot be started or the results folder not written.
        """
        started = time.monotonic()
        with self._interruption:
            self._ledger.fill(len(self._slots))
            self._adopt()
            try:
                self._loop()
            finally:
                self._abandon()
        interrupted = self._interruption.signal or ("budget" if self._is_over(2) else None)
        return self._ledger.outcome(interrupted, time.monotonic() - started)

    def _loop(self) -> None:
        while True:
            self._obey()
            self._note_devices()
            for place, launch in list(self._launches.items()):
                code = self._executor.poll(launch.job)
                if code is not None:
                    self._ledger.close(launch, code, self._executor.ending(launch.job))
                    del self._launches[place]
            self._fill_slots()
            if not self._launches and not self._wait_for_work():
                break
            if time.monotonic() >= self._looked + self._pace.look:
                self._look()
            time.sleep(self._pace.poll)
        self._look()
        self._disk.last_word()

    def _adopt(self) -> None:
        """Takes over the jobs of an earlier scheduler, so that nothing they have in hand starts twice."""
        for job in self._executor.adopt(1, self._ledger.queued()):
            self._jobs += 1
            # More of them than slots are only waited for: their places are beyond those that are filled.
            place = len(self._launches)
            slot = replace(job.slot, index=place) if job.slot.host else job.slot
            launch = self._ledger.adopt(replace(job, place=place, slot=slot))
            self._launches[place] = launch
            self._tell(Started(launch.job))
        if self._launches:
            self._tell(Notice(f"going on with {_jobs(len(self._launches))} of an earlier scheduler"))

    def _fill_slots(self) -> None:
        for place, slot in enumerate(self._slots):
            if place in self._launches or not self._going_on():
                continue
            self._note_devices()
            empty = self._devices.is_empty(slot)
            first = self._ledger.next_run(empty)
            alone_waits = bool(self._ledger.alone)
            if first is None or not self._devices.has_room(slot, first, alone_waits):
                continue
            if not self._disk.takes_writes():
                break
            group, alone = self._ledger.next_group(empty)
            if group:
                self._launch(group, alone, place, slot)

    def _note_devices(self) -> None:
        self._devices.note([(launch.job.slot, launch.alone) for launch in self._launches.values()])

    def _launch(self, group: Sequence[Run], alone: bool, place: int, slot: Slot) -> None:
        self._jobs += 1
        slot = replace(slot, co_tenants=0) if alone else self._devices.shared(slot, group[0])
        ids = tuple(run.id for run in group)
        name = f"{datetime.now():%Y%m%dT%H%M%S}-{os.getpid()}-{self._jobs:04d}.log"
        job = Job(
            number=self._jobs,
            runs=ids,
            argv=self._command.argv(ids, slot),
            environment={**slot.environment, "REPRO_ROOT": str(self._project.root)},
            log=self._work / "logs" / name,
            slot=slot,
            place=place,
        )
        launch = self._ledger.begin(job, group, alone)
        try:
            self._executor.submit(job)
        except NoSpaceError as error:
            self._ledger.take_back(launch)
            self._disk.pause(error)
            return
        self._launches[place] = launch
        self._tell(Started(job))

    def _look(self) -> None:
        now = time.monotonic()
        elapsed, self._looked = now - self._looked, now
        self._disk.look()
        for launch in self._launches.values():
            self._ledger.look(launch)
            self._watch(launch, elapsed)
        if now >= self._reclaimed + self._pace.held:
            self._ledger.reclaim(now - self._reclaimed, self._pace.takeover)
            self._reclaimed = now
        for text in self._executor.news():
            self._tell(Notice(text))
        self._tell(self._ledger.tick(tuple(self._launches.values())))

    def _watch(self, launch: Launch, elapsed: float) -> None:
        """Ends a worker that hangs, or that has lost its device."""
        if launch.ending is None:
            # A job of a cluster may wait in a queue for days; its time limit ends one that hangs.
            if not launch.here or not self._is_silent(launch, elapsed):
                return
            silence = format_seconds(launch.pulse.silent)
            launch.ending = Cause(Kind.HUNG, f"its worker gave no sign of life for {silence}")
        if launch.kill_at is None:
            launch.kill_at = time.monotonic() + self._pace.checkpoint
            self._tell(Notice(f"ending the worker of {launch.job.runs[0]}: {launch.ending.text}"))
            self._executor.terminate(launch.job)
        elif time.monotonic() >= launch.kill_at:
            self._executor.kill(launch.job)

    def _is_silent(self, launch: Launch, elapsed: float) -> bool:
        """Whether a worker has been without a sign of life for too long, `elapsed` s after the last look."""
        reported = launch.feel(elapsed)
        if not launch.pulse.stopped(self._pace.silence if reported else self._pace.first_sign):
            return False
        if not self._disk.takes_writes():
            # It waits for the disk as the scheduler does, and cannot even say so.
            launch.pulse.silent = 0.0
            return False
        return True

    def _wait_for_work(self) -> bool:
        """With no worker under way, whether there is or may be work again: a free disk, a run of others."""
        if not self._going_on():
            return False
        if self._ledger.has_work:
            return True
        if self._ledger.held and not self._waiting:
            self._waiting = True
            count = len(self._ledger.held)
            runs = "1 run" if count == 1 else f"{count} runs"
            self._tell(Notice(f"waiting for {runs} that other processes train (Ctrl-C: leave it to them)"))
        return bool(self._ledger.held)

    def _going_on(self) -> bool:
        asked = self._interruption.stage is not Stage.GO_ON or self._ledger.stopped_early is not None
        # A worker that started any later would be told to stop before its first step.
        return not asked and not self._is_over(2)

    def _is_over(self, leads: float) -> bool:
        """Whether the deadline is less than so many leads away."""
        return self._deadline is not None and time.monotonic() >= self._deadline - leads * self._pace.lead

    def _obey(self) -> None:
        """Passes a request to stop on to the workers that have not heard of it."""
        stage = max(self._interruption.stage, Stage.DRAIN if self._ledger.stopped_early else Stage.GO_ON)
        if self._is_over(1):
            stage = max(stage, Stage.CHECKPOINT)
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
            self._kill_at = time.monotonic() + self._patience()
        self._tell(Notice(self._stopping(stage, len(deaf))))

    def _patience(self) -> float:
        """Seconds that workers have for their checkpoints."""
        if self._deadline is None:
            return self._pace.checkpoint
        left = self._deadline + self._pace.lead - time.monotonic()
        return min(self._pace.checkpoint, max(left, 0.0))

    def _stopping(self, stage: Stage, workers: int) -> str:
        who = "1 worker" if workers == 1 else f"{workers} workers"
        if stage is Stage.DRAIN:
            return f"nothing new starts; waiting for {who} to finish the run in hand (Ctrl-C: stop them now)"
        if stage is Stage.CHECKPOINT:
            seconds = f"{self._patience():.0f} s"
            why = "the budget is spent: " if self._is_over(1) else ""
            return f"{why}stopping {who} at the next checkpoint, {seconds} at most (Ctrl-C: kill them)"
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


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
