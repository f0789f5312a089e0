"""Faults that real training meets: requests while it starts, full disks, damaged checkpoints."""

import hashlib
import io
import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from smoke_project import OTHER, RUN, interrupt, record_of, repro, smoke_context, start, train_here
from tiny_disk import on_a_tiny_disk

from repro.cli.context import Context

TRAIN = f"{sys.executable} -m repro train {RUN} --preset smoke --device cpu --results $DISK/results"
SWEEP = (
    f"{sys.executable} -m repro run --preset smoke --table 1 --network resnet18 --seed 0"
    " --loss scaled-bn-m1 --loss cross-entropy --results $DISK/results"
)
BEGUN = f"test -e $DISK/results/smoke/.work/{RUN}/attempts/1/attempt.json"


@pytest.fixture
def straight(trained):
    """The record of RUN as it is without any fault."""
    return record_of(trained, RUN)


# Requests


def listens_to(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_worker_can_be_stopped_while_it_still_imports_torch(tmp_path, number, code):
    process = start("train", RUN, "--preset", "smoke", "--results", tmp_path)
    # SIGINT has a handler of Python's own from the start, the others are repro's.
    while not listens_to(process.pid, signal.SIGUSR2):
        assert process.poll() is None
        time.sleep(0.002)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (code, "")
    assert not list(tmp_path.rglob("attempts"))


# Checkpoints


def unfit(path: Path) -> None:
    """Takes the optimizer's state out of a checkpoint and puts a right checksum over the rest."""
    magic, whole = path.read_bytes()[:19], path.read_bytes()[19 + 32 :]
    content = torch.load(io.BytesIO(whole), weights_only=True)
    del content["state"]["optimizer"]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    path.write_bytes(magic + hashlib.sha256(payload).digest() + payload)


@pytest.mark.parametrize("damage", ["torn", "flipped", "unfit"])
def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_one_before(context, straight, damage):
    interrupt(context, RUN)
    older, newest = sorted(context.project.run("smoke", RUN).attempts.glob("1/checkpoint-*.pt"))
    if damage == "unfit":
        unfit(newest)
    else:
        content = bytearray(newest.read_bytes())
        content = content[:-1000] if damage == "torn" else content
        content[len(content) // 2] ^= 1 if damage == "flipped" else 0
        newest.write_bytes(content)
    said: list[str] = []
    assert train_here(context, RUN, say=said.append) == 0
    record = record_of(context, RUN)
    assert record.comparable() == straight.comparable()
    assert record.provenance.attempts[1].resumed_at_step == int(older.stem.removeprefix("checkpoint-"))
    (line,) = (line for line in said if line.startswith(f"{RUN}: rejected checkpoint {newest}"))
    assert ("does not fit this run" in line) == (damage == "unfit")


def test_a_run_keeps_its_thread_count_when_it_is_resumed_with_another(context):
    """Sums over threads round otherwise: what was begun with two threads is ended with two."""
    assert train_here(context, RUN, threads=2) == 0
    whole = record_of(context, RUN)
    context.project.run("smoke", RUN).record.unlink()
    interrupt(context, RUN, threads=2)
    assert train_here(context, RUN, threads=1) == 0
    resumed = record_of(context, RUN)
    assert resumed.provenance.threads == 2
    assert resumed.provenance.attempts[-1].resumed_at_step > 0
    assert resumed.comparable() == whole.comparable()


def test_a_run_in_another_precision_than_its_checkpoint_restarts_and_says_so(context):
    assert train_here(context, RUN, precision="fp32") == 0
    whole = record_of(context, RUN)
    context.project.run("smoke", RUN).record.unlink()
    interrupt(context, RUN, precision="bf16")
    said: list[str] = []
    assert train_here(context, RUN, say=said.append, precision="fp32") == 0
    record = record_of(context, RUN)
    assert record.comparable() == whole.comparable()
    assert [attempt.resumed_at_step for attempt in record.provenance.attempts] == [0, 0, 0]
    words = "restarting from epoch 1: the checkpoint used bf16 precision; this run uses fp32 precision"
    assert f"{RUN}: {words}" in said


# Disks


def ended(script: str, folder: Path) -> tuple[Context, str]:
    """Runs what the script begins on a tiny disk to its end, which must be a good one; its results and words."""
    script += "\nwait $!; code=$?; cp -r $DISK/results $HERE/results; exit $code"
    done = on_a_tiny_disk(script, folder)
    said = (folder / "stderr").read_text()
    assert done.returncode == 0, done.stderr + said
    return smoke_context(None, folder / "results"), said


def test_a_worker_keeps_its_finished_result_until_a_full_disk_takes_it(tmp_path, straight):
    context, said = ended(
        f"""
        {TRAIN} --checkpoint-interval 0 2> $HERE/stderr &
        UNTIL {BEGUN}
        FILL
        UNTIL SAYS "the finished result waits"
        cp $DISK/results/smoke/.work/{RUN}/attempts/1/attempt.json $HERE
        FREE""",
        tmp_path,
    )
    assert json.loads((tmp_path / "attempt.json").read_text())["outcome"] == "running"
    assert said.count("the finished result waits until the disk can be written again") == 1
    record = record_of(context, RUN)
    assert record.comparable() == straight.comparable()
    assert [attempt.outcome for attempt in record.provenance.attempts] == ["done"]


@pytest.mark.slow
def test_a_sweep_on_a_disk_that_fills_up_waits_and_fails_nothing(tmp_path, straight):
    context, said = ended(
        f"""
        {SWEEP} 2> $HERE/stderr &
        UNTIL {BEGUN}
        UNTIL {BEGUN.replace(RUN, OTHER)}
        FILL
        sleep 15
        FREE""",
        tmp_path,
    )
    assert "2 runs: 2 done" in said
    assert record_of(context, RUN).comparable() == straight.comparable()
    assert [len(record_of(context, run).provenance.attempts) for run in (RUN, OTHER)] == [1, 1]


def test_a_disk_without_room_from_the_start_or_read_only_is_exit_code_3_and_one_line(tmp_path):
    for state, words in (("FILL", "No space left on device"), ("READ_ONLY", "Read-only file system")):
        folder = tmp_path / state
        folder.mkdir()
        done = on_a_tiny_disk(f"{state}\n{SWEEP}", folder)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert words in done.stderr


def test_a_disk_that_becomes_read_only_costs_no_finished_result(tmp_path, straight):
    context, _ = ended(
        f"""
        {TRAIN} 2> $HERE/stderr &
        UNTIL {BEGUN}
        READ_ONLY
        UNTIL SAYS "the finished result waits"
        WRITABLE""",
        tmp_path,
    )
    assert record_of(context, RUN).comparable() == straight.comparable()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_takes_nothing_does_not_end_a_sweep(tmp_path):
    words = ("run", "--preset", "smoke", "--table", "1", "--network", "resnet18", "--loss", "cross-entropy")
    with Path("/dev/full").open("w") as full:
        repro(*words, "--results", tmp_path, stderr=full, check=0)
    assert (tmp_path / "smoke" / f"{OTHER}.json").is_file()
