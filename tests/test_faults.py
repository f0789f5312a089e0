"""Faults that real training meets: requests while it starts, full disks, memory, damaged checkpoints."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from repro.commands import worker
from repro.commands.stop import Stop
from repro.scheduling.causes import Kind, cause_of_end, cause_of_failure, oom_kills
from smoke_project import OTHER, ROOT, RUN, record_of, smoke_context, train_here
from tiny_disk import on_a_tiny_disk

from repro.storage import attempts_of

TRAIN = f"{sys.executable} -m repro train {RUN} --preset smoke --device cpu --results $DISK/results"
SWEEP = (
    f"{sys.executable} -m repro run --preset smoke --table 1 --network resnet18 --seed 0"
    " --loss scaled-bn-m1 --loss cross-entropy --results $DISK/results"
)
STATUS = f"{sys.executable} -m repro status --preset smoke --results $DISK/results"


class StopAfter(Stop):
    """Asks for a stop when it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        super().__init__()

    @property
    def now(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    @now.setter
    def now(self, value: bool) -> None:
        assert not value


@pytest.fixture
def context(monkeypatch, tmp_path):
    return smoke_context(monkeypatch, tmp_path / "results")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The record of RUN as it is without any fault."""
    with pytest.MonkeyPatch.context() as patch:
        context = smoke_context(patch, tmp_path_factory.mktemp("straight"))
        assert train_here(context, RUN) == 0
        return record_of(context, RUN)


def listens_to(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


# Requests


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGUSR1, 75),
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, 75, marks=pytest.mark.slow),
    ],
)
def test_a_worker_can_be_stopped_while_it_still_imports_torch(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "repro", "train", RUN, "--preset", "smoke", "--results", tmp_path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    # SIGINT has a handler of Python's own from the start, the others are repro's.
    while not listens_to(process.pid, signal.SIGUSR2):
        assert process.poll() is None
        time.sleep(0.002)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (code, "")
    assert not (tmp_path / "smoke").exists()


# Checkpoints


def unfit(path: Path) -> None:
    """Takes the optimizer's state out of a checkpoint and puts a right checksum over the rest."""
    content = torch.load(io.BytesIO(path.read_bytes()[51:]), weights_only=True)
    del content["state"]["optimizer"]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    path.write_bytes(b"repro checkpoint 3\n" + hashlib.sha256(payload).digest() + payload)


@pytest.mark.parametrize("damage", ["torn", "flipped", "unfit"])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(context, straight, damage):
    assert train_here(context, RUN, stop=StopAfter(4), checkpoint_interval=0.0) == 75
    paths = context.project.run("smoke", RUN)
    older, newest = sorted(paths.attempts.glob("1/checkpoint-*.pt"))
    if damage == "unfit":
        unfit(newest)
    else:
        content = bytearray(newest.read_bytes())
        content = content[:-1000] if damage == "torn" else content
        content[len(content) // 2] ^= 1 if damage == "flipped" else 0
        newest.write_bytes(content)
    said = []
    assert train_here(context, RUN, say=said.append) == 0
    record = record_of(context, RUN)
    assert record.comparable() == straight.comparable()
    assert record.provenance.attempts[1].resumed_at_step == int(older.stem.removeprefix("checkpoint-"))
    assert any(line.startswith(f"{RUN}: rejected checkpoint {newest}") for line in said)


@pytest.mark.slow
def test_a_run_keeps_its_thread_count_when_it_is_resumed_with_another(context):
    """Sums over threads round otherwise: what was begun with two threads is ended with two."""
    assert train_here(context, RUN, threads=2) == 0
    whole = record_of(context, RUN)
    context.project.run("smoke", RUN).record.unlink()
    assert train_here(context, RUN, stop=StopAfter(3), threads=2) == 75
    assert train_here(context, RUN, threads=1) == 0
    resumed = record_of(context, RUN)
    assert resumed.provenance.threads == 2
    assert resumed.provenance.attempts[-1].resumed_at_step > 0
    assert resumed.comparable() == whole.comparable()


def test_a_run_that_is_to_go_on_in_another_precision_starts_anew_and_says_so(context):
    assert train_here(context, RUN, precision="fp32") == 0
    whole = record_of(context, RUN)
    context.project.run("smoke", RUN).record.unlink()
    assert train_here(context, RUN, stop=StopAfter(3), precision="bf16") == 75
    said = []
    assert train_here(context, RUN, say=said.append, precision="fp32") == 0
    record = record_of(context, RUN)
    assert record.comparable() == whole.comparable()
    assert [attempt.resumed_at_step for attempt in record.provenance.attempts] == [0, 0, 0]
    assert f"{RUN}: starts anew: its checkpoint was made otherwise (precision bf16 → fp32)" in said


# Memory


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), Kind.DEVICE_MEMORY),
        (MemoryError(), Kind.HOST_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Kind.DEVICE_LOST),
        (RuntimeError("shapes cannot be multiplied"), Kind.ERROR),
    ],
)
def test_what_a_worker_notes_of_an_error_tells_its_cause(context, monkeypatch, error, kind):
    def train_run(*arguments, **options):
        raise error

    monkeypatch.setattr(worker, "train_run", train_run)
    assert train_here(context, RUN, OTHER) == 1
    (attempt,) = attempts_of(context.project.run("smoke", RUN))
    assert cause_of_failure(attempt.outcome.removeprefix("failed: "), on_gpu=True).kind is kind
    # After an error of CUDA no other run can be trained in this process.
    others = attempts_of(context.project.run("smoke", OTHER))
    assert len(others) == (0 if "CUDA error" in str(error) else 1)


def test_a_kill_by_the_kernels_oom_killer_is_told_from_any_other(tmp_path):
    """A real one, in a memory cgroup of 64 MiB."""
    group = next(
        (
            folder / "repro-test-oom"
            for folder in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
            if (folder / "cgroup.procs").exists() and os.access(folder, os.W_OK)
        ),
        None,
    )
    try:
        assert group is not None
        group.mkdir(exist_ok=True)
        limit = next(group / n for n in ("memory.limit_in_bytes", "memory.max") if (group / n).exists())
        limit.write_text(str(64 << 20))
        (group / "cgroup.procs").read_text()
    except (AssertionError, OSError, StopIteration):
        pytest.skip("no memory cgroup can be made here")
    before = oom_kills()
    eat = "x = bytearray(500 << 20)"
    script = f"echo $$ > {group}/cgroup.procs || exit 77; exec {sys.executable} -c '{eat}'"
    done = subprocess.run(["bash", "-c", script], capture_output=True)
    group.rmdir()
    if done.returncode == 77:
        pytest.skip("this process cannot be put into a memory cgroup")
    log = tmp_path / "log"
    log.touch()
    cause = cause_of_end(done.returncode, log, True, False, oom_kills() - before)
    assert (done.returncode, cause.kind) == (-signal.SIGKILL, Kind.HOST_MEMORY)
    assert cause_of_end(-signal.SIGKILL, log, True, False, 0).kind is Kind.CRASH


# Disks


def test_a_worker_keeps_its_finished_result_until_a_full_disk_takes_it(tmp_path, straight):
    done = on_a_tiny_disk(
        f"""
        {TRAIN} --checkpoint-interval 0 2> $HERE/stderr &
        UNTIL test -e $DISK/results/smoke/.work/{RUN}/progress.json
        FILL
        UNTIL SAYS "the finished result waits"
        grep -h outcome $DISK/results/smoke/.work/{RUN}/attempts/1/attempt.json > $HERE/outcome
        FREE
        wait $!; code=$?
        cp -r $DISK/results $HERE/results
        exit $code
        """,
        tmp_path,
    )
    said = (tmp_path / "stderr").read_text()
    assert done.returncode == 0, done.stderr + said
    assert json.loads((tmp_path / "outcome").read_text())["outcome"] == "running"
    assert said.count("No space left on device") == said.count("waits until the disk") + said.count(
        "continues without a new checkpoint"
    )
    assert said.count("waits until the disk") == 1
    record = record_of(smoke_context(None, tmp_path / "results"), RUN)
    assert record.comparable() == straight.comparable()
    assert [attempt.outcome for attempt in record.provenance.attempts] == ["done"]


@pytest.mark.slow
def test_a_sweep_pauses_on_a_full_disk_says_so_once_and_goes_on_by_itself(tmp_path):
    done = on_a_tiny_disk(
        f"""
        FILL
        {SWEEP} 2> $HERE/stderr &
        UNTIL SAYS "^paused: "
        sleep 3
        FREE
        wait $!; code=$?
        cp -r $DISK/results $HERE/results
        exit $code
        """,
        tmp_path,
    )
    said = (tmp_path / "stderr").read_text()
    assert done.returncode == 0, done.stderr + said
    assert said.count("paused: ") == said.count("can be written again: going on") == 1
    assert "No space left on device" in said
    assert "2 runs: 2 done" in said
    context = smoke_context(None, tmp_path / "results")
    for run in (RUN, OTHER):
        assert [a.outcome for a in record_of(context, run).provenance.attempts] == ["done"]


@pytest.mark.slow
def test_a_disk_that_fills_up_when_nothing_is_left_to_start_is_told_and_fails_nothing(tmp_path, straight):
    done = on_a_tiny_disk(
        f"""
        {SWEEP} 2> $HERE/stderr &
        UNTIL test -e $DISK/results/smoke/.work/{RUN}/progress.json
        UNTIL test -e $DISK/results/smoke/.work/{OTHER}/progress.json
        FILL
        UNTIL SAYS "^paused: "
        {STATUS} > $HERE/paused
        FREE
        UNTIL SAYS "can be written again"
        {STATUS} > $HERE/resumed
        wait $!; code=$?
        cp -r $DISK/results $HERE/results
        exit $code
        """,
        tmp_path,
    )
    said = (tmp_path / "stderr").read_text()
    assert done.returncode == 0, done.stderr + said
    assert said.count("paused: ") == said.count("can be written again: going on") == 1
    assert "2 runs: 2 done" in said
    assert "; paused: the results folder takes no writes" in (tmp_path / "paused").read_text()
    assert "paused" not in (tmp_path / "resumed").read_text()
    context = smoke_context(None, tmp_path / "results")
    assert record_of(context, RUN).comparable() == straight.comparable()
    assert [len(record_of(context, run).provenance.attempts) for run in (RUN, OTHER)] == [1, 1]


def test_a_read_only_results_folder_is_exit_code_3_and_one_line(tmp_path):
    done = on_a_tiny_disk(f"READ_ONLY\n{SWEEP}", tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "Read-only file system" in done.stderr


def test_a_disk_that_becomes_read_only_costs_no_finished_result(tmp_path, straight):
    done = on_a_tiny_disk(
        f"""
        {TRAIN} 2> $HERE/stderr &
        UNTIL test -e $DISK/results/smoke/.work/{RUN}/progress.json
        READ_ONLY
        UNTIL SAYS "the finished result waits"
        WRITABLE
        wait $!; code=$?
        cp -r $DISK/results $HERE/results
        exit $code
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "stderr").read_text()
    record = record_of(smoke_context(None, tmp_path / "results"), RUN)
    assert record.comparable() == straight.comparable()


def test_every_test_that_the_page_on_faults_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    written = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(named) > 30
    assert named - written == set()
