"""What a person sees of a sweep: a live picture on a terminal, plain lines anywhere else.

rich is imported only for the live picture, so that the command line stays quick.
"""

import contextlib
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from repro.scheduling.devices import Device
from repro.scheduling.durations import format_seconds
from repro.worker_note import RunProgress, WorkerNote

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MINUTE = 60.0  # seconds between two lines of totals where there is no terminal


@dataclass(frozen=True)
class Tick:
    """A sweep now. `workers` has each device, its worker's note, whether it has one, why it gets none.

    `done` includes what was done before; `ended` of `total` runs need nothing more.
    """

    workers: tuple[tuple[Device, WorkerNote | None, bool, str | None], ...]
    done: int
    failed: int
    running: int
    to_do: int
    ended: int
    total: int

    def counts(self) -> str:
        """`12 done, 2 running, 58 to do`."""
        parts = {"done": self.done, "failed": self.failed, "running": self.running, "to do": self.to_do}
        return ", ".join(f"{count} {what}" for what, count in parts.items() if count or what == "done")


class View(Protocol):
    """Shows a sweep; entered for as long as it runs."""

    def line(self, text: str) -> None:
        """Shows something that has happened."""

    def update(self, tick: Tick) -> None:
        """Shows how things stand."""

    def __enter__(self) -> Self:
        """Takes the terminal."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the terminal back."""


def open_view(stream: TextIO) -> View:
    """The live view if `stream` (stderr) is a terminal that can move its cursor, else plain lines."""
    if not stream.isatty():
        return PlainView(stream)
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    return LiveView(console) if console.is_terminal else PlainView(stream)


class PlainView:
    """A line for each event and one per minute with totals, flushed, so that a log can be followed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = time.monotonic() + MINUTE

    def line(self, text: str) -> None:
        """Prints the text; a log that takes none is no reason to stop training."""
        with contextlib.suppress(OSError):
            print(text, file=self._stream, flush=True)

    def update(self, tick: Tick) -> None:
        """Prints the totals once per minute."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + MINUTE
            self.line(tick.counts())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


@dataclass
class _Pace:
    """How far something was when it was first seen: its speed since gives the time left."""

    fraction: float
    seen: float = field(default_factory=time.monotonic)

    def remaining(self, fraction: float) -> float | None:
        """Seconds to the end; None until it has moved."""
        moved, elapsed = fraction - self.fraction, time.monotonic() - self.seen
        return (1 - fraction) * elapsed / moved if moved > 0 and elapsed > 0 else None


class LiveView:
    """One row per run in training and one for the whole, redrawn in place; lines scroll by above them."""

    def __init__(self, console: "Console") -> None:
        from rich.live import Live

        self._console = console
        self._paces: dict[tuple[str, int], _Pace] = {}
        self._whole: _Pace | None = None
        # transient: rows of runs that were stopped must not stay behind on the screen.
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def line(self, text: str) -> None:
        """Scrolls the text by; a run id in brackets would read as markup."""
        self._console.print(text, markup=False)

    def update(self, tick: Tick) -> None:
        """Redraws."""
        self._live.update(self.picture(tick), refresh=True)

    def picture(self, tick: Tick) -> "RenderableType":
        """The rows of runs above the one of totals. A narrow terminal keeps bar, run and time left."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        wide = self._console.width >= 120
        table = Table.grid(padding=(0, 2), expand=True)
        # The terminal's echo of ^C must fit behind a row: wrapped, it would leave one behind on the screen.
        table.width = max(self._console.width - 4, 20)
        for _ in range(3 if wide else 1):  # device, epoch, speed and accuracy
            table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
        table.add_column(ratio=1, min_width=8)
        table.add_column(no_wrap=True, justify="right")
        fraction_running = 0.0
        for device, note, working, out in tick.workers:
            runs = note.runs if note else ()
            if not runs:
                words = "left out" if out else "starting" if working else "idle"
                table.add_row(device.label, *([""] * (2 if wide else 0)), words, "", "")
            for run in runs:
                fraction_running += run.fraction
                left = self._pace(run).remaining(run.fraction)
                more = [f"epoch {min(run.epoch + 1, run.epochs)}/{run.epochs}", _speed(run)] if wide else []
                bar = ProgressBar(total=1.0, completed=run.fraction)
                table.add_row(device.label, *more, run.run, bar, _left(left))
        done = (tick.ended + fraction_running) / max(tick.total, 1)
        self._whole = self._whole or _Pace(done)
        bar = ProgressBar(total=1.0, completed=done)
        empty = [""] * (2 if wide else 0)
        table.add_row("all", *empty, tick.counts(), bar, _left(self._whole.remaining(done)))
        return table

    def _pace(self, run: RunProgress) -> _Pace:
        return self._paces.setdefault((run.run, run.attempt), _Pace(run.fraction))


def _speed(run: RunProgress) -> str:
    speed = f"{run.images_per_second:,.0f} images/s" if run.images_per_second else ""
    accuracy = f"{run.test_accuracy:.1f} %" if run.test_accuracy is not None else ""
    return "  ".join(filter(None, [speed, accuracy]))


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{format_seconds(seconds)} left"
