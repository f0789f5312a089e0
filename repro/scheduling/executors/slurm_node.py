"""A Slurm job's far end: what submitit calls on the node that Slurm has chosen."""

import json
import os
import platform
import signal
import time
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from repro.commit import make_folder, write_whole
from repro.scheduling.executors.base import Job
from repro.scheduling.executors.local import LocalExecutor

_POLL = 0.2


class Heard(IntEnum):
    """What the node's side of a job has been asked, and by whom."""

    NOTHING = 0
    DRAIN = 1
    WARNING = 2
    TERMINATE = 3
    ORPHANED = 4


@dataclass(frozen=True)
class Note:
    """What the node says of a job, in a small file: `code` is None while the worker is at work there."""

    host: str
    code: int | None
    heard: Heard

    def write(self, path: Path) -> None:
        """Replaces the note at `path`; SetupError if the folder refuses."""
        write_whole(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> "Note | None":
        """The note at `path`; None before the job has begun. A file that cannot be read says nothing."""
        try:
            content = json.loads(path.read_text())
            return cls(content["host"], content["code"], Heard(content["heard"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class NodeSide:
    """Runs `job` as a process of the node, passes Slurm's signals on and leaves its end in `note`.

    SIGTERM (scancel, preemption, requeue) and SIGUSR1 (the warning before the time limit) ask the worker
    for a checkpoint, SIGUSR2 to stop after the run in hand. If the daemon that supervises this process
    dies, Slurm may start the job again elsewhere: then it stops as well.
    """

    job: Job
    note: Path

    def __call__(self) -> int:
        """The worker's exit code; submitit keeps it, nothing reads it there."""
        heard = [Heard.NOTHING]

        def hear(number: int, frame: object) -> None:
            words = {signal.SIGUSR2: Heard.DRAIN, signal.SIGUSR1: Heard.WARNING}
            heard.append(words.get(signal.Signals(number), Heard.TERMINATE))

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, hear)
        supervisor = os.getppid()
        make_folder(self.note.parent)
        Note(platform.node(), None, Heard.NOTHING).write(self.note)
        local = LocalExecutor()
        local.submit(self.job)
        told = Heard.NOTHING
        while (code := local.poll(self.job)) is None:
            if os.getppid() != supervisor:
                heard.append(Heard.ORPHANED)
            if (asked := max(heard)) > told:
                (local.drain if asked is Heard.DRAIN else local.terminate)(self.job)
                told = asked
            time.sleep(_POLL)
        Note(platform.node(), code, max(heard)).write(self.note)
        return code
