"""The supervisor of a sweep: starts workers, watches them, starts them again, stops them, and sums up.

It never assigns a run. What a worker may take, and when a run is given up, every worker reads from the disk;
a second supervisor, a second machine or a cluster's jobs are only more workers with the same kind of list.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import repro
from repro.attempts import ErrorStreak
from repro.errors import IntegrityError, SetupError
from repro.records import read_record
from repro.scheduling.devices import Device
from repro.scheduling.durations import format_seconds
from repro.scheduling.executor import Executor, TrainCommand, WorkerJob
from repro.scheduling.place import Place
from repro.scheduling.view import FailedRun, Interrupter, SweepSummary, Tick, View
from repro.signals import Interruption, Stage
from repro.sweep import RunQueue, request_stop, stop_request
from repro.worker_note import WorkerNote, read_worker_notes

SILENT_LOCKS = 1800.0  # seconds after which locks that nobody shows life behind end the sweep
LONGEST_POLL = 5.0  # seconds that the time between two polls counts at most: a machine may have slept


@dataclass(frozen=True)
class Intervals:
    """Seconds; tests shorten them."""

    poll: float = 0.2  # between two looks at the workers
    runs: float = 0.5  # between two looks at the runs, at least; longer where looking takes long
    lead: float = 5.0  # before the end of a budget: workers write their checkpoints
    grace: float = 60.0  # for a checkpoint before a worker is killed
    backoff: float = 1.0  # before a device's second start; doubled each time


class Supervisor:
    """One sweep on `devices`. `deadline`, of time.monotonic, is the end of its budget."""

    def __init__(
        self,
        queue: RunQueue,
        devices: Sequence[Device],
        executor: Executor,
        command: TrainCommand,
        view: View,
        before: int = 0,
        deadline: float | None = None,
        intervals: Intervals | None = None,
    ) -> None:
        self.queue = queue
        self.sweep = queue.sweep
        self.project = queue.project
        self.sweep_file = self.project.sweeps(self.sweep.preset) / f"{self.sweep.id}.json"
        self.places = [Place(device) for device in devices]
        self.executor = executor
        self.command = command
        self.view = view
        self.before = before
        self.deadline = deadline
        self.intervals = intervals or Intervals()
        self.stopped_early: str | None = None
        self._interrupted: Interrupter | None = None
        self._errors = ErrorStreak()
        self._locked: set[str] = set()
        self._settled: set[str] = set()  # runs that the user has been told of
        self._stage = self._announced = Stage.GO_ON
        self._next_runs = 0.0
        self._others: object = None
        self._others_silent = 0.0
        self._waiting = False

    def run(self) -> SweepSummary:
        """Trains what can be trained; returns when every run is settled, or nobody works on it any more."""
        began = last = time.monotonic()
        self.sweep.write(self.sweep_file)
        with Interruption() as interruption:
            while True:
                now = time.monotonic()
                elapsed, last = min(now - last, LONGEST_POLL), now
                self._look_at_workers(elapsed)
                self._look_at_runs()
                self._forward_stop(interruption)
                if self._stage is Stage.GO_ON:
                    self._start_workers()
                for text in self.executor.messages():
                    self.view.line(text)
                self.view.update(self._tick())
                if self._is_over(elapsed):
                    break
                time.sleep(self.intervals.poll)
        self._look_at_runs(force=True)
        with contextlib.suppress(OSError):
            self.sweep_file.unlink(missing_ok=True)
            self.sweep_file.with_suffix(".stop").unlink(missing_ok=True)
        return self._summary(time.monotonic() - began)

    def _start_workers(self) -> None:
        """A worker for each device that has none and something to take."""
        now = time.monotonic()
        idle = [place for place in self.places if not place.job and not place.out and place.not_before <= now]
        if not idle or not self.queue.open:
            return
        takeable = [entry.run for entry in self.queue.takeable() if entry.run not in self._locked]
        jobs: list[WorkerJob] = []
        room, working = self.executor.room(), self._working()
        for place in idle[:room] if room is not None else idle:
            if len(jobs) + working >= len(takeable):
                break  # no more workers than runs
            if any(run not in place.left for run in takeable):
                jobs.append(self._job(place))
        if jobs:
            self.executor.start(jobs)

    def _working(self) -> int:
        return sum(place.job is not None for place in self.places)

    def _job(self, place: Place) -> WorkerJob:
        place.starts += 1
        name = f"{self.sweep.id}.{place.device.label.replace(':', '-')}.{place.starts}"
        # The interpreter of a worker does not look into the folder it starts in: the package is named.
        package = str(Path(repro.__file__).parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        job = WorkerJob(
            name=name,
            argv=self.command.worker(self.sweep_file, name, place.device),
            environment={**place.device.environment, "PYTHONPATH": path},
            log=self.project.logs(self.sweep.preset) / f"{name}.log",
            device=place.device,
        )
        place.begin(job)
        return job

    def _look_at_workers(self, elapsed: float) -> None:
        """Reads what workers say, ends those that hang, and takes note of those that have ended."""
        folder = self.project.workers(self.sweep.preset)
        notes = read_worker_notes(folder)
        by_job: dict[str, list[WorkerNote]] = {}
        for each in notes:
            by_job.setdefault(each.job, []).append(each)
        for place in self.places:
            if place.job is None:
                continue
            end = self.executor.poll(place.job)
            waits = end is None and self.executor.waits(place.job)
            place.update(by_job.get(place.job.name, []), 0.0 if waits else elapsed)
            if end is not None:
                others = any(other is not place and not other.out for other in self.places)
                for line in place.end(end, folder, self.intervals.backoff, others):
                    self.view.line(line)
                self._next_runs = 0.0
                continue
            if not place.killed_for and (reason := place.why_hung()):
                place.killed_for = reason
                self.view.line(f"worker on {place.device.label} {reason}; killed")
                self.executor.kill(place.job)
            if place.kill_at is not None and time.monotonic() >= place.kill_at:
                self._kill_or_leave(place)
        others_notes = [(note.name, note.beat) for note in notes if note.sweep != self.sweep.id]
        if others_notes != self._others:
            self._others, self._others_silent = others_notes, 0.0

    def _kill_or_leave(self, place: Place) -> None:
        """Kills a worker that did not stop in time; one that even that does not end is left to itself."""
        assert place.job is not None
        if place.asked is not Stage.KILL:
            place.asked, place.kill_at = Stage.KILL, time.monotonic() + self.intervals.grace
            self.executor.kill(place.job)
            return
        self.view.line(
            f"{place.device.label}: {place.job.name} could not be stopped and may still be running"
        )
        place.job = None

    def _look_at_runs(self, force: bool = False) -> None:
        """Tells of runs that have been done or given up since, by whomever."""
        if not force and time.monotonic() < self._next_runs:
            return
        began = time.monotonic()
        for entry in self.queue.open:
            self.queue.status(entry)
        for run in [run for run in (*self.queue.done, *self.queue.given_up) if run not in self._settled]:
            self._settled.add(run)
            if run in self.queue.given_up:
                self._given_up(run)
            else:
                self._errors.reset()
                self.view.line(f"{self._count()} done {run}  {self._result(run)}")
        self._locked = set(self.queue.locked()) - self._in_training()
        # Looking takes at most 2 % of the time, however many runs there are.
        self._next_runs = time.monotonic() + max(self.intervals.runs, 50 * (time.monotonic() - began))

    def _given_up(self, run: str) -> None:
        verdict = self.queue.given_up[run]
        word = "failed" if verdict.failed else "unfinished"
        folder = self.queue.paths(run).attempts
        self.view.line(f"{self._count()} {word} {run}  {verdict.reason}  (attempts: {folder})")
        if verdict.failed and self._errors.add(run, verdict.reason) and not self.stopped_early:
            self.stopped_early = f"the last {len(self._errors.runs)} runs failed alike: {verdict.reason}"
            self._stage = max(self._stage, Stage.DRAIN)

    def _result(self, run: str) -> str:
        try:
            record = read_record(self.queue.paths(run).record, run, self.sweep.preset)
        except IntegrityError as error:
            return str(error)
        if record is None:
            return "its record has been removed since"
        took = (record.provenance.ended - record.provenance.attempts[-1].started).total_seconds()
        reached = record.result.divergence or f"{record.result.accuracy:.1f} %"
        return f"{reached}  {format_seconds(took)}"

    def _forward_stop(self, interruption: Interruption) -> None:
        """Passes requests on: signals to this process, the end of the budget, `repro stop`."""
        stage = max(self._stage, interruption.stage)
        if interruption.signal:
            self._interrupted = interruption.signal
        elif self.deadline is not None and time.monotonic() >= self.deadline - self.intervals.lead:
            stage, self._interrupted = max(stage, Stage.CHECKPOINT), "budget"
        elif self._stage is Stage.GO_ON and (asked := stop_request(self.sweep_file)):
            stage = Stage.DRAIN if asked == "drain" else Stage.CHECKPOINT
            self._interrupted = "stop request"
        if stage > self._announced:
            self._announced = stage
            self._announce(stage)
        self._stage = stage
        for place in self.places:
            if place.job is None:
                continue
            if place.asked < stage:
                place.asked = stage
                if stage is Stage.KILL:
                    self.executor.kill(place.job)
                else:
                    self.executor.stop(place.job, "drain" if stage is Stage.DRAIN else "now")
                if stage is not Stage.DRAIN:
                    place.kill_at = time.monotonic() + self.intervals.grace
            elif place.asked is Stage.GO_ON and not self.queue.open and self.executor.waits(place.job):
                # Still in a cluster's queue, and nothing is left to do.
                place.asked = Stage.DRAIN
                self.executor.stop(place.job, "drain")

    def _announce(self, stage: Stage) -> None:
        text = {
            Stage.DRAIN: "stopping after the runs in progress; Ctrl-C again writes checkpoints and stops now",
            Stage.CHECKPOINT: "writing checkpoints and stopping; Ctrl-C again kills the workers",
            Stage.KILL: "killing the workers",
        }[stage]
        self.view.line(text)
        # On a full disk signals reach this machine's workers all the same.
        with contextlib.suppress(SetupError):
            request_stop(self.sweep_file, "drain" if stage is Stage.DRAIN else "now")

    def _is_over(self, elapsed: float) -> bool:
        if self._working():
            self._waiting = False
            return False
        if self._stage > Stage.GO_ON or not self.queue.open:
            return True
        able = [place for place in self.places if not place.out]
        if not able:
            return True
        left_everywhere = set.intersection(*(set(place.left) for place in able))
        rest = [entry.run for entry in self.queue.open if entry.run not in left_everywhere]
        if not rest:
            return True
        if any(place.not_before > 0 for place in able) or set(rest) <= self._locked:
            # Others have them, or a device rests before its next start. Only the supervisor waits, never a
            # worker: a cluster's jobs must not hold devices for one long run.
            self._wait_for_others(rest, elapsed)
            return self.stopped_early is not None
        return False

    def _wait_for_others(self, rest: Sequence[str], elapsed: float) -> None:
        if not self._waiting and set(rest) <= self._locked:
            self._waiting = True
            many = f"{len(rest)} runs are" if len(rest) > 1 else f"{rest[0]} is"
            self.view.line(f"{many} being trained by another process; waiting")
        self._others_silent += elapsed
        if self._others_silent > SILENT_LOCKS:
            lock = self.queue.paths(rest[0]).lock
            holder = self.queue.locked().get(rest[0])
            self._interrupted = "stop request"
            self.stopped_early = (
                f"{lock} has been locked{f' by process {holder}' if holder else ''} for "
                f"{format_seconds(SILENT_LOCKS)} without a sign of life; end that process, then run again"
            )

    def _in_training(self) -> set[str]:
        """The runs that this sweep's own workers have."""
        return {
            progress.run for place in self.places if place.note is not None for progress in place.note.runs
        }

    def _tick(self) -> Tick:
        queue, running = self.queue, self._in_training() | self._locked
        counts = Counter(done=self.before + len(queue.done))
        counts.update("failed" if each.failed else "interrupted" for each in queue.given_up.values())
        counts.update("running" if each.run in running else queue.kinds[each.run] for each in queue.open)
        return Tick(
            workers=tuple((each.device, each.note, each.job is not None, each.out) for each in self.places),
            counts=counts,
            ended=self.before + len(queue.done) + len(queue.given_up),
            total=self.before + len(self.sweep.runs),
        )

    def _count(self) -> str:
        total = str(self.before + len(self.sweep.runs))
        ended = self.before + len(self._settled)
        return f"[{ended:>{len(total)}}/{total}]"

    def _summary(self, seconds: float) -> SweepSummary:
        queue, device = self.queue, self.places[0].device
        failed = tuple(
            FailedRun(
                run,
                verdict.reason,
                verdict.attempts,
                self.queue.paths(run).attempts,
                self.command.line(run, device),
            )
            for run, verdict in queue.given_up.items()
            if verdict.failed
        )
        impossible = dict(queue.impossible)
        out = next((place.out for place in self.places if place.out), "")
        able = [place for place in self.places if not place.out]
        for entry in queue.open:
            if able and all(entry.run in place.left for place in able):
                impossible[entry.run] = able[0].left[entry.run]
            elif not able and self._interrupted is None:
                impossible[entry.run] = f"no device is left: {out}"
        rest = [entry.run for entry in queue.open if entry.run not in impossible]
        rest += [run for run, verdict in queue.given_up.items() if not verdict.failed]
        unfinished = tuple(run for run in rest if run not in self._locked)
        return SweepSummary(
            done=tuple(entry.run for entry in self.sweep.runs if entry.run in queue.done),
            before=self.before,
            failed=failed,
            elsewhere=tuple(run for run in rest if run in self._locked),
            unfinished=unfinished,
            begun=tuple(run for run in unfinished if queue.kinds[run] in ("running", "interrupted")),
            impossible=impossible,
            stopped_early=self.stopped_early,
            interrupted=self._interrupted,
            seconds=seconds,
        )
