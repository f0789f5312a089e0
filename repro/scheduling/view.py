"""What a person sees of a sweep: a live picture on a terminal, plain lines anywhere else.

rich is imported only for the live picture, so that the command line stays quick.
"""

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from repro.paths import Project
from repro.scheduling.durations import format_seconds
from repro.scheduling.events import Event, Finished, Running, Tick
from repro.scheduling.progress import Progress, read_progress
from repro.scheduling.sentences import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from repro.scheduling.slots import Slot


class View(Protocol):
    """A listener to hand to the scheduler, entered for as long as it runs."""

    def __call__(self, event: Event) -> None:
        """Shows the event."""

    def __enter__(self) -> Self:
        """Takes the terminal."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the terminal back."""


def open_view(stream: TextIO, project: Project, preset: str, slots: "Sequence[Slot]") -> View:
    """The live view if `stream` (stderr) is a terminal that can move its cursor, else plain lines."""
    if not stream.isatty():
        return PlainView(stream)
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    return LiveView(console, project, preset, slots) if console.is_terminal else PlainView(stream)


class PlainView:
    """One line for each event, flushed, so that a log can be followed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        """Prints the event's line, if it has one."""
        if (line := describe(event)) is not None:
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.flush()


def _waiting_for(running: Running | None) -> str:
    """What a slot does that has no report of a run to show."""
    if running is None:
        return "idle"
    return "ending" if running.began and running.run is None else "starting"


@dataclass
class _Course:
    """How far a run was when this view first saw it: its speed since tells when it will end."""

    fraction: float
    seen: float = field(default_factory=time.monotonic)

    def remaining(self, fraction: float) -> float | None:
        """Seconds to the run's end; None until it has moved."""
        moved, elapsed = fraction - self.fraction, time.monotonic() - self.seen
        return (1 - fraction) * elapsed / moved if moved > 0 and elapsed > 0 else None


class LiveView:
    """One line a slot and one for the whole, redrawn at every tick; events scroll by above them."""

    def __init__(self, console: "Console", project: Project, preset: str, slots: "Sequence[Slot]") -> None:
        from rich.live import Live

        self._console = console
        self._project = project
        self._preset = preset
        self._slots = tuple(slots)
        self._courses: dict[tuple[str, int], _Course] = {}
        self._durations: list[float] = []
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Scrolls the event's line by, or redraws."""
        if isinstance(event, Finished):
            self._durations.append(event.seconds)
        if isinstance(event, Tick):
            self._live.update(self.picture(event), refresh=True)
        elif (line := describe(event)) is not None:
            # A run id in brackets would read as markup.
            self._console.print(line, markup=False)

    def picture(self, tick: Tick) -> "RenderableType":
        """The table of slots above the line of totals."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, None, 1, None, None, None, None):
            table.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
        by_place = {running.job.place: running for running in tick.running}
        etas: list[float | None] = []
        for place, slot in enumerate(self._slots):
            name = f"{slot.label} {slot.name}"
            running = by_place.get(place)
            report = self._report(running) if running else None
            if running is None or report is None:
                table.add_row(name, _waiting_for(running), "", "", "", "", "")
                etas += [None] if running else []
                continue
            course = self._courses.setdefault((report.run, report.attempt), _Course(report.fraction))
            eta = course.remaining(report.fraction)
            etas.append(eta)
            table.add_row(
                name,
                report.run,
                ProgressBar(total=1.0, completed=report.fraction),
                f"epoch {min(report.epoch + 1, report.epochs)}/{report.epochs}",
                "" if report.images_per_second is None else f"{report.images_per_second:,.0f} images/s",
                "" if report.test_accuracy is None else f"{report.test_accuracy:.1f} %",
                "" if eta is None else f"{format_seconds(eta)} left",
            )
        left = self._remaining(tick, etas)
        table.add_row(
            "all",
            f"{tick.done} done, {tick.failed} failed, {tick.todo} to do",
            ProgressBar(total=max(tick.total, 1), completed=tick.ended),
            f"{tick.ended}/{tick.total}",
            "",
            "",
            "" if left is None else f"{format_seconds(left)} left",
        )
        return table

    def _report(self, running: Running) -> Progress | None:
        if running.run is None:
            return None
        report = read_progress(self._project.run(self._preset, running.run).progress)
        # An earlier attempt's last report lies there until this one's first.
        return report if report and report.attempt == running.attempt else None

    def _remaining(self, tick: Tick, etas: "Sequence[float | None]") -> float | None:
        """Seconds to the end, if runs to come take as long as those that ended did on average."""
        known = [eta for eta in etas if eta is not None]
        if self._durations:
            mean = sum(self._durations) / len(self._durations)
        elif not tick.todo and len(known) == len(etas):
            mean = 0.0
        else:
            return None
        rest = sum(eta if eta is not None else mean for eta in etas)
        longest = max(known, default=0.0)
        return max(longest, (rest + tick.todo * mean) / len(self._slots))
