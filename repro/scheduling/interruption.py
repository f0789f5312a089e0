"""Ctrl-C, SIGTERM and SIGUSR1 as requests that the scheduler obeys between two polls."""

import signal
import threading
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Literal, Self


class Stage(IntEnum):
    """How urgently to stop."""

    GO_ON = 0
    DRAIN = 1
    CHECKPOINT = 2
    KILL = 3


class Interruption:
    """While entered: SIGINT raises the stage by one each time, SIGTERM and SIGUSR1 to CHECKPOINT at least.

    Signals reach Python only in the main thread; entered in another one, it leaves them alone.
    """

    def __init__(self) -> None:
        self.stage = Stage.GO_ON
        self.signal: Literal["SIGINT", "SIGTERM", "SIGUSR1"] | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python: it cannot be put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.signal = "SIGTERM" if number == signal.SIGTERM else "SIGUSR1"
            self.stage = max(self.stage, Stage.CHECKPOINT)
        else:
            # SIGTERM before decides the exit code: whoever sent it waits for that answer.
            self.signal = self.signal or "SIGINT"
            self.stage = Stage(min(self.stage + 1, Stage.KILL))
