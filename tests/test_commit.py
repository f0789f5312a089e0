"""The commit protocol: a record appears whole or not at all, and no good one is ever replaced."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from another_machine import another_machine
from smoke_project import ROOT, RUN, record_of, smoke_context, train_here
from tiny_disk import on_a_tiny_disk

from repro import commit
from repro.errors import NoSpaceError, SetupError
from repro.paths import RunPaths
from repro.records import Attempt, read_record
from repro.storage import (
    FRESH,
    CommitOutcome,
    RunBusyError,
    attempts_of,
    begin_attempt,
    commit_record,
    is_held,
    is_reported_elsewhere,
    move_record,
    note_attempt,
    run_lock,
    write_whole,
)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A real record."""
    with pytest.MonkeyPatch.context() as patch:
        context = smoke_context(patch, tmp_path_factory.mktemp("results"))
        assert train_here(context, RUN) == 0
        return record_of(context, RUN)


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(record=tmp_path / "records" / "seed0.json", work=tmp_path / "work")


def test_a_committed_record_is_under_its_name_and_valid(record, paths):
    attempt = begin_attempt(paths)
    assert commit_record(record, paths, attempt, counts=lambda present: True) is CommitOutcome.COMMITTED
    assert read_record(paths.record, RUN, "smoke") == record


def test_a_second_commit_of_the_same_recipe_changes_nothing(record, paths):
    commit_record(record, paths, begin_attempt(paths), counts=lambda present: True)
    before = paths.record.read_bytes(), paths.record.stat().st_ino
    other = record.model_copy(update={"provenance": record.provenance.model_copy(update={"threads": 7})})
    outcome = commit_record(other, paths, begin_attempt(paths), counts=lambda present: True)
    assert outcome is CommitOutcome.ALREADY_DONE
    assert (paths.record.read_bytes(), paths.record.stat().st_ino) == before


def test_a_record_of_another_recipe_is_moved_aside_not_lost(record, paths):
    old = record.model_copy(update={"provenance": record.provenance.model_copy(update={"threads": 7})})
    commit_record(old, paths, begin_attempt(paths), counts=lambda present: True)
    outcome = commit_record(record, paths, begin_attempt(paths), counts=lambda present: False)
    assert outcome is CommitOutcome.COMMITTED
    assert read_record(paths.record, RUN, "smoke") == record
    assert read_record(paths.superseded / "1.json", RUN, "smoke") == old
    assert "another recipe" in (paths.superseded / "1.reason.json").read_text()


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"schema_version": 1}'])
def test_a_damaged_record_in_the_way_is_quarantined(record, paths, damage):
    paths.record.parent.mkdir()
    paths.record.write_bytes(damage)
    outcome = commit_record(record, paths, begin_attempt(paths), counts=lambda present: True)
    assert outcome is CommitOutcome.COMMITTED
    assert (paths.quarantine / "1.json").read_bytes() == damage
    assert read_record(paths.record, RUN, "smoke") == record


def test_a_valid_record_that_comes_while_a_damaged_one_is_quarantined_keeps_its_name(record, paths):
    """Where locks do nothing, somebody else may exchange the one for the other at any moment."""
    paths.record.parent.mkdir()
    paths.record.write_text("{")
    judged = []

    def fault(path):
        judged.append(path.read_text())
        if judged == ["{"]:
            paths.record.unlink()
            commit_record(record, paths, begin_attempt(paths), counts=lambda present: True)
        return "torn" if judged[-1] == "{" else None

    assert move_record(paths.record, paths.quarantine, fault) is None
    assert judged == ["{", record.to_json()]
    assert read_record(paths.record, RUN, "smoke") == record
    assert list(paths.quarantine.iterdir()) == []


def test_of_two_good_records_that_come_meanwhile_the_one_with_the_name_keeps_it(record, paths):
    paths.record.parent.mkdir()
    paths.record.write_text("{")

    def fault(path):
        torn = path.read_text() == "{"
        paths.record.unlink(missing_ok=True)
        commit_record(record, paths, begin_attempt(paths), counts=lambda present: True)
        return "torn" if torn else None

    assert move_record(paths.record, paths.quarantine, fault) is None
    assert read_record(paths.record, RUN, "smoke") == record
    assert read_record(paths.quarantine / "1.json", RUN, "smoke") == record


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
    attempt = begin_attempt(paths)
    sync, tries = os.fsync, []

    def full_at_first(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink() == paths.record.parent and not tries:
            tries.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_first)
    with pytest.raises(NoSpaceError, match="cannot sync"):
        commit_record(record, paths, attempt, counts=lambda present: True)
    assert commit_record(record, paths, attempt, counts=lambda present: True) is CommitOutcome.COMMITTED


def test_attempts_are_numbered_and_a_killed_one_is_named_so(paths, record):
    first, second = begin_attempt(paths), begin_attempt(paths)
    assert (first.name, second.name) == ("1", "2")
    started = record.provenance.started
    for number, outcome in ((1, "running"), (2, "interrupted")):
        note = Attempt(number=number, started=started, ended=None, outcome=outcome, resumed_at_step=0)
        note_attempt(paths.attempts / str(number), note)
    assert [attempt.outcome for attempt in attempts_of(paths)] == ["killed", "interrupted"]


def test_a_runs_lock_is_held_once_and_freed_by_the_kernel(paths):
    with run_lock(paths):
        code = (
            "import sys; from pathlib import Path; from repro.paths import RunPaths\n"
            "from repro.storage import RunBusyError, run_lock\n"
            "try:\n"
            "    with run_lock(RunPaths(Path(sys.argv[1]), Path(sys.argv[2]))): print('got it')\n"
            "except RunBusyError: print('busy')\n"
        )
        arguments = [sys.executable, "-c", code, str(paths.record), str(paths.work)]
        busy = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    free = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert (busy.stdout.strip(), free.stdout.strip()) == ("busy", "got it")


def test_the_lock_of_a_killed_process_is_free(paths, tmp_path):
    ready = tmp_path / "ready"
    code = (
        "import sys, time; from pathlib import Path; from repro.paths import RunPaths\n"
        "from repro.storage import run_lock\n"
        "with run_lock(RunPaths(Path(sys.argv[1]), Path(sys.argv[2]))):\n"
        "    Path(sys.argv[3]).touch(); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, paths.record, paths.work, ready], cwd=ROOT)
    while not ready.exists():
        assert holder.poll() is None
        time.sleep(0.02)
    with pytest.raises(RunBusyError), run_lock(paths):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock(paths):
        assert paths.work.is_dir()


def test_many_processes_that_commit_at_once_leave_one_whole_record(record, paths, tmp_path):
    text = tmp_path / "text.json"
    text.write_text(record.to_json())
    code = (
        "import sys; from pathlib import Path; from repro.paths import RunPaths\n"
        "from repro.storage import begin_attempt, commit_record\n"
        "from repro.records import parse_record\n"
        "record = parse_record(Path(sys.argv[3]).read_text(), 'text')\n"
        "paths = RunPaths(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(commit_record(record, paths, begin_attempt(paths), counts=lambda present: True).value)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, paths.record, paths.work, text],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    outcomes = sorted(process.communicate()[0].strip() for process in processes)
    assert outcomes == ["already done"] * 5 + ["committed"]
    assert read_record(paths.record, RUN, "smoke") == record


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SetupError, match="cannot write below"):
        begin_attempt(RunPaths(record=tmp_path / "r.json", work=tmp_path / "file" / "work"))


def test_a_full_disk_leaves_the_old_content(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    target = tmp_path / "progress.json"
    write_whole(target, b"old")
    # The temporary file's name is known, so it can be a device that is always full.
    temporary = tmp_path / f".progress.json.{os.getpid()}"
    temporary.symlink_to(full)
    with pytest.raises(SetupError, match="No space left"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"


def test_a_run_that_another_machine_reports_on_is_busy_though_its_lock_does_not_cross(paths):
    with (
        another_machine(paths),
        pytest.raises(RunBusyError, match="another machine is training it"),
        run_lock(paths),
    ):
        raise AssertionError("two machines at one run")
    assert not is_held(paths)


def test_a_machine_that_fell_silent_just_now_is_given_a_moment_to_report_again(paths, monkeypatch):
    monkeypatch.setattr(commit, "_NEXT_REPORT", 0.2)
    with another_machine(paths, beats=False), run_lock(paths):
        assert is_reported_elsewhere(paths)


def test_a_machine_that_has_been_silent_for_long_holds_nobody_up(paths, monkeypatch):
    monkeypatch.setattr(commit, "_NEXT_REPORT", 1e6)
    with another_machine(paths, beats=False, age=FRESH + 60), run_lock(paths):
        assert not is_reported_elsewhere(paths)


def test_an_attempt_that_has_noted_its_end_holds_nobody_up(paths, monkeypatch):
    monkeypatch.setattr(commit, "_NEXT_REPORT", 1e6)
    with another_machine(paths):
        (attempt,) = attempts_of(paths)
        ended = attempt.model_copy(update={"outcome": "interrupted"})
        note_attempt(paths.attempts / "1", ended)
        with run_lock(paths):
            assert not is_reported_elsewhere(paths)
