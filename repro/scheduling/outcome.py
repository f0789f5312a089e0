"""What a sweep came to, and the exit code that says so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from repro.errors import ReproError, RunInterruptedError, SetupError

EXIT_SIGINT = 130

Interrupter = Literal["SIGINT", "SIGTERM", "SIGUSR1", "budget"]
"""What ended a sweep before it was through."""


@dataclass(frozen=True)
class Failure:
    """A run that was given up: why, after how many launches, the log to read, the line that repeats it.

    `setup` tells a missing environment or data set (exit code 3) from a run that went wrong.
    """

    run: str
    cause: str
    launches: int
    log: Path
    command: str
    setup: bool = False


@dataclass(frozen=True)
class Outcome:
    """Every run handed to the scheduler is in exactly one of the five tuples; `seconds` is wall time.

    `skipped` had records that count; `left` are being trained by another process; `unfinished` were
    queued or under way when the sweep was interrupted or stopped early; `no_device`: for want of a device.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: tuple[Failure, ...]
    left: tuple[str, ...]
    unfinished: tuple[str, ...]
    stopped_early: str | None
    interrupted: Interrupter | None
    seconds: float
    no_device: bool = False

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 after SIGTERM, SIGUSR1 or where a budget left runs to do, else 3, 1 or 0.

        3 is for runs that failed for a missing environment or missing data alone, or for want of a device.
        """
        if self.interrupted == "SIGINT":
            return EXIT_SIGINT
        if self.interrupted in ("SIGTERM", "SIGUSR1"):
            return RunInterruptedError.exit_code
        if self.interrupted == "budget" and (self.unfinished or self.left):
            return RunInterruptedError.exit_code
        if self.no_device or (self.failed and all(failure.setup for failure in self.failed)):
            return SetupError.exit_code
        return ReproError.exit_code if self.failed or self.unfinished else 0
