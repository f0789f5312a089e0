"""What a sweep came to: every run in one of five groups, as text and as an exit code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from repro.errors import ReproError, RunInterruptedError, SetupError
from repro.scheduling.durations import format_seconds

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
        lines = [f"{total} {'run' if total == 1 else 'runs'}: {parts}; {format_seconds(self.seconds)}"]
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
