"""Checkpoints: written whole, checked when read, of one recipe, data and code only.

A file is a magic line, the sha256 of what follows, and a torch archive that holds nothing but tensors,
numbers, strings and containers of them. The newest that can be believed wins; a torn or flipped one is
passed over for the one before.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repro.commit import write_whole
from repro.records import Signature

_MAGIC = b"repro checkpoint 1\n"
KEEP = 2


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of a run: read from every attempt, written into `own`, this attempt's folder."""

    attempts: Path
    own: Path
    signature: Signature

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes the state after `step` steps, then removes all but the newest two; SetupError if refused."""
        buffer = io.BytesIO()
        torch.save({"signature": self.signature.model_dump(), "step": step, "state": state}, buffer)
        payload = buffer.getvalue()
        path = self.own / f"checkpoint-{step:08d}.pt"
        write_whole(path, _MAGIC + hashlib.sha256(payload).digest() + payload)
        for old in self._files()[KEEP:]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest valid checkpoint of this very recipe, data and code; None without."""
        for path in self._files():
            content = _read(path)
            if content and content["signature"] == self.signature.model_dump():
                return content["step"], content["state"]
        return None

    def clear(self) -> None:
        """Removes every checkpoint, once the record is committed."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Newest first: by step, then by attempt."""
        found = self.attempts.glob("*/checkpoint-*.pt")
        return sorted(found, key=lambda path: (path.name, int(path.parent.name)), reverse=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + 32
    if not content.startswith(_MAGIC):
        return None
    payload = content[start:]
    if hashlib.sha256(payload).digest() != content[len(_MAGIC) : start]:
        return None
    loaded: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return loaded
