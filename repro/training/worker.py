"""A worker: one process on one device, which trains the free runs of a sweep, one or several at a time.

It takes the first run that nobody has, trains it, commits its record and takes the next, until there is none
left to take. Several runs at once have a CUDA stream and a graph each and take their steps in turn.
"""

import contextlib
import faulthandler
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    SetupError,
)
from repro.paths import Project
from repro.registry import Registry
from repro.signals import Stop
from repro.signature import data_hash
from repro.storage import FileLock, quarantine_damaged
from repro.sweep import (
    DEVICE_BUSY,
    Phase,
    RunQueue,
    RunStatus,
    Sweep,
    SweepRun,
    new_worker_note,
    stop_request,
)
from repro.training.concurrency import Concurrency
from repro.training.cuda_graph import is_out_of_memory
from repro.training.device import choose_device, self_test, use_deterministic_algorithms
from repro.training.precision import choose_precision
from repro.training.provenance import EnergyMeter, describe_environment, host_salt
from repro.training.run_attempt import (
    Process,
    RunAttempt,
    SupersededError,
    ThreadsDifferError,
    TrainOptions,
)
from repro.training.tensorboard import require_tensorboard

HEARTBEAT = 1.0  # seconds between two notes of what this worker does
HUNG = 600.0  # seconds without a step or a test batch after which the process ends itself
HUNG_STARTING = 1800.0  # likewise while it starts, compiles and captures

_DEVICE_LOST = (
    "No CUDA GPUs are available",
    "no CUDA-capable device is detected",
    "is/are busy or unavailable",
    "GPU is lost",
    "GPU has fallen off the bus",
    "uncorrectable ECC error",
    "hardware stack error",
    "CUDA error: unknown error",
    "CUDA error: device not ready",
    "CUDA error: invalid device ordinal",
)  # what torch and CUDA say of a device that is gone or does not answer any more: no run is to blame


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
        self.sweep_file = sweep_file
        self.device_lock = FileLock(device_lock) if device_lock else None
        self.active: list[RunAttempt] = []
        self.failed = 0
        self._concurrency: dict[str, Concurrency] = {}
        self.note = new_worker_note(sweep.id, job, options.device or "")
        self.queue = RunQueue(sweep, registry, project)
        self._data: dict[str, PreparedData] = {}
        self._next_beat = 0.0
        self._errors = ErrorStreak()
        self._trained = 0
        self._stepped = False
        self._warned: set[str] = set()
        self._needs_other_threads: set[str] = set()  # runs that wait until this process trains nothing else
        self._preparing = True

    def run(self) -> int:
        """Works until nothing can be taken; the exit code: 0, 1 if a run failed, 75 or 130 if stopped.

        Raises SetupError where the device is missing, or locked by another worker.
        """
        if self.options.log:
            require_tensorboard()
        self._beat()
        try:
            code = self._work()
        except DeviceBrokenError as error:
            self.warn(f"{error}; this process cannot use its device any more")
            code = 1
        finally:
            faulthandler.cancel_dump_traceback_later()
            if self.device_lock:
                self.device_lock.release()
        self._say(phase=Phase.ENDED, left=dict(self.queue.impossible))
        if not self.note.job:  # nobody reads how a worker ended that was started by hand
            with contextlib.suppress(OSError):
                (self.project.workers(self.preset.name) / f"{self.note.name}.json").unlink(missing_ok=True)
        return code

    def _work(self) -> int:
        if self.device_lock and not self.device_lock.acquire():
            self._say(message=DEVICE_BUSY)
            raise DeviceError(f"{DEVICE_BUSY}: {self.device_lock.path} is locked")
        if self.options.deterministic:
            use_deterministic_algorithms()
        threads = self.options.threads or self.preset.threads
        torch.set_num_threads(threads)
        device = choose_device(self.options.device)
        precision = choose_precision(device, self.options.precision)
        torch.backends.cudnn.benchmark = device.type == "cuda" and not self.options.deterministic
        self_test(device)
        self.process = Process(
            project=self.project,
            preset=self.preset,
            options=self.options,
            device=device,
            precision=precision,
            threads=threads,
            # What a record needs is found out before the first step: a run must not be lost to it.
            environment=describe_environment(self.project.root, device),
            salt=host_salt(self.project.host_salt(self.preset.name)),
            energy=EnergyMeter(device, self.sweep.workers_per_device),
            worker=self.note.name,
            warn=self.warn,
            tick=self._tick,
            should_stop=self._should_stop,
        )
        self.queue.device_memory = self.process.environment.device_memory_bytes
        self.concurrency = Concurrency(1, device)
        self._say(device_name=self.process.environment.device, phase=Phase.TRAINING)
        while True:
            self._should_stop()
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
            self._preparing = True
            before = self._reserved()
            self._advance(attempt)
            self._preparing = False
            self.concurrency.added(self._reserved() - before)

    def _choose_concurrency(self, attempt: RunAttempt) -> None:
        config, size = attempt.config, attempt.data.manifest.image_size
        kind = f"{config.network}, {size} px, width {config.recipe.width:g}, batch {config.recipe.batch_size}"
        cache = self.project.concurrency(self.preset.name)
        if kind not in self._concurrency:
            asked, device = self.options.per_gpu, self.process.device
            self._concurrency[kind] = Concurrency.of(asked, device, cache, kind)
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
            if self.active and (entry.run in self._needs_other_threads or not self._can_join(config)):
                continue
            data = self._open_data(entry, config)
            if data is None:
                continue
            lock = FileLock(self.project.run(self.preset.name, entry.run).lock)
            if not lock.acquire():
                if self.sweep_file is None:
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

    def _can_join(self, config: RunConfig) -> bool:
        """Whether a run can share the process: same data, network and batch size, so that memory is known."""
        other = self.active[0].config
        return (config.dataset, config.network, config.recipe.batch_size, config.recipe.width) == (
            other.dataset,
            other.network,
            other.recipe.batch_size,
            other.recipe.width,
        )

    def _open_data(self, entry: SweepRun, config: RunConfig) -> PreparedData | None:
        """The run's data, hashed; None where this machine does not have them, which is no run's fault."""
        key = config.dataset
        if key not in self._data:
            try:
                # One data set at a time stays open: the next needs the memory.
                opened = open_for_training(config, self.project.data)
            except (DataMissingError, DataCorruptError) as error:
                self._exclude_data(config.dataset, str(error))
                return None
            self._data = {key: opened}
        data = self._data[key]
        if entry.data is not None and data_hash(data.manifest.fingerprint(), config) != entry.data:
            self.queue.exclude(
                entry.run, f"{config.dataset} differs from the data that the sweep was planned with"
            )
            return None
        return data

    def _exclude_data(self, dataset: str, reason: str) -> None:
        for entry in self.queue.open:
            if self.registry.parse(entry.run).cell.dataset == dataset:
                self.queue.exclude(entry.run, reason)

    def _begin(
        self, entry: SweepRun, config: RunConfig, data: PreparedData, lock: FileLock
    ) -> RunAttempt | None:
        """Judges the run anew now that nobody else can change it; None where it is settled after all."""
        paths = self.project.run(self.preset.name, entry.run)
        self.queue.close_dead_attempt(entry)
        status = self.queue.status(entry)
        if status not in (RunStatus.FREE, RunStatus.SUSPECT) or (status is RunStatus.SUSPECT and self.active):
            return None

        def begin() -> RunAttempt:
            if moved := quarantine_damaged(paths, entry.run, self.preset.name):
                self.warn(f"{entry.run}: its record is damaged; moved to {moved}")
            return RunAttempt.begin(
                self.process,
                entry,
                self.registry.parse(entry.run),
                config,
                data,
                lock,
                at_once=len(self.active) + 1,
                is_suspect=status is RunStatus.SUSPECT,
            )

        return self._retry_until_writable(begin, f"{entry.run}: starting")

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
            self._tick()
        self.concurrency.end_round()

    def _advance(self, attempt: RunAttempt) -> None:
        """Takes one step of `attempt`; whatever goes wrong ends it, and leaves its neighbours alone."""
        try:
            unfinished = attempt.advance()
            self._stepped = True
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
        text = str(error)
        reason = f"{type(error).__name__}: {(text.strip() or 'no message').splitlines()[0]}"
        if isinstance(error, MemoryError | RuntimeError) and (
            isinstance(error, MemoryError) or is_out_of_memory(error)
        ):
            self._out_of_memory(attempt, reason)
        elif any(sign in text for sign in _DEVICE_LOST) and self.process.device.type == "cuda":
            self._end_all(Outcome.WITHDRAWN, reason)
            self._say(message=f"device lost: {reason}")
            raise DeviceBrokenError(reason)
        elif "CUDA error" in text:
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
            self.warn(
                f"{attempt.run.id}: out of memory: from now on at most {self.concurrency.limit} at once"
            )
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
        if self._errors.add(attempt.run.id, reason) and self.sweep_file is not None:
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
        # What a finished or failed run still holds, the next one may need.
        gc.collect()
        if self.process.device.type == "cuda":
            torch.cuda.empty_cache()

    def _count_company(self) -> None:
        """Tells the runs, the energy meter and the worker's note how many there are now."""
        processes = self.sweep.workers_per_device - 1
        for attempt in self.active:
            attempt.most_at_once = max(attempt.most_at_once, len(self.active) + processes)
        self.process.energy.split_among(len(self.active))
        self._beat()

    def _reserved(self) -> int:
        return torch.cuda.memory_reserved(self.process.device) if self.process.device.type == "cuda" else 0

    def _should_stop(self) -> bool:
        """Whether to stop at the next step. The note says so first: a death from here on is no crash."""
        if self.stop.now and self.note.phase is not Phase.STOPPING:
            self._say(phase=Phase.STOPPING)
        return self.stop.now

    def _tick(self) -> None:
        """A sign of life from the step loop, never from a thread, which would hide a hang."""
        if time.monotonic() >= self._next_beat:
            self._beat()

    def _beat(self) -> None:
        self._next_beat = time.monotonic() + HEARTBEAT
        if self.sweep_file is not None and (asked := stop_request(self.sweep_file)):
            self.stop.drain = True
            self.stop.now = self.stop.now or asked == "now"
        # Ends the process even while a thread holds the interpreter lock for ever.
        limit = HUNG_STARTING if self._preparing else HUNG
        faulthandler.dump_traceback_later(limit, exit=True, file=2)
        self._say()

    def _say(self, **changes: Any) -> None:
        """Writes the worker's note. It is shown, and a disk that takes none is no reason to stop."""
        runs = tuple(attempt.progress for attempt in self.active)
        self.note = replace(self.note, runs=runs, stepped=self._stepped, beat=self.note.beat + 1, **changes)
        with contextlib.suppress(SetupError):
            self.note.write(self.project.workers(self.preset.name))

    def _retry_until_writable(self, write: Callable[[], RunAttempt], what: str) -> RunAttempt | None:
        """Writes as soon as the disk takes it; None if asked to stop before."""
        told = False
        while True:
            try:
                return write()
            except NoSpaceError as error:
                if self.active:
                    return None  # those under way come first
                if not told:
                    self.warn(f"{what} waits until the disk can be written again: {error}")
                told = True
            if self.stop.requested:
                return None
            time.sleep(1.0)
            self._tick()

    def _warn_once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self.warn(line)

    def warn(self, line: str) -> None:
        """Prints the line; a log on a full disk takes none, which is no reason to stop."""
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
