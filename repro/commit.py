"""How a record reaches its name: attempts, the exclusive commit, and quarantine.

An attempt works in a folder of its own; mkdir hands out the number. To commit it writes the record there,
fsyncs it, hard-links it to the record's name and fsyncs the folder. A link either makes the whole name or
fails because one is there: no reader ever sees half a record, and no writer replaces a finished one
unseen. Locks (kernel locks, freed by the kernel when their holder dies) only save work; the link is what
keeps results safe.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout

from repro.errors import IntegrityError, NoSpaceError, ReadOnlyError, RecordCorruptError, SetupError
from repro.paths import RunPaths
from repro.records import Attempt, RunRecord, read_record

_MOMENT = 1.0
"""Seconds that a lock may be held by somebody who only asks."""

FRESH = 30.0
"""Seconds for which a worker's report says that it is at work; one comes a second, or a step."""

_NEXT_REPORT = 10.0
"""Seconds to wait for the next report of a worker that may be at work."""


class CommitOutcome(StrEnum):
    """What became of a record that was to be committed."""

    COMMITTED = "committed"
    ALREADY_DONE = "already done"


class RunBusyError(Exception):
    """Another process holds the run's lock: it is being trained elsewhere."""


@contextmanager
def run_lock(paths: RunPaths) -> Iterator[None]:
    """Holds the run's kernel lock; RunBusyError if another process has it and keeps it for a moment.

    Not every network file system carries locks from one machine to another, so a run that another machine
    goes on reporting about is busy too.
    """
    make_folder(paths.work)
    lock = FileLock(paths.lock)
    try:
        # Not at once: `is_held` asks with a lock of its own.
        lock.acquire(timeout=_MOMENT, poll_interval=_MOMENT / 10)
    except Timeout:
        raise RunBusyError(f"{paths.work.name}: another process is training it") from None
    except OSError as error:
        raise refusal(f"cannot lock {paths.lock}", error) from None
    try:
        if is_reported_elsewhere(paths) and _reports_go_on(paths):
            raise RunBusyError(f"{paths.work.name}: another machine is training it")
        yield
    finally:
        lock.release()


def is_reported_elsewhere(paths: RunPaths) -> bool:
    """Whether a worker of another machine has not noted its end and has reported just now.

    The file system's own clock tells the report's age: those of two machines may differ.
    """
    last = next(reversed(attempts_of(paths)), None)
    if last is None or last.outcome != "killed" or last.host in (None, socket.gethostname()):
        return False
    try:
        os.utime(paths.lock)
        return paths.lock.stat().st_mtime - paths.progress.stat().st_mtime < FRESH
    except OSError:
        return False  # no report, or no lock yet, or nothing may be written here


def _reports_go_on(paths: RunPaths) -> bool:
    """Whether the run's report changes within some seconds."""
    before = paths.progress.read_bytes()
    deadline = time.monotonic() + _NEXT_REPORT
    while time.monotonic() < deadline:
        time.sleep(_NEXT_REPORT / 20)
        if paths.progress.read_bytes() != before:
            return True
    return False


def is_held(paths: RunPaths) -> bool:
    """Whether somebody holds the run's lock. Askers share, so they never mistake each other for a holder."""
    try:
        descriptor = os.open(paths.lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def break_lock(paths: RunPaths) -> None:
    """Gives the run a new lock; whoever held the old one holds nothing. At worst a run is trained twice."""
    paths.lock.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes `folder` and its parents; SetupError if the file system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(f"cannot write below {folder}", error) from None


def begin_attempt(paths: RunPaths) -> Path:
    """A new attempt's folder, `attempts/N` with the first free N."""
    make_folder(paths.attempts)
    number = max(_attempt_numbers(paths), default=0) + 1
    while True:
        folder = paths.attempts / str(number)
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise refusal(f"cannot make {folder}", error) from None
        return folder


def note_attempt(folder: Path, attempt: Attempt) -> None:
    """Writes what is known of an attempt into its folder."""
    write_whole(folder / "attempt.json", attempt.model_dump_json().encode())


def attempts_of(paths: RunPaths, before: int | None = None) -> tuple[Attempt, ...]:
    """What every attempt at the run, or those `before` a number, left about itself, oldest first.

    A torn note is an unknown outcome.
    """
    found = []
    for number in _attempt_numbers(paths):
        if before is not None and number >= before:
            break
        file = paths.attempts / str(number) / "attempt.json"
        try:
            attempt = Attempt.model_validate_json(file.read_bytes())
        except (OSError, ValueError):
            continue
        if attempt.outcome == "running":
            # Whoever asks holds the lock or knows that its holder is dead: this one was killed.
            attempt = attempt.model_copy(update={"outcome": "killed"})
        found.append(attempt)
    return tuple(found)


def commit_record(
    record: RunRecord, paths: RunPaths, attempt: Path, counts: Callable[[RunRecord], bool]
) -> CommitOutcome:
    """Puts `record` under its name, from the folder `attempt`; call it holding the run's lock.

    `counts` says whether a record found there already is as good as this one (same recipe and, where
    stale records are to be redone, same code): then somebody else finished first and nothing is changed.
    Any other record is moved to `superseded/`, an unreadable one to `quarantine/`. Where it is refused with
    a SetupError it may be called again.
    """
    source = attempt / "record.json"
    make_folder(paths.record.parent)
    if _is_one_file(source, paths.record):
        # Linked before, only the folder could not be synced then.
        fsync_folder(paths.record.parent)
        return CommitOutcome.COMMITTED
    write_whole(source, record.to_json().encode())

    def fault(path: Path) -> str | None:
        present = read_record(path, record.run, record.preset)
        return None if present is None or counts(present) else "another recipe or code"

    for _ in range(100):
        try:
            os.link(source, paths.record)
        except FileExistsError:
            try:
                present = read_record(paths.record, record.run, record.preset)
                if present and counts(present):
                    return CommitOutcome.ALREADY_DONE
                move_record(paths.record, paths.superseded, fault)
            except IntegrityError:
                quarantine_damaged(paths, record.run, record.preset)
        except OSError as error:
            raise refusal(f"cannot write {paths.record}", error) from None
        else:
            fsync_folder(paths.record.parent)
            return CommitOutcome.COMMITTED
    raise RecordCorruptError(f"{paths.record}: other processes keep writing it; stop them and run again")


def add_record(content: bytes, paths: RunPaths) -> bool:
    """Puts a whole record, made elsewhere, under its name; False if one is there, which stays as it is."""
    make_folder(paths.record.parent)
    source = paths.record.with_name(f".{paths.record.name}.{os.getpid()}.incoming")
    write_whole(source, content)
    try:
        os.link(source, paths.record)
    except FileExistsError:
        return False
    except OSError as error:
        raise refusal(f"cannot write {paths.record}", error) from None
    finally:
        source.unlink(missing_ok=True)
    fsync_folder(paths.record.parent)
    return True


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
    try:
        os.link(target, record)
    except FileExistsError:
        # Yet another has the name now: this one stays here, and the caller looks at that one.
        return None
    except OSError as error:
        raise refusal(f"cannot move {target}, a good record, back to {record}", error) from None
    target.unlink()
    note.unlink()
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


def _is_one_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def write_whole(path: Path, *content: bytes | memoryview) -> None:
    """Writes a file, the parts end to end; SetupError if refused.

    A reader sees the old content or the new, never a part.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            for part in content:
                file.write(part)
            file.flush()
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


def _attempt_numbers(paths: RunPaths) -> list[int]:
    if not paths.attempts.is_dir():
        return []
    return sorted(int(entry.name) for entry in paths.attempts.iterdir() if entry.name.isdigit())


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
