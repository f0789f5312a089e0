"""What signals ask of a worker, and that it never outlives its scheduler. Imports no torch.

Installed before torch is imported, so that a worker can be stopped while it is still starting.
"""

import ctypes
import os
import signal
import threading
import time

GRACE_AFTER_PARENT = 7.0
"""Seconds that a worker has for its checkpoint once its scheduler has died."""


class Stop:
    """What signals have asked for: stop at the next step, or after the run in progress."""

    def __init__(self) -> None:
        self.now = False
        self.after_run = False
        self.interrupted = False

    def listen(self) -> None:
        """Installs the handlers; in the main thread only."""
        signal.signal(signal.SIGTERM, self._stop_now)
        signal.signal(signal.SIGUSR1, self._stop_now)
        signal.signal(signal.SIGUSR2, self._stop_after_run)
        signal.signal(signal.SIGINT, self._interrupt)

    @property
    def exit_code(self) -> int:
        """What a worker that stopped on request ends with: 130 after Ctrl-C, else 75."""
        return 130 if self.interrupted else 75

    def _stop_now(self, number: int, frame: object) -> None:
        self.now = True

    def _stop_after_run(self, number: int, frame: object) -> None:
        self.after_run = True

    def _interrupt(self, number: int, frame: object) -> None:
        self.now = self.interrupted = True


def die_with_parent(stop: Stop) -> None:
    """Asks the kernel for SIGTERM when the scheduler that started this process dies (Linux).

    The checkpoint gets a few seconds; then the process ends whatever it is doing, so that no orphan keeps a
    device busy. REPRO_DIE_WITH_PARENT holds the scheduler's pid. What this process may have started, or a
    main thread that never lets another one run, is left to `repro.scheduling.guardian`.
    """
    parent = os.environ.get("REPRO_DIE_WITH_PARENT")
    if parent is None:
        return
    set_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        # Covers a parent that died before prctl as well as a main thread that hangs.
        stop.now = True
        time.sleep(GRACE_AFTER_PARENT)
        os._exit(75)

    threading.Thread(target=watch, daemon=True).start()
