"""What a scheduler at work tells anybody who asks: one small file a scheduler, gone when it ends.

`repro status` reads it from another terminal or machine. It is only shown, never believed.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from repro.commit import make_folder, write_whole
from repro.errors import SetupError
from repro.scheduling.events import Event, Notice, Paused, Resumed, Tick
from repro.scheduling.slots import Slot

INTERVAL = 3.0
"""Seconds between two reports."""

SILENT = 30.0
"""Seconds without a report after which a scheduler of another machine counts as gone."""

_PAUSED = ".paused"
"""Suffix of an empty file beside the report: where the disk is full, that much can be said still."""


@dataclass(frozen=True)
class InHand:
    """A slot, by its label and its device's name, and the run that its worker has in hand."""

    slot: str
    device: str
    kind: str
    index: int
    co_tenants: int
    run: str | None


@dataclass(frozen=True)
class Heartbeat:
    """A scheduler's latest report; times are seconds since the epoch, `deadline` the end of its budget.

    `paused`: it waits until the results folder can be written, and so can its reports.
    """

    host: str
    pid: int
    started: float
    time: float
    deadline: float | None
    slots: tuple[InHand, ...]
    done: int
    failed: int
    todo: int
    total: int
    notice: str | None
    paused: bool = False

    @property
    def alive(self) -> bool:
        """Whether its process is there; of another machine: whether it has reported lately, or cannot."""
        if self.host == socket.gethostname():
            return Path(f"/proc/{self.pid}").exists()
        return self.paused or self.age < SILENT

    @property
    def age(self) -> float:
        """Seconds since the report."""
        return time.time() - self.time


def read_heartbeats(folder: Path) -> tuple[Heartbeat, ...]:
    """The reports of the schedulers that are alive, oldest first."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            content = json.loads(path.read_text())
            slots = tuple(InHand(**slot) for slot in content.pop("slots"))
            paused = path.with_suffix(_PAUSED).exists()
            heartbeat = Heartbeat(**{**content, "slots": slots, "paused": paused})
        except (OSError, ValueError, TypeError, KeyError):
            continue  # ended just now, or of another version
        if heartbeat.alive:
            found.append(heartbeat)
    return tuple(sorted(found, key=lambda heartbeat: heartbeat.started))


class HeartbeatFile:
    """A listener that keeps the report up to date; entered for as long as the scheduler runs."""

    def __init__(self, folder: Path, slots: Sequence[Slot], budget: float | None = None) -> None:
        self._slots = tuple(slots)
        self._started = time.time()
        self._deadline = None if budget is None else self._started + budget
        self._path = folder / f"{socket.gethostname()}-{os.getpid()}.json"
        self._next = 0.0
        self._notice: str | None = None

    def __enter__(self) -> Self:
        make_folder(self._path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(_PAUSED).unlink(missing_ok=True)

    def __call__(self, event: Event) -> None:
        """Notes the scheduler's last word and whether it is paused, and writes a report now and then."""
        if isinstance(event, Notice):
            self._notice = event.text
        if isinstance(event, Paused):
            with contextlib.suppress(OSError):
                self._path.with_suffix(_PAUSED).touch()
        if isinstance(event, Resumed):
            self._path.with_suffix(_PAUSED).unlink(missing_ok=True)
            self._next = 0.0
        if isinstance(event, Tick) and time.monotonic() >= self._next:
            self._next = time.monotonic() + INTERVAL
            try:
                write_whole(self._path, json.dumps(asdict(self._report(event))).encode())
            except SetupError:
                # A disk that is full must not end a sweep that waits for room on it.
                self._next += 10 * INTERVAL

    def _report(self, tick: Tick) -> Heartbeat:
        runs = {running.job.place: running.run for running in tick.running}
        slots = tuple(
            InHand(slot.label, slot.name, slot.device, slot.index, slot.co_tenants, runs.get(place))
            for place, slot in enumerate(self._slots)
        )
        return Heartbeat(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            time=time.time(),
            deadline=self._deadline,
            slots=slots,
            done=tick.done,
            failed=tick.failed,
            todo=tick.todo,
            total=tick.total,
            notice=self._notice,
        )
