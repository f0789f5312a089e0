"""What the disk tells of a run that is not done: in hand, interrupted, failed, or never begun.

Only reads: not even a lock is taken to see whether it is held.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from repro.commit import attempts_of
from repro.paths import Project, RunPaths
from repro.registry import Run
from repro.scheduling.progress import Progress, read_progress

FRESH = 30.0
"""Seconds after its last report in which a run whose lock cannot be seen counts as running elsewhere."""

_FAILED = "failed: "


class Phase(StrEnum):
    """Where a run without a record that counts is."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    TO_DO = "to do"


@dataclass(frozen=True)
class Trace:
    """`progress` is the last report, `report_age` its age in seconds, `cause` why the last attempt failed.

    `checkpoint` says whether there is one to go on from; `pid` is of the process that holds the run's lock,
    None where it is on another machine.
    """

    phase: Phase
    attempts: int = 0
    progress: Progress | None = None
    report_age: float | None = None
    cause: str | None = None
    ended: float | None = None
    checkpoint: bool = False
    pid: int | None = None

    @property
    def begun(self) -> float:
        """The share of the training, 0 to 1, that need not be done again (or less)."""
        usable = self.checkpoint or self.phase is Phase.RUNNING
        return self.progress.fraction if self.progress and usable else 0.0


def read_traces(runs: Iterable[Run], project: Project, preset: str) -> dict[str, Trace]:
    """A trace for each of `runs` that has ever been begun."""
    holders = lock_holders()
    found = {}
    for run in runs:
        paths = project.run(preset, run.id)
        if paths.work.is_dir() and (trace := _trace(paths, holders)) is not None:
            found[run.id] = trace
    return found


def lock_holders(table: Path = Path("/proc/locks")) -> Mapping[int, Sequence[int]]:
    """The processes that hold kernel locks of this machine, by the locked file's inode.

    Read from the kernel's own table, so that looking never takes a lock. Empty where there is none.
    """
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return {}
    holders: dict[int, list[int]] = {}
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF; one that waits has an arrow as its second word.
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK":
            holders.setdefault(int(words[5].rpartition(":")[2]), []).append(int(words[4]))
    return holders


def _trace(paths: RunPaths, holders: Mapping[int, Sequence[int]]) -> Trace | None:
    attempts = attempts_of(paths)
    pid = _holder(paths.lock, holders)
    if not attempts:
        return Trace(Phase.RUNNING, pid=pid) if pid is not None else None
    last = attempts[-1]
    progress = read_progress(paths.progress)
    age = _age(paths.progress) if progress else None
    if progress and progress.attempt != last.number and pid is not None:
        progress, age = None, None  # an earlier attempt's
    reported_lately = last.outcome == "killed" and age is not None and age < FRESH
    known = Trace(Phase.RUNNING, attempts=len(attempts), progress=progress, report_age=age, pid=pid)
    if pid is not None or reported_lately:
        return known
    failed = last.outcome.startswith(_FAILED)
    # More than the bare word where the scheduler has found out why its worker died.
    otherwise = None if last.outcome == "interrupted" else last.outcome
    return replace(
        known,
        phase=Phase.FAILED if failed else Phase.INTERRUPTED,
        cause=last.outcome.removeprefix(_FAILED) if failed else otherwise,
        ended=last.ended.timestamp() if last.ended else None,
        checkpoint=next(paths.attempts.glob("*/checkpoint-*.pt"), None) is not None,
    )


def _holder(lock: Path, holders: Mapping[int, Sequence[int]]) -> int | None:
    try:
        status = lock.stat()
    except OSError:
        return None
    return next((pid for pid in holders.get(status.st_ino, ()) if _has_open(pid, status)), None)


def _has_open(pid: int, status: os.stat_result) -> bool:
    """Whether the process has that very file open: inodes repeat on other file systems.

    The device number in the kernel's table is not always the one that stat gives (btrfs, overlays).
    """
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(descriptor.stat(), status):
                    return True
    except OSError:
        return True  # another user's process, whose files cannot be seen: the inode must do
    return False


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None
