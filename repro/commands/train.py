"""`repro train RUN_ID…`: the one command that every executor launches.

Trains runs in order in one process. Each commits on its own; a failed one is noted and the next goes on.
SIGTERM and SIGUSR1 write a checkpoint at the next step and exit 75, SIGUSR2 ends after the run in progress,
SIGINT is SIGTERM with exit code 130.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from repro.commit import (
    CommitOutcome,
    RunBusyError,
    attempts_of,
    begin_attempt,
    commit_record,
    note_attempt,
    run_lock,
    set_aside,
    write_whole,
)
from repro.data.loader import subset
from repro.data.prepared import PreparedData
from repro.data.training_set import open_for_training
from repro.errors import DeviceError, ReproError, RunInterruptedError
from repro.machine import processor_name
from repro.paths import Project, RunPaths
from repro.recipes import Preset, RunConfig
from repro.records import Attempt, DataSummary, Provenance, RunRecord, Signature
from repro.registry import Registry, Run
from repro.signature import code_hash, config_hash, data_hash
from repro.standings import RunState, Standing, assess_run
from repro.training.checkpoint import CheckpointFolder
from repro.training.loop import CHECKPOINT_INTERVAL, Progress, TrainedRun, train_run
from repro.training.precision import Precision, choose_precision

GRACE_AFTER_PARENT = 8.0
"""Seconds that a worker has for its checkpoint once its scheduler has died."""


@dataclass(frozen=True)
class TrainOptions:
    """How this process trains, beside what the recipe says."""

    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    deterministic: bool = False
    co_tenants: int = 0
    redo_stale: bool = False
    checkpoint_interval: float = CHECKPOINT_INTERVAL


class Stop:
    """What signals have asked for: stop at the next step, or after the run in progress."""

    def __init__(self) -> None:
        self.now = False
        self.after_run = False
        self.interrupted = False

    def listen(self) -> None:
        """Installs the handlers; in the main thread only."""
        signal.signal(signal.SIGTERM, self._stop_now)
        signal.signal(signal.SIGUSR1, self._stop_now)
        signal.signal(signal.SIGUSR2, self._stop_after_run)
        signal.signal(signal.SIGINT, self._interrupt)

    def _stop_now(self, number: int, frame: object) -> None:
        self.now = True

    def _stop_after_run(self, number: int, frame: object) -> None:
        self.after_run = True

    def _interrupt(self, number: int, frame: object) -> None:
        self.now = self.interrupted = True


def train(
    run_ids: Sequence[str],
    registry: Registry,
    preset: Preset,
    project: Project,
    options: TrainOptions,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    stop: Stop | None = None,
) -> int:
    """Trains the runs in order and returns the exit code: 0, 1 if one failed, 75 or 130 if stopped."""
    stop = stop or Stop()
    runs = [registry.parse(run_id) for run_id in run_ids]
    configs = [registry.config(run, preset) for run in runs]
    threads = options.threads or preset.threads
    torch.set_num_threads(threads)
    device = choose_device(options.device)
    precision = choose_precision(device, options.precision)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not options.deterministic
    failed = 0
    data: dict[str, PreparedData] = {}
    for run, config in zip(runs, configs, strict=True):
        if stop.now or stop.after_run:
            return 130 if stop.interrupted else 75
        paths = project.run(preset.name, run.id)
        try:
            with run_lock(paths):
                # One data set at a time stays open: a group shares it, and the next needs the memory.
                if config.dataset not in data:
                    data = {config.dataset: open_for_training(config, project.data)}
                worker = _Worker(run, config, preset, project, paths, options, precision, threads, say, stop)
                worker.train(data[config.dataset])
        except RunBusyError:
            say(f"{run.id}: another process is training it; skipped")
        except RunInterruptedError as interruption:
            say(f"{run.id}: {interruption}; started again it goes on from there")
            return 130 if stop.interrupted else 75
        except _RunFailedError as failure:
            failed += 1
            say(f"{run.id}: failed: {failure}")
    return 1 if failed else 0


class _RunFailedError(Exception):
    """One run failed; its attempt's folder has the traceback."""


@dataclass(frozen=True)
class _Worker:
    """One run in this process, holding its lock."""

    run: Run
    config: RunConfig
    preset: Preset
    project: Project
    paths: RunPaths
    options: TrainOptions
    precision: Precision
    threads: int
    say: Callable[[str], None]
    stop: Stop

    def train(self, data: PreparedData) -> None:
        fingerprint = data.manifest.fingerprint()
        state = assess_run(self.run, self.config, self.preset, self.project, fingerprint)
        if self._is_good(state):
            self.say(f"{self.run.id}: already done")
            return
        if state.standing in (Standing.CORRUPT, Standing.FOREIGN):
            moved = set_aside(self.paths.record, self.paths.quarantine, state.reason)
            self.say(f"{state.reason}; moved to {moved}")
        signature = Signature(
            config=config_hash(self.config), data=data_hash(fingerprint, self.config), code=code_hash()
        )
        folder = begin_attempt(self.paths)
        checkpoints = CheckpointFolder(self.paths.attempts, folder, signature)
        started = datetime.now(UTC)
        found = checkpoints.newest()
        note = Attempt(
            number=int(folder.name),
            started=started,
            ended=None,
            outcome="running",
            resumed_at_step=found[0] if found else 0,
        )
        note_attempt(folder, note)
        reporter = _Reporter(self.run.id, int(folder.name), self.paths.progress)
        try:
            trained = train_run(
                self.config,
                data,
                self.precision,
                checkpoints=checkpoints,
                report=reporter,
                should_stop=lambda: self.stop.now,
                checkpoint_interval=self.options.checkpoint_interval,
            )
        except RunInterruptedError:
            self._end(folder, note, "interrupted")
            raise
        except ReproError as error:
            self._end(folder, note, f"failed: {type(error).__name__}: {error}")
            raise
        except Exception as error:  # noqa: BLE001 - a bug in one run must not stop the group; it is kept whole
            write_whole(folder / "error.txt", traceback.format_exc().encode())
            reason = f"{type(error).__name__}: {_first_line(error)}"
            self._end(folder, note, f"failed: {reason}")
            raise _RunFailedError(f"{reason} (traceback in {folder / 'error.txt'})") from None
        done = self._end(folder, note, "done")
        record = self._record(data, signature, trained, started, done)
        outcome = commit_record(
            record,
            self.paths,
            folder,
            counts=lambda present: (
                (present.signature.config, present.signature.data) == (signature.config, signature.data)
                and (not self.options.redo_stale or present.signature.code == signature.code)
            ),
        )
        checkpoints.clear()
        reporter.finish(trained)
        accuracy = trained.result.accuracy
        text = f"diverged in epoch {trained.result.diverged_in}" if accuracy is None else f"{accuracy:.2f} %"
        if outcome is CommitOutcome.ALREADY_DONE:
            text += ", but another process committed it first"
        self.say(f"{self.run.id}: {text}")

    def _is_good(self, state: RunState) -> bool:
        if self.options.redo_stale:
            return state.standing is Standing.DONE
        return state.counts

    def _end(self, folder: Path, note: Attempt, outcome: str) -> Attempt:
        ended = note.model_copy(update={"ended": datetime.now(UTC), "outcome": outcome})
        note_attempt(folder, ended)
        return ended

    def _record(
        self,
        data: PreparedData,
        signature: Signature,
        trained: TrainedRun,
        started: datetime,
        done: Attempt,
    ) -> RunRecord:
        manifest = data.manifest
        train_arrays, test_arrays = subset(data, self.config.recipe)
        commit, dirty = git_state(self.project.root)
        attempts = attempts_of(self.paths)
        return RunRecord(
            run=self.run.id,
            preset=self.preset.name,
            signature=signature,
            config=self.config,
            data=DataSummary(
                name=manifest.name,
                title=manifest.title,
                generated=manifest.generated,
                partial=manifest.partial,
                sources=manifest.sources,
                preparation_version=manifest.preparation_version,
                classes=manifest.classes,
                train_images=len(train_arrays.labels),
                test_images=len(test_arrays.labels),
                mean=manifest.mean,
                std=manifest.std,
            ),
            result=trained.result,
            curve=trained.curve,
            probes=trained.probes,
            provenance=Provenance(
                git_commit=commit,
                git_dirty=dirty,
                python=platform.python_version(),
                versions={name: version(name) for name in ("torch", "numpy", "scaled-bn-repro")},
                device=device_name(self.precision.device),
                precision=self.precision.name,
                threads=self.threads,
                deterministic=self.options.deterministic,
                techniques=trained.techniques,
                co_tenants=self.options.co_tenants,
                images_per_second=trained.images_per_second,
                peak_memory_bytes=peak_memory(self.precision.device),
                attempts=attempts,
                started=min((attempt.started for attempt in attempts), default=started),
                ended=done.ended or datetime.now(UTC),
            ),
        )


class _Reporter:
    """Writes where a run is to its progress file, at most once a second."""

    def __init__(self, run_id: str, attempt: int, path: Path) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.path = path
        self.next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self.next:
            self.next = now + 1.0
            self._write(asdict(progress))

    def finish(self, trained: TrainedRun) -> None:
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
        content = {"run": self.run_id, "attempt": self.attempt, **content, "time": time.time()}
        write_whole(self.path, json.dumps(content).encode())


def choose_device(asked: str | None) -> torch.device:
    """The device asked for, else the first CUDA device, else the CPU; DeviceError if it is not there."""
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(asked)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"--device {asked}: torch {torch.__version__} finds no CUDA device; "
            "`nvidia-smi` shows whether the driver does, and whether torch's build fits the card"
        )
    if device.type not in ("cuda", "cpu"):
        raise DeviceError(f"--device {asked}: expected cpu, cuda or cuda:N")
    return device


def device_name(device: torch.device) -> str:
    """`NVIDIA H200`, or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU at most, or this process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether code or experiments differ from it; (None, None) without git."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "repro", "experiments", "setup.cfg")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changed)


def die_with_parent(stop: Stop) -> None:
    """Asks the kernel for SIGTERM when the scheduler that started this process dies (Linux).

    The checkpoint gets a few seconds; then the process ends whatever it is doing, so that no orphan
    keeps a device busy. REPRO_DIE_WITH_PARENT holds the scheduler's pid.
    """
    parent = os.environ.get("REPRO_DIE_WITH_PARENT")
    if parent is None:
        return
    set_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        # Covers a parent that died before prctl as well as a main thread that hangs.
        stop.now = True
        time.sleep(GRACE_AFTER_PARENT)
        os._exit(75)

    threading.Thread(target=watch, daemon=True).start()


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
