"""A worker: one process on one device, which trains the free runs of a sweep, one or several at a time.

It takes the first run that nobody has, trains it, commits its record and takes the next, until there is none
left to take. Several runs at once have a CUDA stream and a graph each and take their steps in turn.
"""

import contextlib
import faulthandler
import gc
import sys
import time
from pathlib import Path

import torch

from repro.attempts import SAME_ERRORS, ErrorStreak, Outcome
from repro.config import Preset, RunConfig
from repro.data import open_for_training
from repro.data.prepared import PreparedData
from repro.errors import (
    DataCorruptError,
    DataMissingError,
    DeviceError,
    NoSpaceError,
    ReproError,
    RunInterruptedError,
)
from repro.paths import Project
from repro.registry import Registry
from repro.signals import Stop
from repro.signature import data_hash
from repro.storage import FileLock, quarantine_damaged
from repro.sweep import RunQueue, RunStatus, Sweep, SweepRun
from repro.training.concurrency import Concurrency
from repro.training.cuda_graph import is_out_of_memory
from repro.training.heartbeat import Heartbeat
from repro.training.process import TrainOptions, open_process
from repro.training.run_attempt import RunAttempt, SupersededError, ThreadsDifferError
from repro.worker_note import DEVICE_BUSY, Phase, new_worker_note


class DeviceBrokenError(Exception):
    """CUDA answers each further call of this process with the same error; all runs have been noted."""


class Worker:
    """Trains what is free of `sweep` on one device.

    `sweep_file` is where a stop request would lie, `job` the supervisor's name for this worker, `device_lock`
    the lock that no other worker on the device holds (None: trained by hand, beside whoever is there).
    """

    def __init__(
        self,
        sweep: Sweep,
        registry: Registry,
        preset: Preset,
        project: Project,
        options: TrainOptions,
        stop: Stop,
        sweep_file: Path | None = None,
        job: str = "",
        device_lock: Path | None = None,
    ) -> None:
        self.sweep = sweep
        self.registry = registry
        self.preset = preset
        self.project = project
        self.options = options
        self.stop = stop
        self.device_lock = FileLock(device_lock) if device_lock else None
        self.active: list[RunAttempt] = []
        self.failed = 0
        self._concurrency: dict[str, Concurrency] = {}
        note = new_worker_note(sweep.id, job, options.device or "")
        self.heartbeat = Heartbeat(note, project.workers(preset.name), stop, sweep_file)
        self.heartbeat.runs = lambda: tuple(attempt.progress for attempt in self.active)
        self.queue = RunQueue(sweep, registry, project)
        self._data: dict[str, PreparedData] = {}
        self._errors = ErrorStreak()
        self._trained = 0
        self._warned: set[str] = set()
        self._needs_other_threads: set[str] = set()  # runs that wait until this process trains nothing else

    def run(self) -> int:
        """Works until nothing can be taken; the exit code: 0, 1 if a run failed, 75 or 130 if stopped.

        Raises SetupError where the device is missing, or locked by another worker.
        """
        self.heartbeat.beat()
        try:
            code = self._work()
        except DeviceBrokenError as error:
            self.warn(f"{error}; this process cannot use its device any more")
            self.heartbeat.say(device_error=str(error))
            code = 1
        finally:
            faulthandler.cancel_dump_traceback_later()
            if self.device_lock:
                self.device_lock.release()
        self.heartbeat.end(dict(self.queue.impossible))
        return code

    def _work(self) -> int:
        if self.device_lock and not self.device_lock.acquire():
            self.heartbeat.say(message=DEVICE_BUSY)
            raise DeviceError(f"{DEVICE_BUSY}: {self.device_lock.path} is locked")
        self.process = open_process(
            self.project, self.preset, self.options, self.heartbeat, self.sweep.workers_per_device, self.warn
        )
        self.queue.device_memory = self.process.environment.device_memory_bytes
        self.concurrency = Concurrency(1, self.process.device)
        self.heartbeat.say(device_name=self.process.environment.device, phase=Phase.TRAINING)
        while True:
            self.heartbeat.should_stop()
            if not self.stop.requested:
                self._admit()
            if not self.active:
                break
            self._step_all()
            if self.stop.now:
                self._stop_all()
                break
        if self.stop.requested:
            return self.stop.exit_code
        return 1 if self.failed else 0

    def _admit(self) -> None:
        """Takes runs while there is room, each with its network built and its first step taken."""
        while self._has_room() and not self.stop.requested:
            attempt = self._take_next()
            if attempt is None:
                self.concurrency.nothing_to_add()
                return
            if not self.active:
                self._choose_concurrency(attempt)
            self.active.append(attempt)
            self._count_company()
            self.heartbeat.preparing = True
            before = self._reserved()
            self._advance(attempt)
            self.heartbeat.preparing = False
            self.concurrency.added(self._reserved() - before)

    def _choose_concurrency(self, attempt: RunAttempt) -> None:
        config, size = attempt.config, attempt.data.manifest.image_size
        kind = f"{config.network}, {size} px, width {config.recipe.width:g}, batch {config.recipe.batch_size}"
        if kind not in self._concurrency:
            device, cache = self.process.device, self.project.concurrency(self.preset.name)
            self._concurrency[kind] = Concurrency.of(self.options.per_gpu, device, cache, kind)
        self.concurrency = self._concurrency[kind]

    def _has_room(self) -> bool:
        if not self.active:
            return True
        if not self.concurrency.may_add(len(self.active)):
            return False
        if not all(attempt.may_have_company for attempt in self.active):
            return False
        # No more than this worker's share of what is left: else the last runs sit on one device while
        # another idles.
        return len(self.active) + 1 <= -(-len(self.queue.open) // self.sweep.workers)

    def _take_next(self) -> RunAttempt | None:
        """Locks the first run that can be taken and begins an attempt; None where there is none."""
        for entry in self.queue.takeable(alone=not self.active):
            run = self.registry.parse(entry.run)
            config = self.registry.config(run, self.preset)
            if self.active and (
                entry.run in self._needs_other_threads or not self.active[0].can_share_with(config)
            ):
                continue
            data = self._open_data(entry, config)
            if data is None:
                continue
            lock = FileLock(self.project.run(self.preset.name, entry.run).lock)
            if not lock.acquire():
                if self.heartbeat.sweep_file is None:
                    self._warn_once(f"{entry.run}: another process is training it; skipped")
                continue
            try:
                attempt = self._begin(entry, config, data, lock)
            except BaseException:
                lock.release()
                raise
            if attempt is not None:
                return attempt
            lock.release()
        return None

    def _open_data(self, entry: SweepRun, config: RunConfig) -> PreparedData | None:
        """The run's data, hashed; None where this machine does not have them, which is no run's fault."""
        key = config.dataset
        if key not in self._data:
            try:
                # One data set at a time stays open: the next needs the memory.
                opened = open_for_training(config, self.project.data)
            except (DataMissingError, DataCorruptError) as error:
                for other in self.queue.open:
                    if self.registry.parse(other.run).cell.dataset == key:
                        self.queue.exclude(other.run, str(error))
                return None
            self._data = {key: opened}
        data = self._data[key]
        if entry.data is not None and data_hash(data.manifest.fingerprint(), config) != entry.data:
            self.queue.exclude(
                entry.run, f"{config.dataset} differs from the data that the sweep was planned with"
            )
            return None
        return data

    def _begin(
        self, entry: SweepRun, config: RunConfig, data: PreparedData, lock: FileLock
    ) -> RunAttempt | None:
        """Begins an attempt once the disk takes it; None where the run is settled or a stop requested."""
        while not self.stop.requested:
            try:
                return self._begin_now(entry, config, data, lock)
            except NoSpaceError as error:
                if self.active:
                    break  # those in training come first
                self._warn_once(f"{entry.run}: starting waits until the disk can be written again: {error}")
            time.sleep(1.0)
            self.heartbeat.tick()
        return None

    def _begin_now(
        self, entry: SweepRun, config: RunConfig, data: PreparedData, lock: FileLock
    ) -> RunAttempt | None:
        """Judges the run again now that nobody else can change it; None where it is settled after all."""
        self.queue.close_dead_attempt(entry)
        status = self.queue.status(entry)
        is_suspect = status is RunStatus.SUSPECT
        if status is not RunStatus.FREE and (not is_suspect or self.active):
            return None
        paths = self.project.run(self.preset.name, entry.run)
        if moved := quarantine_damaged(paths, entry.run, self.preset.name):
            self.warn(f"{entry.run}: its record is damaged; moved to {moved}")
        run, at_once = self.registry.parse(entry.run), len(self.active) + 1
        return RunAttempt(self.process, entry, run, config, data, lock, at_once, is_suspect)

    def _step_all(self) -> None:
        """One step of each run in turn."""
        self.concurrency.begin_round(len(self.active))
        waiting = 0
        for attempt in list(self.active):
            if attempt not in self.active:
                continue  # it has just left its memory to an older one
            if attempt.waiting_until > time.monotonic():
                waiting += 1
                continue
            epoch = attempt.progress.epoch
            self._advance(attempt)
            if attempt.progress.epoch != epoch or attempt not in self.active:
                self.concurrency.disturbed()  # an evaluation or a capture: not what is to be measured
        if waiting and waiting == len(self.active):
            time.sleep(0.1)  # all wait for the disk
            self.heartbeat.tick()
        self.concurrency.end_round()

    def _advance(self, attempt: RunAttempt) -> None:
        """Takes one step of `attempt`; whatever goes wrong ends it, and leaves its neighbours alone."""
        try:
            unfinished = attempt.advance()
            if not self.heartbeat.note.stepped:
                self.heartbeat.say(stepped=True)
            if unfinished:
                return
            self._trained += 1
            self._errors.reset()
        except RunInterruptedError as stopped:
            attempt.end(Outcome.INTERRUPTED)
            self.warn(f"{attempt.run.id}: {stopped}")
        except SupersededError:
            attempt.end(Outcome.SUPERSEDED)
            self.warn(f"{attempt.run.id}: another process has started it since; this attempt ends")
        except ThreadsDifferError:
            self._needs_other_threads.add(attempt.run.id)
            attempt.end(
                Outcome.WITHDRAWN, "its checkpoint needs another number of threads than its neighbours"
            )
        except ReproError as error:
            self._failed(attempt, attempt.fail(error))
        except Exception as error:  # noqa: BLE001 - a bug in one run must not stop the others; it is kept whole
            self._unexpected(attempt, error)
        self._remove(attempt)

    def _unexpected(self, attempt: RunAttempt, error: Exception) -> None:
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            self._out_of_memory(attempt, reason)
        elif self.process.is_lost(error):
            self._end_all(Outcome.WITHDRAWN, reason)
            self.heartbeat.say(message=f"device lost: {reason}")
            raise DeviceBrokenError(reason)
        elif "CUDA error" in str(error):
            self._end_all(Outcome.DEVICE, reason)
            raise DeviceBrokenError(reason)
        else:
            self._failed(attempt, attempt.fail(error))

    def _out_of_memory(self, attempt: RunAttempt, reason: str) -> None:
        """Blames the run only where it was alone in a process that had trained nothing else.

        Beside others, the run that joined last leaves; an older one restarts from its checkpoint, never in
        the middle of a step.
        """
        if len(self.active) > 1:
            newest = self.active[-1]
            self.concurrency.too_many(len(self.active))
            attempt.end(Outcome.WITHDRAWN, f"{reason} beside {len(self.active) - 1} others")
            if newest is not attempt:
                newest.end(Outcome.WITHDRAWN, "left its memory to the runs that were there before")
                self._remove(newest)
            limit = self.concurrency.limit
            self.warn(f"{attempt.run.id}: out of memory: from now on at most {limit} at once")
        elif self._trained:
            attempt.end(Outcome.WITHDRAWN, f"{reason}; to be tried in a fresh process")
            self.stop.drain = True  # the supervisor starts another worker for it
        else:
            attempt.end(Outcome.OUT_OF_MEMORY, reason, alone=True)
            self.failed += 1
            self.warn(f"{attempt.run.id}: out of memory: {reason}")

    def _failed(self, attempt: RunAttempt, reason: str) -> None:
        self.failed += 1
        self.warn(f"{attempt.run.id}: failed: {reason}")
        if self._errors.add(attempt.run.id, reason) and self.heartbeat.sweep_file is not None:
            self.warn(f"{SAME_ERRORS} runs in a row failed alike: this worker starts no other")
            self.stop.drain = True

    def _end_all(self, outcome: Outcome, reason: str) -> None:
        alone = len(self.active) == 1
        for attempt in list(self.active):
            attempt.end(outcome, reason, alone)
            self._remove(attempt)

    def _stop_all(self) -> None:
        """Lets each run write its checkpoint, the oldest first: it has the most to lose."""
        for attempt in list(self.active):
            self._advance(attempt)

    def _remove(self, attempt: RunAttempt) -> None:
        if attempt not in self.active:
            return
        self.active.remove(attempt)
        self.concurrency.removed()
        self._count_company()
        if self.process.device.type == "cuda":
            # What it still holds in cycles, the next run may need. Not on a CPU: it takes 0.2 s per run.
            gc.collect()
            torch.cuda.empty_cache()

    def _count_company(self) -> None:
        """Tells the runs, the energy meter and the worker's note how many there are now."""
        at_once = len(self.active) + self.sweep.workers_per_device - 1
        for attempt in self.active:
            attempt.most_at_once = max(attempt.most_at_once, at_once)
        self.process.energy.split_among(len(self.active))
        self.heartbeat.beat()

    def _reserved(self) -> int:
        return torch.cuda.memory_reserved(self.process.device) if self.process.device.type == "cuda" else 0

    def _warn_once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self.warn(line)

    def warn(self, line: str) -> None:
        """Prints the line; a log on a full disk takes none, which is no reason to stop."""
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
