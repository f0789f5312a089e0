"""Whether the results folder can be written, asked by writing into it."""

import os
import tempfile
from pathlib import Path

from repro.commit import make_folder, refusal
from repro.errors import SetupError

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
