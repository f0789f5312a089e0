"""What each worker says of itself, once per second, and who reads it: status, the supervisor, a next worker.

<results>/<preset>/.work/workers/HOST-PID-START.json
"""

import json
import os
import socket
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from repro.errors import printable
from repro.paths import read_file
from repro.storage import make_folder, write_whole

DEVICE_BUSY = "another worker has this device"  # a worker's message when it finds the device's lock taken


@dataclass(frozen=True)
class RunProgress:
    """Where a run in training is: `epoch` (0-indexed) is in progress, `step` of its `steps` are done.

    `test_accuracy` in percent is of the last evaluation.
    """

    run: str
    attempt: int
    state: str = "starting"
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    images_per_second: float | None = None
    train_loss: float | None = None
    test_accuracy: float | None = None

    @property
    def fraction(self) -> float:
        """How much of the training is done, 0 to 1."""
        within = self.step / self.steps if self.steps else 0.0
        return min(1.0, (self.epoch + within) / self.epochs) if self.epochs else 0.0

    @property
    def words(self) -> tuple[str, str, str]:
        """`epoch 2/3`, `160 images/s`, `12.3 %`; empty where it is not known yet."""
        return (
            f"epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}" if self.epochs else "",
            f"{self.images_per_second:,.0f} images/s" if self.images_per_second else "",
            f"{self.test_accuracy:.1f} %" if self.test_accuracy is not None else "",
        )


class Phase(StrEnum):
    """What a worker does."""

    STARTING = "starting"  # imports, CUDA context, device lock, self-test: no run is to blame for a death
    TRAINING = "training"
    STOPPING = "stopping"  # asked to: whatever dies from here on was interrupted
    ENDED = "ended"


@dataclass(frozen=True)
class WorkerNote:
    """What a worker says of itself; it is shown, and tells who shared a process that died.

    `job` is its supervisor's name for it, `beat` rises with each sign of life, `left` are the runs that its
    device cannot train, with reasons. `death` is written by a supervisor that saw it die: how, and whether
    its runs are free of blame (a lost node, preemption). `device_error` is what CUDA said where it ended the
    process.
    """

    name: str
    host: str
    pid: int
    started: int
    sweep: str
    job: str = ""
    device: str = ""
    device_name: str = ""
    phase: Phase = Phase.STARTING
    beat: int = 0
    runs: tuple[RunProgress, ...] = ()
    stepped: bool = False
    left: dict[str, str] = field(default_factory=dict)
    message: str = ""
    device_error: str = ""
    death: str = ""
    blameless: bool = False

    @property
    def is_alive(self) -> bool | None:
        """Whether its process is there, and is the same; None on another machine, where nobody can tell."""
        if self.host != socket.gethostname():
            return None
        return process_start(self.pid) == self.started

    def write(self, folder: Path) -> None:
        """Replaces the note in `folder`; SetupError if the file system refuses."""
        make_folder(folder)
        # Not durable: it says what is true now, and after a power cut nothing of it is.
        write_whole(folder / f"{self.name}.json", json.dumps(asdict(self)).encode(), durable=False)

    @classmethod
    def read(cls, path: Path) -> "WorkerNote | None":
        """The note at `path`; None where there is none, or where it cannot be read."""
        try:
            content = printable(json.loads(read_file(path)))
            runs = tuple(RunProgress(**run) for run in content.pop("runs"))
            return cls(**{**content, "runs": runs, "phase": Phase(content["phase"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def new_worker_note(sweep: str, job: str, device: str) -> WorkerNote:
    """The first note of this process."""
    host, pid = socket.gethostname(), os.getpid()
    started = process_start(pid) or 0
    return WorkerNote(f"{host}-{pid}-{started}", host, pid, started, sweep, job, device)


def read_worker_notes(folder: Path) -> tuple[WorkerNote, ...]:
    """The notes of all workers, by name."""
    return tuple(
        note for path in sorted(folder.glob("*.json")) if (note := WorkerNote.read(path)) is not None
    )


def process_start(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None where there is none.

    A pid is used again after a while; together with its start it is not.
    """
    try:
        # The name, in parentheses, may hold blanks: the fields are counted behind it.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] == "Z" else int(words[19])
