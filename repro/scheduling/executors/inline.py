"""Workers as calls in this process: for tests, and for `repro run --executor inline` under a debugger."""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from repro.commit import make_folder
from repro.errors import ReproError
from repro.scheduling.executors.base import Executor, Job


class StopRequest(IntEnum):
    """What an inline worker has been asked; it looks between steps."""

    NONE = 0
    DRAIN = 1
    TERMINATE = 2


InlineWorker = Callable[[Job, Callable[[], StopRequest]], int]
"""Trains a job's runs in order and returns the exit code that `repro train` would."""


@dataclass
class _Call:
    asked: StopRequest = StopRequest.NONE
    code: int | None = None
    thread: threading.Thread | None = field(default=None, repr=False)


class InlineExecutor(Executor):
    """Runs `work(job, asked)` in a thread of this process; `asked()` says what has been requested.

    A thread, so that the scheduler goes on answering signals and showing progress. It cannot be killed:
    `kill` only asks again, and leaves it behind as a daemon. An exception that leaves `work` is written
    to the job's log and becomes an exit code, as it would at a process's end.
    """

    def __init__(self, work: InlineWorker) -> None:
        self._work = work
        self._calls: dict[int, _Call] = {}

    def submit(self, job: Job) -> None:
        """Starts the call."""
        make_folder(job.log.parent)
        call = _Call()
        call.thread = threading.Thread(target=self._run, args=(job, call), name=f"job {job.number}")
        call.thread.daemon = True
        self._calls[job.number] = call
        call.thread.start()

    def poll(self, job: Job) -> int | None:
        """The code that the call returned, None before."""
        return self._calls[job.number].code

    def drain(self, job: Job) -> None:
        """The call sees DRAIN."""
        self._ask(job, StopRequest.DRAIN)

    def terminate(self, job: Job) -> None:
        """The call sees TERMINATE."""
        self._ask(job, StopRequest.TERMINATE)

    def kill(self, job: Job) -> None:
        """The call sees TERMINATE; a thread cannot be ended from outside, so it counts as killed."""
        self._ask(job, StopRequest.TERMINATE)
        call = self._calls[job.number]
        if call.code is None:
            call.code = -9

    def _ask(self, job: Job, request: StopRequest) -> None:
        call = self._calls[job.number]
        call.asked = max(call.asked, request)

    def _run(self, job: Job, call: _Call) -> None:
        try:
            code = self._work(job, lambda: call.asked)
        except ReproError as error:
            code = error.exit_code
            job.log.write_text(f"{error}\n")
        except Exception:  # noqa: BLE001
            # Where a process would end: nothing is swallowed, the log keeps the traceback.
            code = 1
            job.log.write_text(traceback.format_exc())
        if call.code is None:
            call.code = code
