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

from repro.paths import Project
from repro.registry import Run
from repro.scheduling.events import Listener, Notice, Started
from repro.scheduling.executors.base import Executor, Job
from repro.scheduling.interruption import Interruption, Stage
from repro.scheduling.ledger import Launch, Ledger
from repro.scheduling.outcome import Outcome
from repro.scheduling.slots import Slot
from repro.scheduling.train_command import TrainCommand
from repro.standings import RunState


@dataclass(frozen=True)
class Pace:
    """Seconds between two polls, two looks at the disk, until SIGKILL, and of waiting for others' locks.

    `lead` is how long before a deadline workers are told to write their checkpoints, and how long after it
    those that have not are killed.
    """

    poll: float = 0.1
    look: float = 0.5
    checkpoint: float = 60.0
    held: float = 2.0
    lead: float = 5.0


DEFAULT_PACE = Pace()


class Scheduler:
    """One sweep over `states`, in their order; `run()` does it once.

    `examine` reads a run's standing anew (`repro.standings.assess_run`), `listener` hears of every event.
    Under the `stale` policy "rerun" of `command`, records made by older code are trained again too. At the
    `deadline` (of time.monotonic) workers have written checkpoints and `run` returns. `tenants` says how
    many runs of a run's kind may share a slot's device, where that is fewer than its slots.
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
        tenants: Callable[[Run, Slot], int] | None = None,
    ) -> None:
        assert slots, "find_slots gives at least one"
        self._slots = tuple(slots)
        self._executor = executor
        self._command = command
        self._project = project
        self._tell = listener
        self._pace = pace
        self._ledger = Ledger(states, command, project, examine, listener)
        self._launches: dict[int, Launch] = {}
        self._jobs = 0
        self._interruption = Interruption()
        self._kill_at: float | None = None
        self._deadline = deadline
        self._tenants = tenants

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
        next_look = 0.0
        while True:
            self._obey()
            for place, launch in list(self._launches.items()):
                code = self._executor.poll(launch.job)
                if code is not None:
                    del self._launches[place]
                    self._ledger.close(launch, code, self._executor.ending(launch.job))
            self._fill_slots()
            if not self._launches and not self._reclaim():
                break
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + self._pace.look
            time.sleep(self._pace.poll)
        self._look()

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
            if place in self._launches or not self._going_on() or not self._has_room(slot):
                continue
            if group := self._ledger.next_group():
                self._launch(group, place, slot)

    def _has_room(self, slot: Slot) -> bool:
        """Whether the next run may join those that are on the slot's device now."""
        if self._tenants is None or not self._ledger.queue:
            return True
        there = [launch for launch in self._launches.values() if _same_device(launch.job.slot, slot)]
        # A run that shares with fewer than those there would have it waits for them, and they for it.
        limits = [launch.job.slot.co_tenants + 1 for launch in there]
        return len(there) < min(self._tenants(self._ledger.queue[0][0], slot), *limits, len(self._slots))

    def _launch(self, group: Sequence[Run], place: int, slot: Slot) -> None:
        self._jobs += 1
        if self._tenants is not None:
            slot = replace(slot, co_tenants=self._tenants(group[0], slot) - 1)
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
        launch = self._ledger.begin(job, group)
        self._executor.submit(job)
        self._launches[place] = launch
        self._tell(Started(job))

    def _look(self) -> None:
        for launch in self._launches.values():
            self._ledger.look(launch)
        for text in self._executor.news():
            self._tell(Notice(text))
        self._tell(self._ledger.tick(tuple(self._launches.values())))

    def _reclaim(self) -> bool:
        """With nothing else left, waits a moment for runs that others hold; whether there is work again."""
        deadline = time.monotonic() + self._pace.held
        while self._going_on() and self._ledger.held and not self._ledger.queue:
            self._ledger.reclaim()
            if time.monotonic() >= deadline:
                break
            time.sleep(self._pace.poll)
        return self._going_on() and bool(self._ledger.queue)

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


def _same_device(one: Slot, other: Slot) -> bool:
    return (one.device, one.index, one.uuid) == (other.device, other.index, other.uuid)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
