"""What the scheduler tells whoever watches: plain values, one a happening."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from repro.scheduling.executors.base import Job
from repro.scheduling.outcome import Failure


@dataclass(frozen=True)
class Started:
    """A worker was started."""

    job: Job


@dataclass(frozen=True)
class Finished:
    """A run has a record that counts: percent top-1 (None: it diverged) and seconds of training.

    `ended` of `total` runs need nothing more, counting those that were done before and the failed ones.
    """

    run: str
    accuracy: float | None
    seconds: float
    ended: int
    total: int


@dataclass(frozen=True)
class Failed:
    """A run was given up."""

    failure: Failure
    ended: int
    total: int


@dataclass(frozen=True)
class Requeued:
    """Runs that are tried again, each alone, and why."""

    runs: tuple[str, ...]
    cause: str


@dataclass(frozen=True)
class Quarantined:
    """An invalid record was moved to `path`; its run is trained again."""

    run: str
    path: Path
    reason: str


@dataclass(frozen=True)
class Elsewhere:
    """Another process holds the run's lock."""

    run: str


@dataclass(frozen=True)
class Paused:
    """Nothing new is started until the results folder can be written again; workers under way go on."""

    reason: str


@dataclass(frozen=True)
class Resumed:
    """The results folder can be written again."""


@dataclass(frozen=True)
class Notice:
    """A sentence for the user: stopping, draining, giving up on a data set."""

    text: str


@dataclass(frozen=True)
class Running:
    """A worker at work: the run that it has in hand and the attempt's number.

    `run` is None before the first and after the last; `began` tells the two apart.
    """

    job: Job
    run: str | None
    attempt: int
    began: bool


@dataclass(frozen=True)
class Tick:
    """How things stand, about twice a second.

    `done` and `failed` are this scheduler's, `ended` adds what was done before; nobody has `todo` in hand.
    """

    running: tuple[Running, ...]
    done: int
    failed: int
    ended: int
    todo: int
    total: int


Event = Started | Finished | Failed | Requeued | Quarantined | Elsewhere | Paused | Resumed | Notice | Tick
Listener = Callable[[Event], None]
