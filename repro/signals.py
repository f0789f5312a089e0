"""Stop requests by signal, to a worker and to the supervisor, and the death of a worker's parent.

A worker installs its handlers before torch is imported, so that it can be stopped while it is still starting.
"""

import ctypes
import os
import signal
import threading
import time
from enum import IntEnum
from typing import Literal, Self

GRACE_AFTER_PARENT = 7.0  # seconds that a worker has for its checkpoints once its supervisor has died

_PR_SET_PDEATHSIG = 1  # of prctl(2)


class Stop:
    """What was asked for: `now`, a checkpoint at the next step; `drain`, no further run.

    SIGTERM, SIGUSR1 and SIGINT mean now, SIGUSR2 means drain. `reason` is the first signal's name.
    """

    def __init__(self) -> None:
        self.now = False
        self.drain = False
        self.reason: Literal["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", ""] = ""

    def listen(self) -> None:
        """Installs the handlers; in the main thread only."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._note)

    @property
    def requested(self) -> bool:
        """Whether no further run is to be started."""
        return self.now or self.drain

    @property
    def exit_code(self) -> int:
        """What a worker that stopped on request ends with: 130 after Ctrl-C, else 75."""
        return 130 if self.reason == "SIGINT" else 75

    def _note(self, number: int, frame: object) -> None:
        self.reason = self.reason or signal.Signals(number).name  # type: ignore[assignment]
        if number == signal.SIGUSR2:
            self.drain = True
        else:
            self.now = True


def die_with_parent(stop: Stop) -> None:
    """Asks the kernel for SIGTERM when the process that started this one dies (Linux).

    The checkpoints get a few seconds; then the process ends whatever it is doing, so that no orphan keeps a
    device busy. REPRO_DIE_WITH_PARENT holds the parent's pid, or "parent" for whichever it is now; without it
    nothing is done.
    """
    told = os.environ.pop("REPRO_DIE_WITH_PARENT", None)
    if told is None:
        return
    if told == "parent":
        parent = os.getppid()
    else:
        parent = int(told)
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def watch() -> None:
        # Polled as well: the parent may have died before prctl, and the main thread may never run a handler.
        while os.getppid() == parent:
            time.sleep(0.5)
        stop.now = True
        time.sleep(GRACE_AFTER_PARENT)
        os._exit(75)

    threading.Thread(target=watch, daemon=True).start()


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

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python: it cannot be put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]

    def _note(self, number: int, frame: object) -> None:
        if number != signal.SIGINT:
            self.signal = "SIGTERM" if number == signal.SIGTERM else "SIGUSR1"
            self.stage = max(self.stage, Stage.CHECKPOINT)
        else:
            # SIGTERM before decides the exit code: whoever sent it waits for that answer.
            self.signal = self.signal or "SIGINT"
            self.stage = Stage(min(self.stage + 1, Stage.KILL))
