"""The seam between the supervisor and whatever runs a worker: a job, and how it ended."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from repro.scheduling.devices import Device

Urgency = Literal["drain", "now"]  # finish the runs in progress; or checkpoint at the next step


@dataclass(frozen=True)
class WorkerJob:
    """A worker to start: `argv` on `device`, stdout and stderr appended to `log`.

    `name` is unique; the worker's note carries it. `environment` is added to that of whoever starts it.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False)
    log: Path
    device: Device

    def line(self) -> str:
        """The command as a line for a shell."""
        return shlex.join(self.argv)


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: its exit code (negative: the signal that killed it; None: nobody knows).

    `death` says in words how it died, where more is known than the code; `blameless` is an end that says
    nothing about its runs: a lost node, preemption, a time limit.
    """

    code: int | None
    death: str = ""
    blameless: bool = False


class Executor(ABC):
    """Starts workers and says when they have ended; what they achieved is read from the disk."""

    @abstractmethod
    def start(self, jobs: Sequence[WorkerJob]) -> None:
        """Starts the jobs and returns at once; SetupError if they cannot be started."""

    @abstractmethod
    def poll(self, job: WorkerJob) -> JobEnd | None:
        """None while the job waits or runs."""

    @abstractmethod
    def stop(self, job: WorkerJob, urgency: Urgency) -> None:
        """Passes on a stop request; the sweep's stop file, which workers read too, is already written."""

    @abstractmethod
    def kill(self, job: WorkerJob) -> None:
        """Ends the job and everything it started, at once."""

    def waits(self, job: WorkerJob) -> bool:
        """Whether the job is in a cluster's queue, for the first time or again: its silence means nothing."""
        return False

    def room(self) -> int | None:
        """How many more jobs may be started now; None: any number."""
        return None

    def messages(self) -> Sequence[str]:
        """New lines for the user: why jobs wait, that a service does not answer."""
        return ()
