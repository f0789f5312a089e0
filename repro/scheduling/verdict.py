"""Words for how a worker ended, and the judge of errors that keep coming back."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from repro import errors
from repro.errors import ReproError, RunInterruptedError, SetupError, UsageError

SAME_ERRORS = 3
"""So many equal errors in a row mean that the next run would meet it too."""

_LONGEST = 500
_TAIL = 8192


def is_hopeless(code: int, began_a_run: bool) -> bool:
    """Whether the same command would end the same way: a wrong call, no data, an error before any run."""
    if code in (UsageError.exit_code, SetupError.exit_code):
        return True
    return code == ReproError.exit_code and not began_a_run


def is_setup_error(cause: str) -> bool:
    """Whether a failed attempt's cause, `Type: message`, is a missing environment or data set."""
    kind = getattr(errors, cause.partition(":")[0], None)
    return isinstance(kind, type) and issubclass(kind, SetupError)


def describe_end(code: int, log: Path) -> str:
    """`killed by SIGKILL (…)`, `ended with exit code 134: free(): invalid pointer`."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (often the kernel, when memory runs out)" if -code == signal.SIGKILL else ""
        return f"its worker was killed by {name}{hint}"
    if code == 0:
        return "its worker ended without training it"
    if code == RunInterruptedError.exit_code:
        return "its worker was interrupted from outside"
    line = last_line(log)
    return f"its worker ended with exit code {code}" + (f": {line}" if line else "")


def last_line(log: Path) -> str:
    """The last line of a worker's log that is not blank; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("repro: ")[:_LONGEST] if lines else ""


def normalise(cause: str, run: str) -> str:
    """The cause without what differs from run to run: its id, numbers, addresses, spacing."""
    text = cause.replace(run, "<run>").lower()
    return " ".join(re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", text).split())


def merge_equal(troubles: Sequence[str]) -> list[str]:
    """Equal causes in a row as one: `… (3 times)`."""
    merged: list[tuple[str, int]] = []
    for trouble in troubles:
        if merged and merged[-1][0] == trouble:
            merged[-1] = (trouble, merged[-1][1] + 1)
        else:
            merged.append((trouble, 1))
    return [f"{text} ({count} times)" if count > 1 else text for text, count in merged]


class Advice(Enum):
    """What a series of errors says about the runs still queued."""

    GO_ON = "go on"
    LEAVE_DATASET = "leave this data set"
    STOP = "stop"


@dataclass
class ErrorStreak:
    """Counts equal errors in a row; a run that gets done in between starts the count again.

    Missing data or environment that only one data set has met is no reason to leave the others alone.
    """

    _text: str = ""
    _datasets: list[str] = field(default_factory=list)
    _setup: bool = True

    def reset(self) -> None:
        """A run was done."""
        self._text, self._datasets, self._setup = "", [], True

    def add(self, text: str, dataset: str, setup: bool) -> Advice:
        """Counts one more error, already normalised."""
        if text != self._text:
            self.reset()
            self._text = text
        self._datasets.append(dataset)
        self._setup = self._setup and setup
        if len(self._datasets) < SAME_ERRORS:
            return Advice.GO_ON
        if self._setup and len(set(self._datasets)) == 1:
            self.reset()
            return Advice.LEAVE_DATASET
        return Advice.STOP
