"""One attempt at a run: from its newest checkpoint to its committed record, advanced one step at a time."""

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from repro.attempts import (
    AttemptNote,
    Outcome,
    attempt_numbers,
    last_saved_step,
    new_attempt,
    read_attempts,
    write_attempt,
)
from repro.config import RunConfig
from repro.data.prepared import PreparedData
from repro.errors import DeviceError, NoSpaceError, ReadOnlyError, RunInterruptedError, SetupError
from repro.paths import RunPaths
from repro.records import RunRecord, Signature
from repro.registry import Run
from repro.signature import code_hash, config_hash, data_hash
from repro.storage import FileLock, commit_record, write_whole
from repro.sweep import SweepRun
from repro.training.checkpoint import Checkpoint, CheckpointFolder, CheckpointMismatchError, NumericSettings
from repro.training.device import choose_accelerations, images_to_train
from repro.training.live_curves import LiveCurves
from repro.training.loop import Progress, TrainedRun, Trainer
from repro.training.precision import Accelerations, Precision, choose_precision
from repro.training.process import Process
from repro.training.provenance import anonymous, make_record
from repro.worker_note import RunProgress

RETRY_WRITING = 1.0  # seconds until what a full disk has refused is tried again


class SupersededError(Exception):
    """A newer attempt at the run exists: this one's lock was lost, as some network file systems do."""


class ThreadsDifferError(Exception):
    """The run's checkpoint was made with another number of threads, which runs beside it do not have."""


@dataclass(eq=False)
class RunAttempt:
    """An attempt under way; its process holds the run's `lock`.

    `most_at_once` is the most runs that shared the device, itself included.
    """

    process: Process
    entry: SweepRun
    run: Run
    config: RunConfig
    data: PreparedData
    lock: FileLock
    most_at_once: int
    is_suspect: bool
    waiting_until: float = 0.0  # of time.monotonic: what a full disk refused is tried again then
    resumed_at_step: int = 0

    def __post_init__(self) -> None:
        """Makes the attempt's folder and notes it as running; SetupError if the file system refuses."""
        process, folder = self.process, new_attempt(self.paths)
        self.note = AttemptNote(
            number=int(folder.name),
            started=datetime.now(UTC),
            ended=None,
            outcome=Outcome.RUNNING,
            resumed_at_step=0,
            host=socket.gethostname(),
            pid=os.getpid(),
            worker=process.heartbeat.note.name,
            alone=self.most_at_once == 1,
            device_memory_bytes=process.environment.device_memory_bytes,
        )
        try:
            write_attempt(folder, self.note)
        except SetupError:
            folder.rmdir()
            raise
        self.progress = RunProgress(self.run.id, self.note.number)
        self._energy_at_start = process.energy.share()
        self._steps: Generator[None, None, None] | None = self._train()
        self._stream = torch.cuda.Stream(process.device) if process.device.type == "cuda" else None

    @property
    def paths(self) -> RunPaths:
        """Where the run keeps its files."""
        return self.process.project.run(self.process.preset.name, self.run.id)

    @property
    def folder(self) -> Path:
        """The attempt's own folder."""
        return self.paths.attempts / str(self.note.number)

    @property
    def may_have_company(self) -> bool:
        """Whether other runs may join it: a suspect must first get past where it was."""
        return not self.is_suspect or last_saved_step(self.folder) > self.resumed_at_step

    def can_share_with(self, config: RunConfig) -> bool:
        """Whether a run of `config` may join: same data, network and batch size, so of known memory."""

        def kind(config: RunConfig) -> tuple[object, ...]:
            return config.dataset, config.network, config.recipe.batch_size, config.recipe.width

        return kind(config) == kind(self.config)

    def advance(self) -> bool:
        """Takes one step, with what belongs to it; False once the record is committed.

        The first call builds the network and records the step. Everything that goes wrong is raised.
        """
        assert self._steps is not None
        stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        with stream:
            return next(self._steps, self) is not self

    def end(self, outcome: Outcome, reason: str = "", alone: bool | None = None) -> None:
        """Notes how the attempt ended and releases the run; what it holds of the device is freed."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        self._write(self._ended(outcome, reason, alone))
        self.lock.release()

    def fail(self, error: Exception) -> str:
        """Ends the attempt with a Python error, whose traceback is kept beside it; the error in one line."""
        where = self.folder / "error.txt"
        text = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        try:
            write_whole(where, "".join(traceback.format_exception(error)).encode())
        except SetupError as refused:
            self._warn(f"{''.join(traceback.format_exception(error))}{refused}")
        self.end(Outcome.FAILED, text)
        return f"{text} (traceback in {where})"

    def _train(self) -> Generator[None, None, None]:
        process, every = self.process, self.config.recipe.evaluate_every
        curves = LiveCurves(
            process.options.log, process.project, process.preset.name, self.run.id, every, self._warn
        )
        with contextlib.closing(curves):
            yield from self._train_with(curves)

    def _train_with(self, curves: LiveCurves) -> Generator[None, None, None]:
        fingerprint = self.data.manifest.fingerprint()
        signature = Signature(
            config=config_hash(self.config),
            data=data_hash(fingerprint, self.config),
            code=code_hash(self.config),
        )
        checkpoints = _FencedCheckpoints(
            self.paths.attempts, self.folder, signature, self._warn, fence=self._check_not_superseded
        )
        while True:
            start, precision, accelerations = self._choose_start(checkpoints)
            self.resumed_at_step = start.step if start else 0
            self.note = self.note.model_copy(
                update={"resumed_at_step": self.resumed_at_step, "saved_step": self.resumed_at_step}
            )
            self._write(self.note)
            try:
                trainer = Trainer(
                    self.config,
                    self.data,
                    precision,
                    checkpoints=checkpoints,
                    report=lambda progress: self._report(progress, curves),
                    should_stop=self.process.heartbeat.should_stop,
                    checkpoint_interval=self.process.options.checkpoint_interval,
                    start=start,
                    accelerations=accelerations,
                    warn=self._warn,
                )
                trained = yield from trainer.steps()
                break
            except CheckpointMismatchError as error:
                assert start is not None
                checkpoints.reject(start.path, str(error))
        self._check_not_superseded()
        done = self._ended(Outcome.DONE)
        record = self._record(signature, trained, precision, done)
        committed = yield from self._commit(record)
        self._write(done)
        checkpoints.clear()
        curves.finish(trained)
        text = trained.result.divergence or f"{trained.result.accuracy:.2f} %"
        if not committed:
            text += ", but another process committed it first"
        self.lock.release()
        self.process.warn(f"{self.run.id}: {text}")

    def _report(self, progress: Progress, curves: LiveCurves) -> None:
        curves(progress)
        self.progress = RunProgress(self.run.id, self.note.number, **asdict(progress))
        self.process.heartbeat.tick()

    def _choose_start(
        self, checkpoints: CheckpointFolder
    ) -> tuple[Checkpoint | None, Precision, Accelerations]:
        """The newest checkpoint, and the precision and accelerations to continue in.

        A run keeps its numeric settings to the end: precision and accelerations are the checkpoint's unless
        one was forced, and so are the threads. Where that cannot be, the run restarts.
        """
        process, options = self.process, self.process.options
        device = process.device
        images = images_to_train(self.config, process.project.data)
        chosen = choose_accelerations(
            device, images, options.switch_on, options.switch_off, options.deterministic
        )
        restart = None, process.precision, self._without_risky(chosen)
        if device.type == "cuda" and self.most_at_once == 1:
            torch.cuda.reset_peak_memory_stats(device)
        if self.note.alone:
            torch.set_num_threads(process.threads)
        threads = torch.get_num_threads()  # beside others it is theirs, and stays so
        found = checkpoints.newest()
        if found is None:
            return restart
        then, (_, precision, accelerations) = found.numeric_settings, restart
        if options.precision is None and then.device == device.type:
            with contextlib.suppress(DeviceError):
                precision = choose_precision(device, then.precision)
        if not options.switch_on and not options.switch_off and then.device == device.type:
            accelerations = self._without_risky(Accelerations.of(then.accelerations))
        if then.threads != threads and not self.note.alone:
            raise ThreadsDifferError
        torch.set_num_threads(then.threads)
        now = NumericSettings.here(device, precision.name, accelerations.names())
        if now == then:
            return found, precision, accelerations
        torch.set_num_threads(threads)
        changed = [name for name, value in asdict(now).items() if asdict(then)[name] != value]
        used = ", ".join(f"{_word(asdict(then)[name])} {name}" for name in changed)
        uses = ", ".join(f"{_word(asdict(now)[name])} {name}" for name in changed)
        self._warn(f"restarting from epoch 1: the checkpoint used {used}; this run uses {uses}")
        return restart

    def _without_risky(self, accelerations: Accelerations) -> Accelerations:
        """Without graph and compiler where an attempt at this run has broken its GPU, unless asked for."""
        broken = any("CUDA error" in note.outcome for note in read_attempts(self.paths))
        risky = [name for name in ("cuda-graph", "compile") if name not in self.process.options.switch_on]
        if not broken or accelerations == (safe := accelerations.switched(off=risky)):
            return accelerations
        self._warn(f"training without {' and '.join(risky)}: an earlier attempt ended in a CUDA error")
        return safe

    def _record(
        self, signature: Signature, trained: TrainedRun, precision: Precision, done: AttemptNote
    ) -> RunRecord:
        earlier = [note for note in read_attempts(self.paths) if note.number < self.note.number]
        return make_record(
            self.run,
            self.process.preset,
            self.config,
            signature,
            self.data,
            trained,
            precision,
            self.process.environment,
            runs_on_device=self.most_at_once,
            attempts=tuple(anonymous(note.for_record(), self.process.salt) for note in (*earlier, done)),
        )

    def _commit(self, record: RunRecord) -> Generator[None, None, bool]:
        """Commits; what hours of training have brought waits for a disk that takes it."""
        told = False
        while True:
            try:
                return commit_record(record, self.paths, self.folder, self.entry.record)
            except (NoSpaceError, ReadOnlyError) as error:
                if not told:
                    self._warn(f"the finished result waits until the disk can be written again: {error}")
                told = True
            if self.process.heartbeat.should_stop():
                raise RunInterruptedError("stopped while the finished result waited for the disk")
            self.waiting_until = time.monotonic() + RETRY_WRITING
            self.process.heartbeat.tick()
            yield

    def _check_not_superseded(self) -> None:
        if max(attempt_numbers(self.paths), default=0) > self.note.number:
            raise SupersededError

    def _ended(self, outcome: Outcome, reason: str = "", alone: bool | None = None) -> AttemptNote:
        now, before = self.process.energy.share(), self._energy_at_start
        update = {
            "ended": datetime.now(UTC),
            "outcome": f"{outcome}: {reason}" if reason else str(outcome),
            "energy_joules": None if now is None or before is None else now - before,
            "saved_step": max(self.resumed_at_step, last_saved_step(self.folder)),
            "total_steps": self.progress.steps * self.progress.epochs,
        }
        if alone is not None:
            update["alone"] = alone
        return self.note.model_copy(update=update)

    def _write(self, note: AttemptNote) -> None:
        """Writes the note; the record is what counts, so a refusal is only printed."""
        self.note = note
        try:
            write_attempt(self.folder, note)
        except SetupError as error:
            self._warn(f"attempt {note.number} ({note.outcome}) could not be noted: {error}")

    def _warn(self, line: str) -> None:
        self.process.warn(f"{self.run.id}: {line}")


@dataclass
class _FencedCheckpoints(CheckpointFolder):
    """Checkpoints that are only written while no newer attempt exists; `fence` raises otherwise."""

    fence: Callable[[], None] = lambda: None

    def save(self, step: int, settings: NumericSettings, state: dict[str, object]) -> Path | None:
        self.fence()
        return super().save(step, settings, state)


def _word(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)
