"""Checkpoints: written atomically, validated when read, and tied to one recipe, data set and code version.

A file is a magic line, the sha256 of the payload, and the payload: a torch archive that holds nothing but
tensors, numbers, strings and containers of them. The newest valid file is used; one that is truncated,
damaged or cannot be loaded is rejected in favour of the one before.

A checkpoint only saves work. If one cannot be written (a full disk), a warning is given and training
continues.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from repro.errors import SetupError
from repro.records import Signature
from repro.storage import write_whole

_MAGIC = b"repro checkpoint 3\n"
KEEP = 2  # the newest, and one in case the newest turns out to be damaged
# What reading a file of arbitrary content may raise; none of it says anything about the run.
_UNREADABLE = (
    OSError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    pickle.UnpicklingError,
)


class CheckpointMismatchError(ValueError):
    """A checkpoint cannot be read, or does not fit the run whose signature it carries."""


@dataclass(frozen=True)
class NumericSettings:
    """What a run's rounding depends on besides recipe, data and code; constant within a run."""

    torch_version: str
    device: str
    precision: str
    threads: int
    deterministic: bool
    accelerations: tuple[str, ...]

    @classmethod
    def here(cls, device: torch.device, precision: str, accelerations: tuple[str, ...]) -> "NumericSettings":
        """Those of this process."""
        return cls(
            torch_version=str(torch.__version__),
            device=device.type,
            precision=precision,
            threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            accelerations=accelerations,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps (over all epochs), and the numeric settings those steps were taken with."""

    path: Path
    step: int
    numeric_settings: NumericSettings
    state: dict[str, Any] = field(repr=False)


@dataclass
class CheckpointFolder:
    """The checkpoints of one run: read from the folders of all `attempts`, written to `own`, this attempt's.

    `warn` is called with a line for each rejected file, and once when the disk refuses a checkpoint.
    """

    attempts: Path
    own: Path
    signature: Signature
    warn: Callable[[str], None] = lambda line: None
    _refused: bool = False
    _rejected: list[Path] = field(default_factory=list)

    def save(self, step: int, settings: NumericSettings, state: dict[str, Any]) -> Path | None:
        """Writes the state after `step` steps, then removes all but the newest two; None if refused."""
        buffer = io.BytesIO()
        content = {
            "signature": self.signature.model_dump(),
            "step": step,
            "numeric_settings": asdict(settings),
            "state": state,
        }
        torch.save(content, buffer)
        payload = buffer.getbuffer()
        path = self.own / f"checkpoint-{step:08d}.pt"
        try:
            write_whole(path, _MAGIC, hashlib.sha256(payload).digest(), payload)
        except SetupError as error:
            if not self._refused:
                self.warn(f"training continues without a new checkpoint: {error}")
            self._refused = True
            return None
        self._refused = False
        kept = [file for file in self._files() if file not in self._rejected][:KEEP]
        for old in (*self._files(), *self._partial_files()):
            if old not in kept:
                old.unlink(missing_ok=True)
        return path

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint with this very signature; None if there is none."""
        for path in self._files():
            if path in self._rejected:
                continue
            try:
                signature, checkpoint = _read(path)
            except _UNREADABLE as error:
                self.reject(path, str(error) or type(error).__name__)
                continue
            if signature == self.signature.model_dump():
                return checkpoint
        return None

    def reject(self, path: Path, reason: str) -> None:
        """Ignores `path` from now on. It is deleted once the next checkpoint has been written."""
        self._rejected.append(path)
        self.warn(f"rejected checkpoint {path}: {reason.splitlines()[0]}")

    def clear(self) -> None:
        """Removes every checkpoint; for when the record is committed."""
        for path in (*self._files(), *self._partial_files()):
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Newest first: by attempt, then by step, since a later attempt may have restarted from step 0."""
        found = self.attempts.glob("*/checkpoint-*.pt")
        return sorted(found, key=lambda path: (int(path.parent.name), path.name), reverse=True)

    def _partial_files(self) -> list[Path]:
        """Temporary files that killed attempts left behind."""
        return list(self.attempts.glob("*/.checkpoint-*.pt.*"))


def _read(path: Path) -> tuple[object, Checkpoint]:
    """The signature in a file and its checkpoint; raises one of _UNREADABLE if it holds none."""
    content = memoryview(path.read_bytes())
    start = len(_MAGIC) + hashlib.sha256().digest_size
    if content[: len(_MAGIC)] != _MAGIC:
        raise CheckpointMismatchError("not a checkpoint of this version")
    payload = content[start:]
    if hashlib.sha256(payload).digest() != content[len(_MAGIC) : start]:
        raise CheckpointMismatchError("truncated or damaged")
    # weights_only: torch's restricted unpickler, which refuses anything that would run code.
    loaded = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    settings = NumericSettings(**loaded["numeric_settings"])
    return loaded["signature"], Checkpoint(path, loaded["step"], settings, loaded["state"])
