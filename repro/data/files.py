"""What all data sets need: checksums, locks, unpacking, how far a step is, and what a failed write means."""

import errno
import gzip
import hashlib
import logging
import lzma
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from repro.errors import DataCorruptError, SetupError

BLOCK = 1 << 20  # bytes read at once
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
    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except Timeout:
            _log.info("another process is %s; waiting for it to finish", doing)
            held.acquire()
    except (OSError, NotImplementedError) as error:
        reason = explain_write_failure(lock, error) if isinstance(error, OSError) else str(error)
        raise SetupError(f"cannot lock {lock.parent}: {reason}") from error
    try:
        # Without flock, filelock turns itself into a soft lock, which a killed process never releases.
        if not isinstance(held, FileLock):
            raise SetupError(
                f"the file system of {lock.parent} has no file locks: use a folder on another one"
            )
        yield
    finally:
        held.release()


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


def unpack_tar(
    archive: Path,
    target: Path,
    *,
    max_members: int,
    max_bytes: int,
    max_ratio: float = 50,
    expected: str = "the publisher's own archive: delete this one and fetch it again",
) -> None:
    """Unpack a tar archive, packed or not, all of whose files lie below one folder named like `target`.

    The folder appears whole or not at all. `max_ratio` is unpacked bytes per byte of the archive.

    Raises DataCorruptError for an archive that is torn, larger than the limits, or has anything but files
    and folders below that folder; the message ends with what was `expected`. Raises SetupError where the
    archive cannot be read or the folder not be written.
    """
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise SetupError(explain_write_failure(target, error)) from error
    try:
        limit = min(max_bytes, max(BLOCK, max_ratio * archive.stat().st_size))
        with tarfile.open(archive) as tar:
            # Came with Python 3.11.4; without it, what `_check_member` admits is harmless too.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            for count, member in enumerate(tar, start=1):
                limit -= member.size
                if count > max_members or limit < 0:
                    raise _RefusedError(f"over {max_members:,} members, {max_bytes:,} bytes or {max_ratio:g} "
                                        "times its own size unpacked")  # fmt: skip
                _check_member(member, target.name)
                tar.extract(member, temporary, set_attrs=False)
        if not (temporary / target.name).is_dir():
            raise _RefusedError(f"it has no folder {target.name!r}")
        (temporary / target.name).rename(target)
    # tarfile and the decompressors raise all of these on torn or hostile input.
    except (
        _RefusedError, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, ValueError,
        RecursionError, FileExistsError, NotADirectoryError, IsADirectoryError,
    ) as error:  # fmt: skip
        why = error if isinstance(error, _RefusedError) else f"it is not a whole tar archive ({error})"
        raise DataCorruptError(
            f"{archive} is not unpacked: {why}; nothing of it was kept. Expected {expected}"
        ) from None
    except OSError as error:
        if error.filename == str(archive):
            raise SetupError(f"cannot read {archive}: {error.strerror}") from error
        raise SetupError(explain_write_failure(target, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _RefusedError(Exception):
    """Why an archive is not unpacked."""


def _check_member(member: tarfile.TarInfo, top: str) -> None:
    """Stricter than tarfile's own filter, which admits links and cuts off a leading slash."""
    parts = PurePosixPath(member.name).parts
    if not member.name.isprintable() or "\\" in member.name or ".." in parts or parts[:1] != (top,):
        raise _RefusedError(f"{member.name!r} does not lie below {top!r}")
    if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
        raise _RefusedError(f"{member.name!r} is a link or a special file, expected files and folders only")
