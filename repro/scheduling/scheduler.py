"""Trains what is not done yet: a queue of groups, one worker a slot, and the disk as the only witness.

    states → skip what counts → groups → free slot → worker → records and attempts on disk → verdict

A run ends as done, failed, left to another process, or unfinished. Nothing a worker says is believed
before its record is there, and no worker's end stops the others.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """Seconds between two polls, two looks at the disk, until SIGKILL, and of waiting for others' locks."""

    poll: float = 0.1
    look: float = 0.5
    checkpoint: float = 60.0
    held: float = 2.0


DEFAULT_PACE = Pace()


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
        return self._ledger.outcome(self._interruption.signal, time.monotonic() - started)

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
            launch = self._ledger.adopt(job)
            # More of them than slots are only waited for: their places are beyond those that are filled.
            self._launches[len(self._launches)] = launch
            self._tell(Started(job))
        if self._launches:
            self._tell(Notice(f"going on with {_jobs(len(self._launches))} of an earlier scheduler"))

    def _fill_slots(self) -> None:
        for place, slot in enumerate(self._slots):
            if place not in self._launches and self._going_on() and (group := self._ledger.next_group()):
                self._launch(group, place, slot)

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
        return self._interruption.stage is Stage.GO_ON and self._ledger.stopped_early is None

    def _obey(self) -> None:
        """Passes a request to stop on to the workers that have not heard of it."""
        stage = max(self._interruption.stage, Stage.DRAIN if self._ledger.stopped_early else Stage.GO_ON)
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


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
