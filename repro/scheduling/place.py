"""A device and its worker: whether it hangs, what its end means, and when the device gets another one."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from repro.errors import SetupError, UsageError
from repro.scheduling.devices import Device
from repro.scheduling.durations import format_seconds
from repro.scheduling.executor import JobEnd, WorkerJob, last_line
from repro.signals import Stage
from repro.worker_note import DEVICE_BUSY, Phase, WorkerNote

MAX_DEATHS_AT_START = 3  # of a device's workers before their first run: the device is left out
MAX_DEVICE_ERRORS = 5  # likewise, at a run's first step: one run that breaks any device causes three
LONGEST_BACKOFF = 300.0  # seconds between two starts on a device

HUNG = 600.0  # seconds without a sign of life after which a worker is killed
HUNG_STARTING = 1800.0  # likewise before its first step: imports, compiling, capturing
LINGERING = 30.0  # likewise after its last word: Slurm may not have noticed that its own daemon was killed


@dataclass
class Place:
    """A device and its worker. `left` are runs that it cannot train; `out` says why it gets no more workers.

    `asked` is the last stop request that was passed on, `kill_at` (of time.monotonic) when its time is over.
    """

    device: Device
    job: WorkerJob | None = None
    note: WorkerNote | None = None
    left: dict[str, str] = field(default_factory=dict)
    out: str | None = None
    starts: int = 0
    not_before: float = 0.0
    asked: Stage = Stage.GO_ON
    kill_at: float | None = None
    killed_for: str = ""
    _beats: dict[str, int] = field(default_factory=dict)
    _silent: float = 0.0
    _starts_in_vain: int = 0  # in a row, without a step of training
    _deaths_at_start: int = 0
    _told_busy: bool = False
    _device_errors: int = 0  # in a row, at the first step of a run

    def begin(self, job: WorkerJob) -> None:
        """A worker is about to be started."""
        self.job, self.note, self._beats, self._silent = job, None, {}, 0.0
        self.asked, self.kill_at, self.killed_for = Stage.GO_ON, None, ""

    def update(self, notes: Sequence[WorkerNote], silence: float) -> None:
        """Takes note of what the worker says; `silence` is the time since the last look, if nothing changed.

        A job that its cluster started again has a note of each start: the one that changes is alive.
        """
        changed = [note for note in notes if self._beats.get(note.name) != note.beat]
        self._beats = {note.name: note.beat for note in notes}
        if changed:
            self.note, self._silent = changed[-1], 0.0
        else:
            self._silent += silence

    def why_hung(self) -> str:
        """Why the worker is to be killed for its silence; empty where it is not."""
        if self.note and self.note.phase is Phase.ENDED:
            return "ended, but its job did not" if self._silent > LINGERING else ""
        limit = HUNG if self.note and self.note.stepped else HUNG_STARTING
        return f"hung: no sign of life for {format_seconds(limit)}" if self._silent > limit else ""

    def end(self, how: JobEnd, folder: Path, first_backoff: float, has_others: bool) -> list[str]:
        """The worker has ended, with its note in `folder`; what to tell the user.

        `first_backoff` is the wait, in seconds, before a second start in vain, doubled each time. Without
        other devices none is left out for errors at a run's first step: there equal errors stop the sweep.
        """
        job, label = self.job, self.device.label
        assert job is not None
        # What it wrote last may have come after the last look.
        note = (WorkerNote.read(folder / f"{self.note.name}.json") if self.note else None) or self.note
        self.job = self.note = None
        death = self.killed_for or how.death
        if note is not None:
            self.left = dict(note.left)
            _close(note, folder, death, how.blameless)
        if note is not None and note.stepped:
            self._deaths_at_start = self._device_errors = self._starts_in_vain = 0
            self.not_before = 0.0
        elif self.asked is Stage.GO_ON:
            self._starts_in_vain += 1
            backoff = first_backoff * 2 ** min(self._starts_in_vain, 16)
            self.not_before = time.monotonic() + min(LONGEST_BACKOFF, backoff)
        if self.asked is not Stage.GO_ON:
            return []
        if how.blameless:
            return [f"{label}: {death}"]
        if note is None and how.code == 0:
            return []  # it found nothing to take before it had a note: others have what is left
        if note is not None and note.message == DEVICE_BUSY:
            told, self._told_busy = self._told_busy, True
            return [] if told else [f"{label}: {DEVICE_BUSY}; waiting for it"]
        lines = []
        if note is not None and note.message:
            self.out = note.message
        elif note is not None and note.phase is Phase.ENDED:
            self._device_errors += bool(note.device_error) and not note.stepped
            if self._device_errors >= MAX_DEVICE_ERRORS and has_others:
                self.out = note.device_error
        else:
            words = last_line(job.log)
            what = death or (f"ended with exit code {how.code}" if how.code is not None else "is gone")
            shown = f": {words}" if words and not death else ""
            lines.append(f"worker on {label} {what}{shown} (log: {job.log})")
            # Before its first run none is to blame. Three times: a full disk may have room again.
            self._deaths_at_start += note is None or note.phase is not Phase.TRAINING
            if self._deaths_at_start >= MAX_DEATHS_AT_START or how.code == UsageError.exit_code:
                self.out = words or what
        return [*lines, f"{label} is no longer used: {self.out}"] if self.out else lines


def _close(note: WorkerNote, folder: Path, death: str, blameless: bool) -> None:
    """Writes how a worker died where the next one looks; the note of one that ended by itself goes."""
    with contextlib.suppress(SetupError, OSError):
        if note.phase is Phase.ENDED or not note.runs:
            (folder / f"{note.name}.json").unlink(missing_ok=True)
        elif death or blameless:
            replace(note, death=death, blameless=blameless).write(folder)
