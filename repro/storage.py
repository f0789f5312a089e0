"""Files that several processes share: kernel locks, atomic writes, the exclusive commit, and quarantine.

To commit, an attempt writes the record into its own folder, fsyncs it, hard-links it to the record's name and
fsyncs the folder. A link either makes the whole name or fails because one is there: no reader ever sees half
a record, and no writer replaces a finished one unseen. Locks only save work; the link keeps results safe.
A file system without hard links gets a new file instead, which fails likewise where the name is taken.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from repro.errors import IntegrityError, NoSpaceError, ReadOnlyError, RecordCorruptError, SetupError
from repro.paths import RunPaths, read_file
from repro.records import RunRecord, read_record


class FileLock:
    """An exclusive kernel lock (flock) on the file at `path`; the kernel releases it when this process dies.

    It never falls back to a lock file: a killed process would leave it behind for ever.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Takes the lock without waiting; False if another process holds it.

        Raises SetupError where the file cannot be made or the file system has no kernel locks.
        """
        make_folder(self.path.parent)
        try:
            while True:
                # O_CLOEXEC (Python's default): a program started from here must not keep the lock alive.
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(descriptor)
                    raise
                # Somebody may have deleted the file meanwhile: a lock on a nameless file excludes nobody.
                if _is_named(descriptor, self.path):
                    break
                os.close(descriptor)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise SetupError(
                    f"cannot lock {self.path}: this file system has no kernel locks ({error.strerror}); "
                    "use a folder on another one (--results DIR, --data-dir DIR)"
                ) from None
            raise refusal(f"cannot lock {self.path}", error) from None
        self._descriptor = descriptor
        _held.add(descriptor)
        return True

    def check(self) -> None:
        """Raises SetupError where the lock could never be taken; it does not take it, nor makes its file."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_NONBLOCK))
        except FileNotFoundError:
            return
        except OSError as error:
            raise refusal(f"cannot lock {self.path}", error) from None

    def release(self) -> None:
        """Lets others take the lock; does nothing if it is not held."""
        if self._descriptor is not None:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


_held: set[int] = set()  # descriptors of the locks that this process holds


def _close_inherited() -> None:
    """Closes the parent's locks in a forked child: flock outlives a dead parent as long as a child has it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


def lock_holders() -> Mapping[int, Sequence[int]]:
    """Pids of this machine's processes that hold kernel locks, by the locked file's inode.

    Read from the kernel's table: whoever only asks must not take the lock, for a worker that tries at the
    same moment would skip the run. Empty where there is no such table.
    """
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return {}
    holders: dict[int, list[int]] = {}
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF; a waiting process has an arrow as its second word.
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK":
            holders.setdefault(int(words[5].rpartition(":")[2]), []).append(int(words[4]))
    return holders


def lock_holder(lock: Path, holders: Mapping[int, Sequence[int]]) -> int | None:
    """The pid of the process that holds the lock file, of those in `holders`; None where there is none."""
    try:
        status = lock.stat()
    except OSError:
        return None
    return next((pid for pid in holders.get(status.st_ino, ()) if _has_open(pid, status)), None)


def _has_open(pid: int, status: os.stat_result) -> bool:
    """Whether the process has that very file open: inodes repeat on other file systems.

    The device number in the kernel's table is not always the one that stat gives (btrfs, overlays).
    """
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(descriptor.stat(), status):
                    return True
    except OSError:
        return True  # another user's process, whose files cannot be seen: the inode must do
    return False


def make_folder(folder: Path) -> None:
    """Makes `folder` and its parents; SetupError if the file system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(f"cannot write below {folder}", error) from None


def record_digest(path: Path) -> str | None:
    """sha256 of a record's file; None where there is none that can be read."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except OSError:
        return None


def commit_record(record: RunRecord, paths: RunPaths, attempt: Path, replaces: str | None) -> bool:
    """Puts `record` under its name, from the folder `attempt`; call it holding the run's lock.

    False if somebody else was first. Where it is refused with a SetupError it may be called again.

    A compare-and-swap: a record found there is moved to `superseded/` only if its file still has the sha256
    `replaces`, which it had when the sweep was planned, and to `quarantine/` if it is invalid. Any other was
    committed by somebody else since, and stays.
    """
    source = attempt / "record.json"
    # Both may be gone: who renames the results folder during a run must not lose it.
    make_folder(paths.record.parent)
    make_folder(attempt)
    committed = record_digest(paths.record)
    if committed is not None and committed == record_digest(source):
        # Committed before, only the folder could not be synced then.
        fsync_folder(paths.record.parent)
        return True
    write_whole(source, record.to_json().encode())

    def fault(path: Path) -> str | None:
        return "replaced by a new result" if record_digest(path) == replaces else None

    for _ in range(100):
        if give_name(source, paths.record):
            return True
        try:
            read_record(paths.record, record.run, record.preset)
        except IntegrityError:
            quarantine_damaged(paths, record.run, record.preset)
        else:
            if record_digest(paths.record) not in (replaces, None):
                return False
            move_record(paths.record, paths.superseded, fault)
    raise RecordCorruptError(f"{paths.record}: other processes keep writing it; stop them and run again")


def create_whole(path: Path, content: bytes) -> bool:
    """Writes a new file; False if the name is taken, by a file that stays as it is.

    Raises SetupError if the file system refuses.
    """
    make_folder(path.parent)
    source = path.with_name(f".{path.name}.{os.getpid()}.incoming")
    write_whole(source, content)
    try:
        return give_name(source, path)
    finally:
        source.unlink(missing_ok=True)


def give_name(source: Path, path: Path) -> bool:
    """Gives a whole file the name `path` too, durably; False if that is taken.

    Raises SetupError if the file system refuses.
    """
    try:
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _copy_exclusively(source, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise refusal(f"cannot write {path}", error) from None
    fsync_folder(path.parent)
    return True


# exFAT and vfat answer EPERM, SMB and FUSE one of the others.
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _copy_exclusively(source: Path, path: Path) -> None:
    """A reader may see a part of the copy for a moment: a record's checksum tells it."""
    content = read_file(source)
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)  # made by us: nobody else could open it with "x"
            raise


def quarantine_damaged(paths: RunPaths, run: str, preset: str) -> Path | None:
    """Moves an invalid record to `quarantine/`; its new path, None if it is a valid one."""

    def fault(path: Path) -> str | None:
        try:
            read_record(path, run, preset)
        except IntegrityError as error:
            return str(error)
        return None

    return move_record(paths.record, paths.quarantine, fault)


def move_record(record: Path, folder: Path, fault: Callable[[Path], str | None]) -> Path | None:
    """Moves a record into `folder` under the next free number, the fault beside it; its new path.

    `fault` says what is wrong with the record in a file, None for nothing; None is returned if nothing is
    wrong with the one that has the name by now. It is moved first and judged once nobody else can exchange
    it: a good one that was committed meanwhile, where locks do nothing, gets its name back.
    """
    reason = fault(record)
    if reason is None:
        return None
    make_folder(folder)
    target, note = _free_place(folder, reason)
    try:
        record.rename(target)
    except OSError as error:
        note.unlink()
        if isinstance(error, FileNotFoundError):
            return None
        raise refusal(f"cannot move {record} to {target}", error) from None
    if fault(target) is not None:
        return target
    if give_name(target, record):
        target.unlink()
        note.unlink()
    # Else yet another has the name now: this one stays here, and the caller looks at that one.
    return None


def _free_place(folder: Path, reason: str) -> tuple[Path, Path]:
    """The next free number's place for a record, and the note beside it, written now: who makes it has it."""
    content = json.dumps({"reason": reason, "when": datetime.now(UTC).isoformat()})
    number = 0
    while True:
        number += 1
        target, note = folder / f"{number}.json", folder / f"{number}.reason.json"
        if target.exists():
            continue
        try:
            note.touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise refusal(f"cannot make {note}", error) from None
        try:
            write_whole(note, content.encode())
        except SetupError:
            note.unlink()
            raise
        return target, note


def write_whole(path: Path, *content: bytes | memoryview, durable: bool = True) -> None:
    """Writes a file, the parts end to end; SetupError if refused.

    A reader sees the old content or the new, never a part. Not `durable`, a power cut may lose it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # A disk that has become read-only takes no unlink either: what it refused first is what is told.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise refusal(f"cannot write {path}", error) from None


def refusal(what: str, error: OSError) -> SetupError:
    """The error for the user of a write that the file system refused; which one says whether to wait."""
    kind = SetupError
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = NoSpaceError
    elif error.errno == errno.EROFS:
        kind = ReadOnlyError
    return kind(f"{what}: {error.strerror or error}")


def fsync_folder(folder: Path) -> None:
    """Makes the names in `folder` outlast a power cut: a rename or link is on disk only then.

    Raises SetupError if the file system refuses.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise refusal(f"cannot sync {folder}", error) from None
