"""What several processes share: kernel locks, atomic writes, the commit as compare-and-swap, quarantine."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from smoke_project import ROOT, RUN, record_of
from tiny_disk import on_a_tiny_disk

from repro.errors import NoSpaceError, SetupError
from repro.paths import RunPaths
from repro.records import read_record
from repro.storage import (
    FileLock,
    commit_record,
    create_whole,
    lock_holder,
    lock_holders,
    move_record,
    record_digest,
    write_whole,
)


@pytest.fixture
def record(trained):
    return record_of(trained, RUN)


@pytest.fixture
def other(record):
    """A record of the same run that is another one."""
    return record.model_copy(update={"provenance": record.provenance.model_copy(update={"threads": 7})})


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(record=tmp_path / "records" / "seed0.json", work=tmp_path / "work")


def commit(record, paths, replaces=None, number=1) -> bool:
    attempt = paths.attempts / str(number)
    attempt.mkdir(parents=True, exist_ok=True)
    return commit_record(record, paths, attempt, replaces)


def test_a_record_that_came_since_the_sweep_was_planned_stays(record, other, paths):
    assert commit(record, paths)
    before = paths.record.read_bytes(), paths.record.stat().st_ino
    for baseline in (None, "0" * 64):
        assert not commit(other, paths, replaces=baseline, number=2)
    assert (paths.record.read_bytes(), paths.record.stat().st_ino) == before
    assert read_record(paths.record, RUN, "smoke") == record


def test_the_baseline_is_replaced_and_moved_aside_not_lost(record, other, paths):
    commit(other, paths)
    baseline = record_digest(paths.record)
    assert commit(record, paths, replaces=baseline, number=2)
    assert read_record(paths.record, RUN, "smoke") == record
    assert read_record(paths.superseded / "1.json", RUN, "smoke") == other
    assert "replaced by a new result" in (paths.superseded / "1.reason.json").read_text()


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"schema_version": 1}'])
def test_a_damaged_record_in_the_way_is_quarantined(record, paths, damage):
    paths.record.parent.mkdir()
    paths.record.write_bytes(damage)
    assert commit(record, paths)
    assert (paths.quarantine / "1.json").read_bytes() == damage
    assert read_record(paths.record, RUN, "smoke") == record


def test_a_record_made_elsewhere_is_added_only_where_there_is_none(record, other, paths):
    assert create_whole(paths.record, record.to_json().encode())
    assert not create_whole(paths.record, other.to_json().encode())
    assert read_record(paths.record, RUN, "smoke") == record
    assert list(paths.record.parent.iterdir()) == [paths.record]


@pytest.mark.parametrize("and_another", [False, True])
def test_a_valid_record_that_comes_while_a_damaged_one_is_quarantined_keeps_its_name(
    record, paths, and_another
):
    """Where locks do nothing, somebody else may exchange the one for the other at any moment, even twice."""
    paths.record.parent.mkdir()
    paths.record.write_text("{")
    judged = []

    def fault(path):
        judged.append(path.read_text())
        if len(judged) == 1 or and_another:
            paths.record.unlink(missing_ok=True)
            commit(record, paths, number=len(judged))
        return "torn" if judged[-1] == "{" else None

    assert move_record(paths.record, paths.quarantine, fault) is None
    assert judged == ["{", record.to_json()]
    assert read_record(paths.record, RUN, "smoke") == record
    kept = [read_record(file, RUN, "smoke") for file in paths.quarantine.glob("1.json")]
    assert kept == [record] * and_another


def test_a_full_disk_leaves_a_damaged_record_where_it_is_and_says_so(tmp_path):
    code = (
        "from pathlib import Path; from repro.storage import move_record; from repro.errors import NoSpaceError\n"
        "disk = Path('$DISK')\n"
        "try: move_record(disk / 'seed0.json', disk / 'quarantine', lambda path: 'torn')\n"
        "except NoSpaceError as error: print(error)\n"
        "print(sorted(path.name for path in disk.rglob('*.json')))\n"
    )
    script = f'echo "{{" > $DISK/seed0.json; mkdir $DISK/quarantine; FILL; {sys.executable} -c "{code}"'
    done = on_a_tiny_disk(script, tmp_path)
    said, left = done.stdout.splitlines()
    assert said.endswith("No space left on device")
    assert left == "['seed0.json']"


def test_a_commit_whose_folder_could_not_be_synced_may_be_tried_again(record, paths, monkeypatch):
    sync, tries = os.fsync, []

    def full_at_first(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink() == paths.record.parent and not tries:
            tries.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_first)
    with pytest.raises(NoSpaceError, match="cannot sync"):
        commit(record, paths)
    assert commit(record, paths)


def test_many_processes_that_commit_at_once_leave_one_whole_record(record, paths, tmp_path):
    text = tmp_path / "text.json"
    text.write_text(record.to_json())
    code = (
        "import sys; from pathlib import Path; from repro.paths import RunPaths\n"
        "from repro.storage import commit_record; from repro.records import parse_record\n"
        "paths = RunPaths(Path(sys.argv[1]), Path(sys.argv[2])); attempt = paths.attempts / sys.argv[4]\n"
        "attempt.mkdir(parents=True); record = parse_record(Path(sys.argv[3]).read_text(), 'text')\n"
        "print(commit_record(record, paths, attempt, None))\n"
    )
    argv = [sys.executable, "-c", code, paths.record, paths.work, text]
    pipe = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*argv, str(number)], **pipe) for number in range(4)]
    outcomes = sorted(process.communicate()[0].strip() for process in processes)
    assert outcomes == ["False"] * 3 + ["True"]
    assert read_record(paths.record, RUN, "smoke") == record


def test_a_lock_is_held_once_seen_without_being_taken_and_freed_by_the_kernel(paths):
    code = (
        "import sys; from pathlib import Path; from repro.storage import FileLock\n"
        "lock = FileLock(Path(sys.argv[1]))\n"
        "print(lock.acquire(), flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", code, str(paths.lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(argv, **pipes) as holder:
        assert holder.stdout.readline() == "True\n"
        assert lock_holder(paths.lock, lock_holders()) == holder.pid
        assert not FileLock(paths.lock).acquire()
        holder.send_signal(signal.SIGKILL)
    assert lock_holder(paths.lock, lock_holders()) is None
    with FileLock(paths.lock) as lock:
        assert lock.acquire()
        again = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, input="")
    assert again.stdout == "False\n"
    assert FileLock(paths.lock).acquire()


def test_a_child_that_outlives_its_worker_does_not_keep_the_lock(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from repro.storage import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); assert lock.acquire()\n"
        "if os.fork() == 0: os.close(1); time.sleep(60)\n"
        "print('locked', flush=True); os._exit(0)\n"
    )
    argv = [sys.executable, "-c", code, tmp_path / "lock"]
    subprocess.run(argv, check=True, stdout=subprocess.PIPE, cwd=ROOT)
    again = FileLock(tmp_path / "lock")
    assert again.acquire()
    again.release()


def test_a_lock_whose_file_was_deleted_is_taken_anew(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    (tmp_path / "lock").unlink()
    assert second.acquire()  # what was lost is noticed at the first one's next checkpoint
    third = FileLock(tmp_path / "lock")
    assert not third.acquire()
    first.release()
    second.release()


def test_a_file_that_is_deleted_between_opening_and_locking_it_is_no_lock(tmp_path, monkeypatch):
    path, lock = tmp_path / "lock", fcntl.flock

    def deleted_first(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", lock)
        path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", deleted_first)
    with FileLock(path) as mine:
        assert mine.acquire()
        assert not FileLock(path).acquire()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_kernel_locks_is_refused(tmp_path, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SetupError, match=r"no kernel locks .*use a folder on another one .--results DIR"):
        FileLock(tmp_path / "lock").acquire()


def test_a_full_disk_leaves_the_old_content(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    target = tmp_path / "note.json"
    write_whole(target, b"old")
    # The temporary file's name is known, so it can be a device that is always full.
    temporary = tmp_path / f".note.json.{os.getpid()}"
    temporary.symlink_to(full)
    with pytest.raises(SetupError, match="No space left"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert not temporary.is_symlink()
