"""One run in a worker: from its newest checkpoint to its record."""

import contextlib
import json
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import torch

from repro.commands.live_curves import LiveCurves
from repro.commands.provenance import Origin, anonymous, energy_counter, make_record
from repro.commands.stop import Stop
from repro.commit import (
    CommitOutcome,
    attempts_of,
    begin_attempt,
    commit_record,
    note_attempt,
    quarantine_damaged,
    write_whole,
)
from repro.config import Preset, RunConfig
from repro.data.prepared import PreparedData
from repro.errors import (
    DeviceError,
    NoSpaceError,
    ReadOnlyError,
    ReproError,
    RunFailedError,
    RunInterruptedError,
    SetupError,
)
from repro.paths import Project, RunPaths
from repro.record_state import RecordState, RunState, assess_run
from repro.records import Attempt, Environment, RunRecord, Signature
from repro.registry import Run
from repro.signature import code_hash, config_hash, data_hash
from repro.training.checkpoint import Arithmetic, Checkpoint, CheckpointFolder, CheckpointUnfitError
from repro.training.loop import CHECKPOINT_INTERVAL, Progress, TrainedRun, train_run
from repro.training.precision import Precision, choose_precision
from repro.training.techniques import Techniques

BETWEEN_TRIES = 1.0
"""Seconds until a worker tries again to write what a full disk has refused."""

Written = TypeVar("Written")


@dataclass(frozen=True)
class TrainOptions:
    """How this process trains, beside what the recipe says."""

    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    deterministic: bool = False
    switch_on: tuple[str, ...] = ()
    switch_off: tuple[str, ...] = ()
    co_tenants: int = 0
    redo_stale: bool = False
    checkpoint_interval: float = CHECKPOINT_INTERVAL
    log: Literal["tensorboard"] | None = None


class DeviceBrokenError(RunFailedError):
    """A run failed, and CUDA answers every further call of this process with the same error."""


@dataclass(frozen=True)
class Worker:
    """One run in this process, holding its lock."""

    run: Run
    config: RunConfig
    preset: Preset
    project: Project
    paths: RunPaths
    options: TrainOptions
    precision: Precision
    techniques: Techniques
    threads: int
    environment: Environment
    salt: bytes
    say: Callable[[str], None]
    stop: Stop

    def train(self, data: PreparedData) -> None:
        """Trains the run unless it is done, and commits its record.

        Raises RunFailedError, or RunInterruptedError once it was asked to stop.
        """
        fingerprint = data.manifest.fingerprint()
        state = assess_run(self.run, self.config, self.preset, self.project, fingerprint)
        if self._is_good(state):
            self.say(f"{self.run.id}: already done")
            return
        if state.record_state in (RecordState.CORRUPT, RecordState.MISPLACED):
            moved = self._patiently(self._set_aside, "setting a damaged record aside", (NoSpaceError,))
            if moved:
                self.say(f"{state.reason}; moved to {moved}")
        signature = Signature(
            config=config_hash(self.config),
            data=data_hash(fingerprint, self.config),
            code=code_hash(self.config),
        )
        note = self._patiently(self._begin, "starting", (NoSpaceError,))
        folder = self.paths.attempts / str(note.number)
        energy = energy_counter(self.precision.device)
        checkpoints = CheckpointFolder(self.paths.attempts, folder, signature, self._say)
        reporter = _Reporter(self.run.id, note.number, self.paths.progress, self._live_curves(note.number))
        try:
            while True:
                start, precision, techniques = self._choose_start(checkpoints)
                note = note.model_copy(update={"resumed_at_step": start.step if start else 0})
                self._note(note)
                try:
                    trained = train_run(
                        self.config,
                        data,
                        precision,
                        checkpoints=checkpoints,
                        report=reporter,
                        should_stop=lambda: self.stop.now,
                        checkpoint_interval=self.options.checkpoint_interval,
                        start=start,
                        techniques=techniques,
                        say=self._say,
                    )
                    break
                except CheckpointUnfitError as error:
                    assert start is not None
                    checkpoints.pass_over(start.path, str(error))
            done = self._ended(note, "done", energy)
            origin = Origin(
                run=self.run,
                config=self.config,
                preset=self.preset,
                signature=signature,
                environment=self.environment,
                runs_on_device=self.options.co_tenants + 1,
                attempts=tuple(
                    anonymous(attempt, self.salt)
                    for attempt in (*attempts_of(self.paths, before=note.number), done)
                ),
            )
            record = make_record(origin, data, trained, precision)
            outcome = self._commit(record, folder)
        except RunInterruptedError:
            self._note(self._ended(note, "interrupted", energy))
            raise
        except ReproError as error:
            self._note(self._ended(note, f"failed: {type(error).__name__}: {error}", energy))
            raise
        except Exception as error:  # noqa: BLE001 - a bug in one run must not stop the group; it is kept whole
            self._fail(self._ended(note, f"failed: {_reason(error)}", energy), folder, error)
        self._note(done)
        checkpoints.clear()
        reporter.finish(trained)
        text = trained.result.divergence or f"{trained.result.accuracy:.2f} %"
        if outcome is CommitOutcome.ALREADY_DONE:
            text += ", but another process committed it first"
        self.say(f"{self.run.id}: {text}")

    def _ended(self, note: Attempt, outcome: str, energy: float | None) -> Attempt:
        """The attempt as it ended now; `energy` is what the device's counter said at its beginning."""
        after = energy_counter(self.precision.device)
        used = None
        if energy is not None and after is not None:
            used = (after - energy) / (self.options.co_tenants + 1)
        return note.model_copy(update={"ended": datetime.now(UTC), "outcome": outcome, "energy_joules": used})

    def _live_curves(self, attempt: int) -> LiveCurves | None:
        if self.options.log is None:
            return None
        folder = self.project.live_curves(self.preset.name, self.run.id)
        return LiveCurves(folder, attempt, self.config.recipe.evaluate_every, self._say)

    def _is_good(self, state: RunState) -> bool:
        if self.options.redo_stale:
            return state.record_state is RecordState.DONE
        return state.counts

    def _set_aside(self) -> Path | None:
        return quarantine_damaged(self.paths, self.run.id, self.preset.name)

    def _begin(self) -> Attempt:
        """A new attempt, noted as running; by whom, so that a lock that is never freed can be traced."""
        folder = begin_attempt(self.paths)
        note = Attempt(
            number=int(folder.name),
            started=datetime.now(UTC),
            ended=None,
            outcome="running",
            resumed_at_step=0,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        try:
            note_attempt(folder, note)
        except SetupError:
            folder.rmdir()
            raise
        return note

    def _choose_start(self, checkpoints: CheckpointFolder) -> tuple[Checkpoint | None, Precision, Techniques]:
        """The newest checkpoint, and the precision and techniques to go on in.

        A run keeps its arithmetic to the end: threads are reused, and so are the precision and the techniques
        unless one was forced. Where that cannot be had, the run starts anew.
        """
        device = self.precision.device
        torch.set_num_threads(self.threads)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        anew = None, self.precision, self._safe(self.techniques)
        found = checkpoints.newest()
        if found is None:
            return anew
        then, precision, techniques = found.arithmetic, self.precision, self._safe(self.techniques)
        if self.options.precision is None and then.device == device.type:
            with contextlib.suppress(DeviceError):
                precision = choose_precision(device, then.precision)
        if not self.options.switch_on and not self.options.switch_off and then.device == device.type:
            techniques = self._safe(Techniques.of(then.techniques))
        torch.set_num_threads(then.threads)
        now = Arithmetic.here(device, precision.name, techniques.names())
        if now == then:
            return found, precision, techniques
        torch.set_num_threads(self.threads)
        differing = [key for key, value in asdict(now).items() if asdict(then)[key] != value]
        had = ", ".join(f"{key} {_word(asdict(then)[key])} → {_word(asdict(now)[key])}" for key in differing)
        self._say(f"starts anew: its checkpoint was made otherwise ({had})")
        return anew

    def _safe(self, techniques: Techniques) -> Techniques:
        """Without graph and compiler where an attempt at this run has broken its GPU, unless asked for."""
        broken = any("CUDA error" in attempt.outcome for attempt in attempts_of(self.paths))
        risky = [name for name in ("cuda-graph", "compile") if name not in self.options.switch_on]
        if not broken or techniques == (safe := techniques.switched(off=risky)):
            return techniques
        self._say(f"goes on without {' and '.join(risky)}: an attempt before ended in a CUDA error")
        return safe

    def _commit(self, record: RunRecord, folder: Path) -> CommitOutcome:
        """Commits; what hours of training have brought waits for a disk that takes it."""
        signature = record.signature

        def counts(present: RunRecord) -> bool:
            same = (present.signature.config, present.signature.data) == (signature.config, signature.data)
            return same and (not self.options.redo_stale or present.signature.code == signature.code)

        return self._patiently(
            lambda: commit_record(record, self.paths, folder, counts),
            "the finished result",
            (NoSpaceError, ReadOnlyError),
        )

    def _patiently(
        self, write: Callable[[], Written], what: str, refusals: tuple[type[SetupError], ...]
    ) -> Written:
        """Writes as soon as the disk takes it; RunInterruptedError if asked to stop before."""
        told = False
        while True:
            try:
                return write()
            except refusals as error:
                if not told:
                    self._say(f"{what} waits until the disk can be written again: {error}")
                told = True
                if self.stop.now:
                    raise RunInterruptedError(f"stopped while {what} waited for the disk") from None
            time.sleep(BETWEEN_TRIES)

    def _note(self, note: Attempt) -> None:
        """Writes what is known of the attempt; the record is what counts, so a refusal is only said."""
        try:
            note_attempt(self.paths.attempts / str(note.number), note)
        except SetupError as error:
            self._say(f"attempt {note.number}, {note.outcome}, could not be noted: {error}")

    def _fail(self, note: Attempt, folder: Path, error: Exception) -> None:
        where = folder / "error.txt"
        try:
            write_whole(where, traceback.format_exc().encode())
        except SetupError as refusal:
            self._say(f"{traceback.format_exc()}{refusal}")
        self._note(note)
        kind = DeviceBrokenError if "CUDA error" in str(error) else RunFailedError
        raise kind(f"{_reason(error)} (traceback in {where})") from None

    def _say(self, line: str) -> None:
        self.say(f"{self.run.id}: {line}")


class _Reporter:
    """Writes where a run is to its progress file, at most once a second.

    `beat` counts the reports, so that whoever watches sees life without comparing clocks.
    """

    def __init__(self, run_id: str, attempt: int, path: Path, curves: LiveCurves | None) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.path = path
        self.curves = curves
        self.next = 0.0
        self.beat = 0

    def __call__(self, progress: Progress) -> None:
        if self.curves:
            self.curves(progress)
        now = time.monotonic()
        if now >= self.next:
            self.next = now + 1.0
            self._write(asdict(progress))

    def finish(self, trained: TrainedRun) -> None:
        if self.curves:
            self.curves.finish(trained)
        epochs = len(trained.curve)
        self._write(
            {
                "state": "done",
                "epoch": epochs,
                "epochs": epochs,
                "step": 0,
                "steps": 0,
                "images_per_second": trained.images_per_second,
                "train_loss": trained.curve[-1].train_loss,
                "test_accuracy": trained.result.accuracy,
            }
        )

    def _write(self, content: dict[str, object]) -> None:
        self.beat += 1
        content = {"run": self.run_id, "attempt": self.attempt, **content, "beat": self.beat}
        # Only shown, never believed: a disk that takes no report is no reason to stop training.
        with contextlib.suppress(SetupError):
            write_whole(self.path, json.dumps({**content, "time": time.time()}).encode())


def _word(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
