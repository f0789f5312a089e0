"""`repro status`: what the disk tells of every run, without touching anything."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repro.scheduling.heartbeat import HeartbeatFile, read_heartbeats
from repro.scheduling.traces import Phase, lock_holders, read_traces
from sweep_bench import HERE, PRESET, ROOT, Bench, make_record, wait_for

from repro.cli.context import Context
from repro.cli.status import Observer
from repro.records import Attempt
from repro.registry import Selection
from repro.signature import code_hash
from repro.storage import begin_attempt, note_attempt, run_lock, write_whole

RESNET18 = Selection(datasets=("cifar100",), networks=("resnet18",))


@pytest.fixture
def context(bench: Bench, monkeypatch) -> Context:
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    return Context.open(PRESET, bench.project.results)


def attempt(bench: Bench, run, outcome: str, checkpoint: bool = False, progress: dict | None = None) -> Path:
    """What an attempt that came to `outcome` leaves behind."""
    paths = bench.project.run(PRESET, run.id)
    folder = begin_attempt(paths)
    now = make_record(bench, run, code_hash(bench.registry.config(run, bench.preset))).provenance.started
    ended = None if outcome == "running" else now
    note_attempt(
        folder,
        Attempt(number=int(folder.name), started=now, ended=ended, outcome=outcome, resumed_at_step=0),
    )
    if checkpoint:
        (folder / "checkpoint-00000002.pt").write_bytes(b"")
    if progress is not None:
        report = {"run": run.id, "attempt": int(folder.name), "state": "training", "epoch": 1, "epochs": 3,
                  "step": 2, "steps": 4, "images_per_second": 160.0, "test_accuracy": 12.3, **progress}  # fmt: skip
        write_whole(paths.progress, json.dumps(report).encode())
    return folder


def put_record(bench: Bench, context: Context, run, **changes) -> Path:
    """A record that counts: the smoke preset's data are known, so their hash has to fit."""
    from repro.signature import data_hash

    record = make_record(
        bench, run, changes.pop("code", code_hash(bench.registry.config(run, bench.preset))), **changes
    )
    fingerprint = context.fingerprints([run])[run.cell.dataset]
    signature = record.signature.model_copy(update={"data": data_hash(fingerprint, record.config)})
    path = bench.project.run(PRESET, run.id).record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_copy(update={"signature": signature}).to_json())
    return path


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def test_every_run_is_in_one_kind_and_nothing_on_disk_changes(bench, context):
    runs = bench.runs(8)
    put_record(bench, context, runs[0])
    put_record(bench, context, runs[1], code="0" * 64)
    attempt(bench, runs[2], "interrupted", checkpoint=True, progress={})
    attempt(bench, runs[3], "failed: RuntimeError: boom")
    put_record(bench, context, runs[4], config_signature="0" * 64)
    put_record(bench, context, runs[5]).write_text("{")
    attempt(bench, runs[6], "running", progress={})
    os.utime(bench.project.run(PRESET, runs[6].id).progress, (0, 0))
    before = everything(bench.project.results)
    status = Observer(context, RESNET18).look()
    assert everything(bench.project.results) == before
    assert status.counts == {
        "done": 1, "older code": 1, "running": 0, "interrupted": 2, "failed": 1, "other recipe": 1,
        "damaged": 1, "to do": 1,
    }  # fmt: skip
    text = status.to_text()
    assert "no scheduler is at work here" in text
    assert f"interrupted: {runs[2].id}  epoch 2/3  with a checkpoint" in text
    assert f"interrupted: {runs[6].id}  epoch 2/3  without a checkpoint: it starts again  killed" in text
    assert f"failed: {runs[3].id}  RuntimeError: boom" in text
    assert f"damaged: {runs[5].id}" in text
    assert "free" in text
    assert json.loads(status.to_json())["counts"] == status.counts


def test_a_results_folder_that_does_not_exist_stays_so(bench, context):
    assert Observer(context, RESNET18).look().counts["to do"] == 8
    assert not bench.project.results.exists()


def test_a_run_whose_lock_is_held_is_running_and_its_lock_is_not_touched(bench, context):
    (run,) = bench.runs(1)
    attempt(bench, run, "running", progress={})
    paths = bench.project.run(PRESET, run.id)
    os.utime(paths.progress, (time.time() - 3600, time.time() - 3600))
    with run_lock(paths):
        trace = read_traces([run], bench.project, PRESET)[run.id]
        (shown,) = Observer(context, RESNET18).look().of("running")
    assert (trace.phase, trace.pid) == (Phase.RUNNING, os.getpid())
    # 6 of 12 steps of 32 images are left, at 160 images/s.
    assert shown.seconds_left == pytest.approx(6 * 32 / 160)
    assert shown.report_age > 3000
    assert read_traces([run], bench.project, PRESET)[run.id].phase is Phase.INTERRUPTED


def test_a_run_of_another_machine_is_running_as_long_as_it_reports(bench):
    (run,) = bench.runs(1)
    attempt(bench, run, "running", progress={})
    assert read_traces([run], bench.project, PRESET)[run.id].phase is Phase.RUNNING
    os.utime(bench.project.run(PRESET, run.id).progress, (time.time() - 60, time.time() - 60))
    assert read_traces([run], bench.project, PRESET)[run.id].phase is Phase.INTERRUPTED


def test_the_kernels_table_of_locks_is_read_where_there_is_one(tmp_path):
    table = tmp_path / "locks"
    assert lock_holders(table) == {}
    table.write_text(
        "1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF\n"
        "1: -> FLOCK  ADVISORY  WRITE 4243 fe:00:131 0 EOF\n"
        "2: POSIX  ADVISORY  READ 7 00:1a:9 0 EOF\n"
    )
    assert lock_holders(table) == {131: [4242]}


def test_status_sees_a_sweep_from_another_process_and_when_it_has_ended(bench, context):
    runs = bench.runs(2)
    bench.script({"*": ["wait"]})
    argv = [sys.executable, HERE / "fake_sweep.py", bench.project.results, "2", *(run.id for run in runs)]
    sweep = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        observer = Observer(context, RESNET18)
        wait_for(lambda: observer.look().counts["running"] == 2, "two runs to be seen running")
        status = observer.look()
        assert {run.run for run in status.of("running")} == {run.id for run in runs}
        assert "1,234 images/s  12.3 %" in status.to_text()
        (scheduler,) = status.schedulers
        assert (scheduler.pid, scheduler.total, len(scheduler.slots)) == (sweep.pid, 2, 2)
        assert f"scheduler {sweep.pid} on {socket.gethostname()}" in status.to_text()
        bench.release()
        assert sweep.wait(60) == 0
    finally:
        sweep.kill()
        sweep.wait()
    assert observer.look().schedulers == ()
    assert observer.look().counts["running"] == 0


def test_a_scheduler_that_was_killed_is_not_shown(bench, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    content = {"host": socket.gethostname(), "pid": process.pid, "started": 1.0, "time": time.time(),
               "deadline": None, "slots": [], "done": 0, "failed": 0, "todo": 0, "total": 0, "notice": None}  # fmt: skip
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content))
    assert read_heartbeats(tmp_path) == ()
    file.write_text(json.dumps({**content, "host": "another-machine"}))
    assert [heartbeat.pid for heartbeat in read_heartbeats(tmp_path)] == [process.pid]
    file.write_text(json.dumps({**content, "host": "another-machine", "time": time.time() - 60}))
    assert read_heartbeats(tmp_path) == ()
    file.write_text("{")
    assert read_heartbeats(tmp_path) == ()


def test_a_record_that_did_not_change_is_not_read_again(bench, context):
    first, second = bench.runs(2)
    path = put_record(bench, context, first)
    observer = Observer(context, RESNET18)
    assert observer.look().counts["done"] == 1
    content, stamp = path.read_bytes(), path.stat()
    put_record(bench, context, second)
    assert observer.look().counts["done"] == 2
    path.write_bytes(content.replace(b"resnet18", b"resnet81"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert observer.look().counts["damaged"] == 1


def test_a_heartbeat_file_is_gone_when_its_scheduler_is(tmp_path):
    with HeartbeatFile(tmp_path / "schedulers", ()):
        assert list((tmp_path / "schedulers").iterdir()) == []
    assert list((tmp_path / "schedulers").iterdir()) == []
