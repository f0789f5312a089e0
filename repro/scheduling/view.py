"""What a person sees of a sweep: a live picture on a terminal, plain lines anywhere else, and its summary.

rich is imported only for the live picture, so that the command line stays quick.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from repro.errors import ReproError, RunInterruptedError, SetupError, counted
from repro.scheduling.devices import Device
from repro.scheduling.durations import format_seconds
from repro.worker_note import WorkerNote

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MINUTE = 60.0  # seconds between two lines of totals where there is no terminal


@dataclass(frozen=True)
class Tick:
    """A sweep now. `workers` has each device, its worker's note, whether it has one, why it gets none.

    `counts` are the runs by kind, as `repro status` counts them; `ended` of `total` need nothing more.
    """

    workers: tuple[tuple[Device, WorkerNote | None, bool, str | None], ...]
    counts: Mapping[str, int]
    ended: int
    total: int

    def text(self) -> str:
        """`12 done, 2 running, 1 interrupted, 57 to do`."""
        kinds = ("done", "failed", "running", "interrupted", "to do")
        counts = {kind: self.counts.get(kind, 0) for kind in kinds}
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count or kind == "done")


def open_view(stream: IO[str]) -> "View":
    """The live view if `stream` (stderr) is a terminal that can move its cursor, else plain lines."""
    if not stream.isatty():
        return View(stream)
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    return LiveView(console) if console.is_terminal else View(stream)


class View:
    """A line for each event and one per minute with totals, flushed, so that a log can be followed."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._next = time.monotonic() + MINUTE

    def line(self, text: str) -> None:
        """Shows something that has happened; a log that takes no line is no reason to stop training."""
        with contextlib.suppress(OSError):
            print(text, file=self._stream, flush=True)

    def update(self, tick: Tick) -> None:
        """Shows how things stand: the totals once per minute."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + MINUTE
            self.line(tick.text())

    def close(self) -> None:
        """Gives the terminal back."""


@dataclass
class _Pace:
    """How far something was when it was first seen: its speed since gives the time left."""

    fraction: float
    seen: float = field(default_factory=time.monotonic)

    def remaining(self, fraction: float) -> float | None:
        """Seconds to the end; None until it has moved."""
        moved, elapsed = fraction - self.fraction, time.monotonic() - self.seen
        return (1 - fraction) * elapsed / moved if moved > 0 and elapsed > 0 else None


class LiveView(View):
    """One row per run in training and one for the whole, redrawn in place; lines scroll by above them."""

    def __init__(self, console: "Console") -> None:
        from rich.live import Live

        super().__init__(console.file)
        self._console = console
        self._paces: dict[object, _Pace] = {}
        # transient: rows of runs that were stopped must not stay behind on the screen.
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, transient=True
        )

    def close(self) -> None:
        """Takes the rows off the screen."""
        self._live.stop()

    def line(self, text: str) -> None:
        """Scrolls the text by; a run id in brackets would read as markup."""
        self._console.print(text, markup=False)

    def update(self, tick: Tick) -> None:
        """Redraws."""
        self._live.start()  # at the first time
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

        def add(where: str, words: Sequence[str], what: str, key: object, fraction: float) -> None:
            left = self._paces.setdefault(key, _Pace(fraction)).remaining(fraction)
            time_left = "" if left is None else f"{format_seconds(left)} left"
            bar = ProgressBar(total=1.0, completed=fraction)
            table.add_row(where, *(words if wide else ()), what, bar, time_left)

        fraction_running = 0.0
        for device, note, working, out in tick.workers:
            for run in note.runs if note else ():
                fraction_running += run.fraction
                epoch, *speed = run.words
                words = (epoch, "  ".join(filter(None, speed)))
                add(device.label, words, run.run, (run.run, run.attempt), run.fraction)
            if not note or not note.runs:
                state = "left out" if out else "starting" if working else "idle"
                table.add_row(device.label, *(("", "") if wide else ()), state, "", "")
        add("all", ("", ""), tick.text(), "all", (tick.ended + fraction_running) / max(tick.total, 1))
        return table


EXIT_SIGINT = 130

Interrupter = Literal["SIGINT", "SIGTERM", "SIGUSR1", "budget", "stop request"]
"""What ended a sweep before it was through."""


@dataclass(frozen=True)
class FailedRun:
    """A run that was given up: why, after how many attempts, where they are, the line that repeats it."""

    run: str
    reason: str
    attempts: int
    folder: Path
    command: str


@dataclass(frozen=True)
class SweepSummary:
    """Each run of the sweep is in exactly one of the first five; `seconds` is wall time.

    `before` had records that count; `elsewhere` are being trained by another process; `unfinished` were not
    done when the sweep ended, of which `begun` were interrupted; `impossible` could not be trained on any
    device, with the reason.
    """

    done: tuple[str, ...]
    before: int
    failed: tuple[FailedRun, ...]
    elsewhere: tuple[str, ...]
    unfinished: tuple[str, ...]
    impossible: dict[str, str]
    stopped_early: str | None
    interrupted: Interrupter | None
    seconds: float
    begun: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 where a request or a budget left something to do; else 1, 3 or 0.

        3 is for runs that could not be trained for a missing environment or missing data alone.
        """
        if self.interrupted == "SIGINT":
            return EXIT_SIGINT
        if self.interrupted in ("SIGTERM", "SIGUSR1"):
            return RunInterruptedError.exit_code
        if self.interrupted and (self.unfinished or self.elsewhere):
            return RunInterruptedError.exit_code
        if self.failed or self.unfinished:
            return ReproError.exit_code
        return SetupError.exit_code if self.impossible else 0

    def to_text(self) -> str:
        """Counts, time, every failure with its reason and the line that repeats it."""
        counts = [
            (len(self.done), "done"),
            (self.before, "done before"),
            (len(self.failed), "failed"),
            (len(self.elsewhere), "in training elsewhere"),
            (len(self.impossible), "not possible here"),
            (len(self.begun), "interrupted"),
            (len(self.unfinished) - len(self.begun), "to do"),
        ]
        total = sum(count for count, _ in counts)
        parts = ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing to do"
        lines = [f"{counted(total, 'run')}: {parts}; {format_seconds(self.seconds)}"]
        for failure in self.failed:
            often = f" (after {failure.attempts} attempts)" if failure.attempts > 1 else ""
            lines += [
                f"failed {failure.run}: {failure.reason}{often}",
                f"  attempts: {failure.folder}",
                f"  repeat it: {failure.command}",
            ]
        lines += [f"in training elsewhere: {run}" for run in self.elsewhere]
        by_reason: dict[str, list[str]] = {}
        for run, reason in self.impossible.items():
            by_reason.setdefault(reason, []).append(run)
        for reason, runs in by_reason.items():
            lines.append(f"{runs[0] if len(runs) == 1 else f'{len(runs)} runs'} not trained: {reason}")
        if self.stopped_early:
            lines.append(f"stopped early: {self.stopped_early}")
        if self.interrupted and (self.unfinished or self.elsewhere):
            why = {"budget": "budget spent", "stop request": "stopped by request"}.get(
                self.interrupted, f"interrupted by {self.interrupted}"
            )
            lines.append(f"{why}: the same command resumes it")
        return "\n".join(lines)
