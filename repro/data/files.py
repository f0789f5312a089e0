"""Files of a data set on disk: checksums, locks, unpacking a tar archive, and what a failed write means."""

import errno
import gzip
import hashlib
import logging
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from repro.errors import DataCorruptError, SetupError

BLOCK = 1 << 20  # bytes read at once

_log = logging.getLogger(__name__)


def file_hash(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file, "md5" or "sha256". Raises SetupError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(
                stream, lambda: hashlib.new(algorithm, usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror or error}") from error


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
    """Unpack a tar archive, plain or gzipped, all of whose files lie below one folder named like `target`.

    The folder appears whole or not at all. `max_ratio` is unpacked bytes per byte of the archive.

    Raises DataCorruptError for an archive that is torn, larger than the limits, has links or devices, or a
    path that leads out of its folder; the message ends with what was `expected`. Raises SetupError where
    the folder cannot be written.
    """
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        temporary.mkdir(parents=True)
        _extract(archive, temporary, target.name, max_members, max_bytes, max_ratio)
        (temporary / target.name).rename(target)
    except _RefusedError as refusal:
        raise DataCorruptError(
            f"{archive} is not unpacked: {refusal}; nothing of it was kept. Expected {expected}"
        ) from None
    except OSError as error:
        if error.filename == str(archive):
            raise SetupError(f"cannot read {archive}: {error.strerror}") from error
        raise SetupError(explain_write_failure(target, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _RefusedError(Exception):
    """Why an archive is not unpacked."""


def _extract(
    archive: Path, folder: Path, top: str, max_members: int, max_bytes: int, max_ratio: float
) -> None:
    try:
        with archive.open("rb") as stream:
            gzipped = stream.read(2) == b"\x1f\x8b"
        # tarfile reads a long name or extended header whole, whatever its size: so all is counted first.
        _check_size(archive, gzipped, max_bytes, max_ratio)
        with tarfile.open(archive, "r:gz" if gzipped else "r:") as tar:
            # Came with Python 3.11.4; without it, what `_check_member` admits is harmless too.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            for count, member in enumerate(tar, start=1):
                if count > max_members:
                    raise _RefusedError(f"it has more than the {max_members:,} members expected at most")
                _check_member(member, top)
                tar.extract(member, folder, set_attrs=False)
    # tarfile and zlib raise all of these on torn or hostile input.
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, RecursionError) as error:
        raise _RefusedError(f"it is not a whole tar archive ({error or type(error).__name__})") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _RefusedError(f"{error.filename!r} is both a file and a folder") from error
    if not (folder / top).is_dir():
        raise _RefusedError(f"it has no folder {top!r}")


def _check_size(archive: Path, gzipped: bool, max_bytes: int, max_ratio: float) -> None:
    packed = archive.stat().st_size
    total = packed
    if gzipped:
        total = 0
        with gzip.open(archive) as stream:
            while total <= max_bytes and (block := stream.read(BLOCK)):
                total += len(block)
                if total > max(BLOCK, max_ratio * packed):
                    raise _RefusedError(f"its {packed:,} bytes unpack to over {max_ratio:g} times as many")
    if total > max_bytes:
        raise _RefusedError(f"it unpacks to more than the {max_bytes:,} bytes expected at most")


def _check_member(member: tarfile.TarInfo, top: str) -> None:
    """Stricter than tarfile's own filter, which admits links and cuts off a leading slash."""
    path = PurePosixPath(member.name)
    if not member.name.isprintable() or "\\" in member.name:
        raise _RefusedError(f"the name {member.name!r} has a control character or a backslash")
    if path.is_absolute() or ".." in path.parts:
        raise _RefusedError(f"the path {member.name!r} leads out of the archive's folder")
    if path.parts[:1] != (top,):
        raise _RefusedError(f"{member.name!r} does not lie below {top!r}")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise _RefusedError(f"{member.name!r} is a link or a special file, expected files and folders only")
    if member.size < 0:
        raise _RefusedError(f"{member.name!r} has a negative size")
