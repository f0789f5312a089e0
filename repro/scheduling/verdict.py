"""The judge of errors that keep coming back."""

import re
from dataclasses import dataclass, field
from enum import Enum

SAME_ERRORS = 3
"""So many equal errors in a row mean that the next run would meet it too."""


def normalise(cause: str, run: str) -> str:
    """The cause without what differs from run to run: its id, numbers, addresses, spacing."""
    text = cause.replace(run, "<run>").lower()
    return " ".join(re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", text).split())


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
