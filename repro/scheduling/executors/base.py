"""The seam between the scheduler and whatever runs a worker: a job, and the words said about it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repro.scheduling.slots import Slot


@dataclass(frozen=True)
class Job:
    """One worker to start: `argv` trains `runs` in order on `slot`; stdout and stderr go to `log`.

    `environment` is added to the environment of whoever launches it. `number` counts the jobs of one
    scheduler from 1; `place` is the position of `slot` among the scheduler's slots.
    """

    number: int
    runs: tuple[str, ...]
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False)
    log: Path
    slot: Slot
    place: int


@dataclass(frozen=True)
class Ending:
    """Why a job ended, in words, where its executor knows more than the exit code says.

    `blameless` is an end that says nothing about the runs: a lost node, a time limit, preemption.
    """

    cause: str
    blameless: bool


class Executor(ABC):
    """Launches jobs and passes on requests; it decides nothing.

    An exit code is evidence, not proof: what a job achieved is read from the records on disk. Every word
    may be said to a job that has ended meanwhile, and then does nothing.
    """

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Starts `job`; returns at once. Raises SetupError if it cannot be started."""

    @abstractmethod
    def poll(self, job: Job) -> int | None:
        """None while `job` runs, then its exit code; negative: the signal that killed it."""

    @abstractmethod
    def drain(self, job: Job) -> None:
        """Asks `job` to finish the run in progress and start no other; it then exits with 75."""

    @abstractmethod
    def terminate(self, job: Job) -> None:
        """Asks `job` to write a checkpoint at the next step boundary and exit with 75."""

    @abstractmethod
    def kill(self, job: Job) -> None:
        """Ends `job` and everything it started, at once; what it had not saved is lost."""

    def ending(self, job: Job) -> Ending | None:
        """Why `job`, which has ended, did so; None where the exit code says it all."""
        return None

    def adopt(self, first: int, runs: Collection[str]) -> Sequence[Job]:
        """Jobs that an earlier scheduler submitted, that have not ended and that train any of `runs`.

        They are numbered from `first` on, and every word may be said to them from now on. Jobs that die
        with their scheduler leave none.
        """
        return ()

    def news(self) -> Sequence[str]:
        """Sentences for the user since it was last asked: why jobs wait, that a service does not answer."""
        return ()
