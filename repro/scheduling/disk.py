"""Whether the results folder can be written, asked by writing into it."""

import os
import tempfile
import time
from pathlib import Path

from repro.commit import make_folder, refusal
from repro.errors import NoSpaceError, SetupError
from repro.scheduling.events import Listener, Paused, Resumed

ROOM = 256 * 1024
"""Bytes that must fit: a record, its notes and a worker's log, several times over."""


def disk_refusal(folder: Path) -> SetupError | None:
    """Why `folder` takes no ROOM bytes just now, None if it does: full, over quota, read-only, not allowed.

    Only a write tells: quotas, reserved blocks and network file systems make a count of free bytes a guess.
    """
    try:
        make_folder(folder)
        # Nameless where the file system can do that: nothing is left if this process is killed meanwhile.
        with tempfile.TemporaryFile(dir=folder) as file:
            # Random, because some file systems store zeros for nothing.
            file.write(os.urandom(ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return refusal(f"cannot write below {folder}", error)
    except SetupError as error:
        return error
    return None


class Disk:
    """The disk under `folder`, which may fill up and be freed while a sweep goes on.

    `full` is how many seconds after a refusal it is tried again, `look` how often it is tried otherwise, so
    that workers who wait for it are not the only ones to know. The listener hears Paused and Resumed, once.
    """

    def __init__(self, folder: Path, full: float, look: float, tell: Listener) -> None:
        self._folder = folder
        self._full = full
        self._look = look
        self._tell = tell
        self._paused = False
        self._written = False
        self._next = 0.0

    def takes_writes(self) -> bool:
        """Whether the folder can be written now; while not, nothing is started and nothing fails.

        Raises SetupError where it has never taken any and is not just full: read-only, not allowed.
        """
        if self._paused and time.monotonic() < self._next:
            return False
        refused = disk_refusal(self._folder)
        if refused is None:
            self._written = True
            self._next = time.monotonic() + self._look
            if self._paused:
                self._paused = False
                self._tell(Resumed())
            return True
        if self._written or isinstance(refused, NoSpaceError):
            self.pause(refused)
            return False
        raise refused

    def pause(self, refused: SetupError) -> None:
        """Somebody's write was refused."""
        self._next = time.monotonic() + self._full
        if not self._paused:
            self._paused = True
            self._tell(Paused(str(refused)))

    def look(self) -> None:
        """Tries it if it has not been tried for a while."""
        if time.monotonic() >= self._next:
            self.takes_writes()

    def last_word(self) -> None:
        """At the end of a sweep: what was said to be full and is not any more is said so."""
        if self._paused:
            self._next = 0.0
            self.takes_writes()
