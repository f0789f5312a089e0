"""`repro clean`: what nothing needs goes, what a run or a live process needs stays."""

import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from smoke_project import OTHER, PROJECT, RUN, interrupt, smoke_context, wait_for

from repro.attempts import read_attempts, write_attempt
from repro.cli import main
from repro.cli.clean import find_leftovers, remove
from repro.storage import FileLock
from repro.sweep import Sweep
from repro.worker_note import new_worker_note

CHECKPOINT = "checkpoint-7.pt"
INTERRUPTED = "cifar100/resnet18/scaled-bn-m0.8/seed0"


def asked(*words: object):
    return CliRunner(env={"REPRO_ROOT": str(PROJECT)}).invoke(main, [*map(str, words)])


@pytest.fixture
def context(trained, tmp_path, monkeypatch):
    """A done run with an earlier attempt and a checkpoint left, another done one, and an interrupted one."""
    made = smoke_context(monkeypatch, shutil.copytree(trained.project.results, tmp_path / "results"))
    attempts = made.project.run("smoke", RUN).attempts
    shutil.copytree(attempts / "1", attempts / "2")
    (note,) = read_attempts(made.project.run("smoke", RUN))[:1]
    write_attempt(attempts / "2", note.model_copy(update={"number": 2}))
    (attempts / "2" / CHECKPOINT).write_bytes(b"x" * 5000)
    (made.project.run("smoke", OTHER).attempts / "1" / CHECKPOINT).write_bytes(b"x" * 300)
    interrupt(made, INTERRUPTED)
    return made


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_only_what_nothing_needs_is_listed_and_removed(context):
    project = context.project
    before = {path for path in project.results.rglob("*") if path.is_file()}
    dead, alive = dead_pid(), new_worker_note("", "", "")
    note = project.workers("smoke") / f"host-{dead}-1.json"
    note.write_text(json.dumps({**vars(alive), "runs": [], "name": note.stem, "pid": dead, "started": 1}))
    ours = project.sweeps("smoke") / f"20260101-000000-{socket.gethostname()}-{dead}.json"
    Sweep(ours.stem, "smoke", ()).write(ours)
    others = ours.with_name("20260101-000000-another-host-1.json")
    Sweep(others.stem, "smoke", ()).write(others)
    words = ("clean", "--preset", "smoke", "--results", project.results)
    refused = asked(*words)
    assert (refused.exit_code, "add --yes" in refused.stderr) == (2, True)
    listed = {Path(line.split()[-1]) for line in refused.stdout.splitlines()}
    attempts = project.run("smoke", RUN).attempts
    checkpoint = project.run("smoke", OTHER).attempts / "1" / CHECKPOINT
    assert listed == {attempts / "1", attempts / "2" / CHECKPOINT, checkpoint, note, ours}
    assert all(path.exists() for path in listed)
    done = asked(*words, "--yes")
    assert "removed 5 of 5" in done.stderr
    gone = before - {path for path in project.results.rglob("*") if path.is_file()}
    assert gone == {path for path in before if path in listed or attempts / "1" in path.parents}
    assert others.exists()
    assert asked(*words, "--yes").stderr == "nothing to remove\n"


def test_what_a_live_worker_holds_is_neither_listed_nor_removed(context):
    paths = context.project.run("smoke", RUN)
    found = [each for each in find_leftovers(context) if each.run is not None and each.run.id == RUN]
    assert len(found) == 2
    with FileLock(paths.lock) as lock:
        assert lock.acquire()
        assert {each.run.id for each in find_leftovers(context) if each.run} == {OTHER}
        # Taken between the list and the answer: flock excludes this process's own second descriptor too.
        assert not any(remove(context, each) for each in found)
    assert all(each.path.exists() for each in found)


def test_logs_follow_a_run_to_its_end(context):
    """A worker writes on and ends; its lines appear once each, also the last one."""
    project, paths = context.project, context.project.run("smoke", INTERRUPTED)
    log = project.logs("smoke") / "1.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(f"{INTERRUPTED}: epoch 1\n")
    lock = FileLock(paths.lock)
    assert lock.acquire()
    found = []
    words = ("logs", INTERRUPTED, "--follow", "--preset", "smoke", "--results", project.results)
    follower = threading.Thread(target=lambda: found.append(asked(*words).stdout))
    follower.start()
    time.sleep(1.0)
    assert follower.is_alive(), "the run is being trained"
    with log.open("a") as file:
        file.write("epoch 2\nepoch 3\n")
    lock.release()
    wait_for(lambda: not follower.is_alive(), "the follower's end")
    shown = found[0].partition("1.log:\n")[2]
    assert [line.strip() for line in shown.splitlines()] == [f"{INTERRUPTED}: epoch 1", "epoch 2", "epoch 3"]
