"""Damage done to a results folder between two sweeps, and what the next sweep may make of it.

Every function tells the journal what it changed, so that the audit knows which files are not valid.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from chaos.faults import Damage, Draw
from chaos.sweep import PRESET, Sweep
from repro.records import RunRecord
from repro.registry import Run


@dataclass
class Damages:
    """Damages the files of `sweep`; `reference` has a good record of every run.

    `planted` holds the bytes of every record put where it must not count; those of another recipe,
    which are to be kept, are in `superseded`.
    """

    sweep: Sweep
    reference: dict[str, RunRecord]
    draw: Draw
    planted: set[bytes] = field(default_factory=set)
    superseded: set[bytes] = field(default_factory=set)

    def do(self, kind: Damage, finished: bool) -> bool:
        """Does it to a run drawn at random, with a record or without; False if no run has what it takes."""
        runs = [run for run in self.sweep.runs if self.sweep.paths(run).record.exists() == finished]
        self.draw.random.shuffle(runs)
        return any(self._do(kind, run) for run in runs)

    def _do(self, kind: Damage, run: Run) -> bool:
        if kind.startswith("record"):
            return self._damage_record(kind, run)
        if "checkpoint" in kind:
            return self._damage_checkpoints(kind, run)
        paths = self.sweep.paths(run)
        if kind == "lock files deleted":
            locks = [*self.sweep.results.rglob("lock"), *self.sweep.results.rglob("*.lock")]
            for lock in locks:
                lock.unlink()
            return bool(locks)
        if kind == "worker's note torn":
            return any(map(_tear, self.sweep.context.project.workers(PRESET).glob("*.json")))
        notes = sorted(paths.attempts.glob("*/attempt.json"), key=lambda note: int(note.parent.name))
        return bool(notes) and _tear(notes[-1])

    def _damage_record(self, kind: Damage, run: Run) -> bool:
        good = self.reference[run.id].to_json().encode()
        if kind == "record torn":
            bad = good[: self.draw.random.randrange(1, len(good) - 1)]
        elif kind == "record empty":
            bad = b""
        elif kind == "record with a flipped bit":
            bad = self._flipped(good)
        elif kind == "record with an edited number":
            bad = _edited(good)
        elif kind == "record of another run":
            other = self.draw.random.choice([name for name in self.reference if name != run.id])
            bad = self.reference[other].to_json().encode()
        else:
            record = self.reference[run.id]
            other_recipe = record.signature.model_copy(update={"config": self._hash()})
            bad = record.model_copy(update={"signature": other_recipe}).to_json().encode()
            self.superseded.add(bad)
        if kind != "record of another recipe":
            self.planted.add(bad)
        path = self.sweep.paths(run).record
        self.sweep.interposer.say("damage", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, bad)
        return True

    def _damage_checkpoints(self, kind: Damage, run: Run) -> bool:
        files = checkpoints(self.sweep.paths(run).attempts)
        if kind == "checkpoint of another run":
            return self._foreign_checkpoint(run, files)
        if not files or (kind == "both checkpoints damaged" and len(files) < 2):
            return False
        for file in files if kind == "both checkpoints damaged" else files[:1]:
            content = file.read_bytes()
            if kind == "checkpoint with a flipped bit" or (len(files) > 1 and file == files[1]):
                bad = self._flip(content)
            else:
                bad = content[: self.draw.random.randrange(len(content))]
            self.sweep.interposer.say("damage", file)
            _replace(file, bad)
        return True

    def _foreign_checkpoint(self, run: Run, own: list[Path]) -> bool:
        others = [
            file
            for other in self.sweep.runs
            if other != run
            for file in checkpoints(self.sweep.paths(other).attempts)[:1]
        ]
        if not own or not others:
            return False
        source = self.draw.random.choice(others)
        # A step ahead of its own, or it would not be the first to be tried.
        target = own[0].with_name(f"checkpoint-{step_of(own[0]) + 1:08d}.pt")
        self.sweep.interposer.say("damage", target)
        _replace(target, source.read_bytes())
        return True

    def _flipped(self, content: bytes) -> bytes:
        """With one bit changed that matters: an `E` for an `e` leaves a number as it was."""
        while True:
            bad = self._flip(content)
            try:
                if json.loads(bad) != json.loads(content):
                    return bad
            except ValueError:
                return bad

    def _flip(self, content: bytes) -> bytes:
        place = self.draw.random.randrange(len(content))
        return (
            content[:place]
            + bytes([content[place] ^ 1 << self.draw.random.randrange(8)])
            + content[place + 1 :]
        )

    def _hash(self) -> str:
        return f"{self.draw.random.getrandbits(256):064x}"


def checkpoints(attempts: Path) -> list[Path]:
    """A run's checkpoints, the newest first: of the latest attempt, and of the most steps."""
    return sorted(attempts.glob("*/checkpoint-*.pt"), key=age, reverse=True)


def age(checkpoint: Path) -> tuple[int, int]:
    """Larger for the newer of two checkpoints."""
    return int(checkpoint.parent.name), step_of(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(checkpoint.stem.partition("-")[2])


def _edited(record: bytes) -> bytes:
    """One more test image right than there were: a whole and plausible record."""
    content = json.loads(record)
    content["result"]["correct"] += 1
    content["result"]["accuracy"] = 100 * content["result"]["correct"] / content["result"]["total"]
    return json.dumps(content, indent=1).encode()


def _tear(file: Path) -> bool:
    if not file.exists() or file.stat().st_size < 2:
        return False
    _replace(file, file.read_bytes()[: file.stat().st_size // 2])
    return True


def _replace(path: Path, content: bytes) -> None:
    """A new file under the name: an attempt has a link to its record, and that is to keep its content."""
    draft = path.with_name(f".chaos-{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
