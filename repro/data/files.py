"""What all data sets need: checksums, locks, how far a step is, and what a failed write means."""

import errno
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from repro.errors import SetupError
from repro.storage import FileLock

BLOCK = 1 << 20  # bytes read at once
POLL = 0.1  # seconds between two attempts at a lock that another process holds
PAUSE = 10.0  # seconds between two lines of a log that say how far a step is

_log = logging.getLogger(__name__)


def file_hash(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file, "md5" or "sha256". Raises SetupError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


@contextmanager
def one_at_a_time(lock: Path, doing: str) -> Iterator[None]:
    """Hold the kernel lock on the file `lock` (which stays); wait, and say so, while another process has it.

    Raises SetupError where the lock file cannot be created or the file system has no locks.
    """
    with FileLock(lock) as held:
        try:
            free = held.acquire()
        except SetupError as error:
            raise SetupError(f"{error}; choose another folder with --data-dir or REPRO_DATA") from None
        if not free:
            _log.info("another process is %s; waiting for it to finish", doing)
            while not held.acquire():
                time.sleep(POLL)
        yield


@contextmanager
def progress(doing: str, total: int | None, unit: str) -> Iterator[Callable[[int], object]]:
    """Hands over what counts further `unit`s ("bytes", "images"); silent unless INFO is logged.

    `total` is how many there are in all, None where that is unknown.
    """
    if not _log.isEnabledFor(logging.INFO):
        yield lambda count: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        counted = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = ("{task.description}", BarColumn(), counted, unit, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        done, next_line = 0, time.monotonic() + PAUSE

        def advance(count: int) -> None:
            nonlocal done, next_line
            done += count
            if (now := time.monotonic()) >= next_line:
                next_line = now + PAUSE
                _log.info("%s %s%s %s", doing, f"{done:,}", f" of {total:,}" if total else "", unit)

        yield advance


def explain_write_failure(path: Path, error: OSError) -> str:
    """Why `path` could not be written and what to do, in one line."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return (
                f"no space left for {path}: free some on that disk, or choose another folder with --data-dir"
            )
        case errno.EFBIG:
            return f"{path} would pass the limit on file sizes (`ulimit -f`): raise it and start again"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"no permission to write {path}: choose another folder with --data-dir or REPRO_DATA"
        case errno.ENOTDIR | errno.EEXIST:
            return f"cannot make {path}: a file stands where a folder is needed; move it or change --data-dir"
    return f"cannot write {path}: {error.strerror or error}"
