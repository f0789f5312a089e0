"""Checkpoints: written whole, checked when read, of one recipe, data and code only.

A file is a magic line, the sha256 of what follows, and a torch archive that holds nothing but tensors,
numbers, strings and containers of them. The newest that can be believed wins; a torn or flipped one, or one
that cannot be loaded, is passed over for the one before.

A checkpoint only saves work: one that cannot be written (a full disk) is said, and training goes on.
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

_MAGIC = b"repro checkpoint 2\n"
KEEP = 2
# What reading a file with arbitrary content may raise; none of it says anything about the run.
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


class CheckpointUnfitError(ValueError):
    """A checkpoint cannot be read, or does not fit the run that it says it is of."""


@dataclass(frozen=True)
class Arithmetic:
    """What a run's rounding depends on beside recipe, data and code; a run keeps one from start to end."""

    torch_version: str
    device: str
    precision: str
    threads: int
    deterministic: bool
    techniques: tuple[str, ...]

    @classmethod
    def here(cls, device: torch.device, precision: str, techniques: tuple[str, ...]) -> "Arithmetic":
        """This process's."""
        return cls(
            torch_version=str(torch.__version__),
            device=device.type,
            precision=precision,
            threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            techniques=techniques,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps, and the arithmetic in which it got there."""

    path: Path
    step: int
    arithmetic: Arithmetic
    state: dict[str, Any] = field(repr=False)


@dataclass
class CheckpointFolder:
    """The checkpoints of a run: read from every attempt, written into `own`, this attempt's folder.

    `say` hears of one that was passed over, and once of a disk that takes none.
    """

    attempts: Path
    own: Path
    signature: Signature
    say: Callable[[str], None] = lambda line: None
    _refused: bool = False
    _passed_over: list[Path] = field(default_factory=list)

    def save(self, step: int, arithmetic: Arithmetic, state: dict[str, Any]) -> Path | None:
        """Writes the state after `step` steps, then removes all but the newest two; None if refused."""
        buffer = io.BytesIO()
        content = {
            "signature": self.signature.model_dump(),
            "step": step,
            "arithmetic": asdict(arithmetic),
            "state": state,
        }
        torch.save(content, buffer)
        payload = buffer.getbuffer()
        path = self.own / f"checkpoint-{step:08d}.pt"
        try:
            write_whole(path, _MAGIC, hashlib.sha256(payload).digest(), payload)
        except SetupError as error:
            if not self._refused:
                self.say(f"training goes on without a new checkpoint: {error}")
            self._refused = True
            return None
        self._refused = False
        kept = [file for file in self._files() if file not in self._passed_over][:KEEP]
        for old in (*self._files(), *self._halves()):
            if old not in kept:
                old.unlink(missing_ok=True)
        return path

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint of this very recipe, data and code; None without."""
        for path in self._files():
            if path in self._passed_over:
                continue
            try:
                signature, checkpoint = _read(path)
            except _UNREADABLE as error:
                self.pass_over(path, str(error) or type(error).__name__)
                continue
            if signature == self.signature.model_dump():
                return checkpoint
        return None

    def pass_over(self, path: Path, reason: str) -> None:
        """From now on `path` is no checkpoint; it is removed when the next one has been written."""
        self._passed_over.append(path)
        self.say(f"passed over {path}: {reason.splitlines()[0]}")

    def clear(self) -> None:
        """Removes every checkpoint, once the record is committed."""
        for path in (*self._files(), *self._halves()):
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Newest first: by attempt, then by step. A later attempt that began anew is the one that counts."""
        found = self.attempts.glob("*/checkpoint-*.pt")
        return sorted(found, key=lambda path: (int(path.parent.name), path.name), reverse=True)

    def _halves(self) -> list[Path]:
        """What killed attempts had not finished writing."""
        return list(self.attempts.glob("*/.checkpoint-*.pt.*"))


def _read(path: Path) -> tuple[object, Checkpoint]:
    """The signature in a file and the checkpoint; one of _UNREADABLE where it holds none."""
    content = memoryview(path.read_bytes())
    start = len(_MAGIC) + hashlib.sha256().digest_size
    if content[: len(_MAGIC)] != _MAGIC:
        raise CheckpointUnfitError("not a checkpoint of this version")
    payload = content[start:]
    if hashlib.sha256(payload).digest() != content[len(_MAGIC) : start]:
        raise CheckpointUnfitError("torn or damaged")
    loaded = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    arithmetic = Arithmetic(**loaded["arithmetic"])
    return loaded["signature"], Checkpoint(path, loaded["step"], arithmetic, loaded["state"])
