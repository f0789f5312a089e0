"""A worker's signs of life: its note, its watchdog, and the stop requests that it reads meanwhile."""

import contextlib
import faulthandler
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from repro.errors import SetupError
from repro.signals import Stop
from repro.sweep import stop_request
from repro.worker_note import Phase, RunProgress, WorkerNote

INTERVAL = 1.0  # seconds between two notes
HUNG = 600.0  # seconds without a step or a test batch after which the process ends itself
HUNG_PREPARING = 1800.0  # likewise while it starts, compiles and captures


class Heartbeat:
    """Keeps `note` up to date in `folder`, called from the step loop: a thread would hide a hang.

    `runs` gives the progress of the runs in training. A request in the sweep's stop file becomes one of
    `stop`'s. While `preparing`, silence may last longer.
    """

    def __init__(self, note: WorkerNote, folder: Path, stop: Stop, sweep_file: Path | None) -> None:
        self.note = note
        self.folder = folder
        self.stop = stop
        self.sweep_file = sweep_file
        self.runs: Callable[[], tuple[RunProgress, ...]] = tuple
        self.preparing = True
        self._next = 0.0

    def tick(self) -> None:
        """A sign of life; writes at most once per second."""
        if time.monotonic() >= self._next:
            self.beat()

    def beat(self) -> None:
        """Reads the stop file, resets the watchdog, and writes the note."""
        self._next = time.monotonic() + INTERVAL
        if self.sweep_file is not None and (asked := stop_request(self.sweep_file)):
            self.stop.drain = True
            self.stop.now = self.stop.now or asked == "now"
        # Ends the process even while a thread holds the interpreter lock for ever.
        faulthandler.dump_traceback_later(HUNG_PREPARING if self.preparing else HUNG, exit=True, file=2)
        self.say()

    def say(self, **changes: Any) -> None:
        """Writes the note with these changes; that a disk takes none is no reason to stop."""
        self.note = replace(self.note, runs=self.runs(), beat=self.note.beat + 1, **changes)
        with contextlib.suppress(SetupError):
            self.note.write(self.folder)

    def should_stop(self) -> bool:
        """Whether to stop at the next step. The note says so first: a death from here on is no crash."""
        if self.stop.now and self.note.phase is not Phase.STOPPING:
            self.say(phase=Phase.STOPPING)
        return self.stop.now

    def end(self, left: dict[str, str]) -> None:
        """The last word: `left` are the runs that this device cannot train, with reasons."""
        faulthandler.cancel_dump_traceback_later()
        self.say(phase=Phase.ENDED, left=left)
        if not self.note.job:  # nobody reads how a worker ended that was started by hand
            with contextlib.suppress(OSError):
                (self.folder / f"{self.note.name}.json").unlink(missing_ok=True)
