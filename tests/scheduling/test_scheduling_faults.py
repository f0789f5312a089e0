"""Faults while a sweep goes on: memory, lost devices, hangs, clocks, other machines, dead schedulers."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from repro.scheduling.events import Notice, Requeued, Started
from repro.scheduling.slots import find_slots
from sweep_bench import FAST, HERE, PRESET, Bench, wait_for

from repro.gpus import Gpu
from repro.records import Attempt
from repro.scheduling.executors.local import LocalExecutor
from repro.storage import begin_attempt, is_held, note_attempt, run_lock

GPUS = (Gpu(0, "NVIDIA A", "GPU-aaaa", 8 << 30), Gpu(1, "NVIDIA B", "GPU-bbbb", 8 << 30))


class Heard(list):
    """A listener that keeps what it hears."""

    def __call__(self, event):
        self.append(event)

    def of(self, kind):
        return [event for event in self if isinstance(event, kind)]

    def notices(self):
        return [event.text for event in self.of(Notice)]


def gpu_slots(per_gpu=1, gpus=GPUS):
    return find_slots(1, "cuda", per_gpu=per_gpu, environ={}, reader=lambda: gpus)


def sweep(bench: Bench, runs, actions, slots=1, processes=False, **options):
    """Runs a sweep; the GPUs are still there unless `reader` says otherwise."""
    bench.script(actions)
    heard = Heard()
    options.setdefault("reader", lambda: GPUS)
    executor = LocalExecutor() if processes else bench.inline()
    outcome = bench.scheduler(runs, executor, slots, heard, **options).run()
    return outcome, heard


def note_of(host: str) -> Attempt:
    """Of a first attempt that goes on."""
    now = datetime.now(UTC)
    return Attempt(
        number=1, started=now, ended=None, outcome="running", resumed_at_step=0, host=host, pid=4711
    )


def ids(runs):
    return tuple(run.id for run in runs)


# Memory


def test_gpu_memory_that_runs_out_lowers_the_packing_and_the_run_gets_the_device_alone(bench):
    runs = bench.runs(6)
    outcome, heard = sweep(bench, runs, {runs[0].id: ["crowded"]}, gpu_slots(per_gpu=3, gpus=GPUS[:1]))
    assert sorted(outcome.done) == sorted(ids(runs))
    assert bench.attempts(runs[0])[-1] == "done"
    assert bench.attempts(runs[0])[0].startswith("failed: OutOfMemoryError: CUDA out of memory")
    again = [event.job for event in heard.of(Started) if event.job.runs == (runs[0].id,)][-1]
    assert again.argv[-2:] == ("--co-tenants", "0")
    assert "memory ran out: from now on" in heard.notices()[0]
    assert not any("batch" in word for word in again.argv)


def test_nothing_runs_beside_a_run_that_must_be_alone(bench):
    """Neither what was there before, nor anything that is started while it is under way."""
    runs = bench.runs(8)
    bench.script({runs[0].id: ["crowded"]})
    executor = bench.inline()
    jobs = []
    beside = []

    def listener(event):
        if isinstance(event, Started):
            under_way = [job for job in jobs if executor.poll(job) is None]
            alone = [job for job in (event.job, *under_way) if job.slot.co_tenants == 0]
            if alone and under_way:
                beside.append((event.job.runs, [job.runs for job in under_way]))
            jobs.append(event.job)

    slots = gpu_slots(per_gpu=4, gpus=GPUS[:1])
    outcome = bench.scheduler(runs, executor, slots, listener, reader=lambda: GPUS).run()
    assert sorted(outcome.done) == sorted(ids(runs))
    assert [job.slot.co_tenants for job in jobs if job.runs == (runs[0].id,)] == [0]
    assert beside == []


def test_a_run_that_does_not_fit_even_alone_is_given_up_with_the_reason(bench):
    runs = bench.runs(2)
    error = "OutOfMemoryError: CUDA out of memory. Tried to allocate 80.00 GiB"
    outcome, _ = sweep(bench, runs, {runs[0].id: [f"error:{error}"]}, gpu_slots())
    (failure,) = outcome.failed
    assert (failure.run, failure.launches, failure.cause) == (runs[0].id, 3, f"{error} (3 times)")
    assert outcome.done == (runs[1].id,)


def test_a_kill_while_the_kernel_ran_out_of_memory_is_named_so(bench):
    runs = bench.runs(2)
    kills = iter(range(1000))
    outcome, heard = sweep(bench, runs, {runs[0].id: ["kill", "done"]}, count_oom_kills=lambda: next(kills))
    assert sorted(outcome.done) == sorted(ids(runs))
    (requeued,) = heard.of(Requeued)
    assert "ran out of memory (the kernel's OOM killer)" in requeued.cause
    assert bench.attempts(runs[0]) == [f"killed: {requeued.cause}", "done"]


def test_python_out_of_memory_is_tried_again_alone(bench):
    runs = bench.runs(2)
    outcome, heard = sweep(bench, runs, {runs[0].id: ["error:MemoryError: no message", "done"]}, slots=2)
    assert sorted(outcome.done) == sorted(ids(runs))
    assert heard.notices() == [
        f"memory ran out: from now on 1 at once on {heard.of(Started)[0].job.slot.name}"
    ]


# Devices


def test_a_gpu_that_breaks_is_set_aside_and_its_runs_go_elsewhere(bench):
    runs = bench.runs(8)
    outcome, heard = sweep(bench, runs, {"*": ["lost:GPU-aaaa"]}, gpu_slots(), processes=True)
    assert sorted(outcome.done) == sorted(ids(runs))
    assert outcome.exit_code == 0
    aside = [text for text in heard.notices() if "is set aside" in text]
    assert aside == [
        "cuda:0 (NVIDIA A) is set aside, its runs go elsewhere: "
        "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    ]
    places = [event.job.slot.uuid for event in heard.of(Started)]
    assert places.count("GPU-aaaa") == 1


def test_a_gpu_that_the_driver_does_not_list_any_more_is_set_aside(bench):
    """Whatever its worker died of."""
    runs = bench.runs(4)
    outcome, heard = sweep(bench, runs, {runs[0].id: ["kill", "done"]}, gpu_slots(), reader=lambda: GPUS[1:])
    assert sorted(outcome.done) == sorted(ids(runs))
    assert any("the driver does not list GPU-aaaa any more" in text for text in heard.notices())
    assert bench.attempts(runs[0])[0].startswith("device lost: ")


def test_without_any_device_left_the_sweep_ends_with_exit_code_3_and_says_why(bench):
    runs = bench.runs(4)
    outcome, _ = sweep(bench, runs, {"*": ["lost:GPU-aaaa"]}, gpu_slots(gpus=GPUS[:1]), processes=True)
    assert outcome.exit_code == 3
    assert outcome.stopped_early.startswith("no device is left: ")
    assert outcome.unfinished == ids(runs)
    assert outcome.failed == ()


# Hangs


def test_a_worker_that_hangs_is_ended_and_its_run_tried_again(bench):
    runs = bench.runs(2)
    pace = replace(FAST, first_sign=30.0, silence=0.5, checkpoint=0.2)
    outcome, heard = sweep(bench, runs, {runs[0].id: ["deaf", "done"]}, processes=True, pace=pace)
    assert sorted(outcome.done) == sorted(ids(runs))
    hung, done = bench.attempts(runs[0])
    assert hung.startswith("hung: its worker gave no sign of life for ")
    assert done == "done"
    assert any(text.startswith(f"ending the worker of {runs[0].id}: ") for text in heard.notices())


# Progress


def test_a_run_that_gets_further_each_time_may_be_killed_as_often_as_it_likes(bench):
    runs = bench.runs(1)
    outcome, heard = sweep(bench, runs, {runs[0].id: ["further"] * 8 + ["done"]})
    assert outcome.done == ids(runs)
    assert len(heard.of(Requeued)) == 8


# Other schedulers, other machines


def test_asking_whether_a_run_is_held_neither_takes_its_lock_nor_creates_anything(bench):
    (run,) = bench.runs(1)
    paths = bench.project.run(PRESET, run.id)
    assert not is_held(paths)
    assert not paths.work.exists()
    with run_lock(paths):
        assert is_held(paths)
        assert is_held(paths)
    assert not is_held(paths)


def test_a_lock_of_a_machine_that_is_gone_does_not_block_for_ever(bench):
    (run,) = bench.runs(1)
    paths = bench.project.run(PRESET, run.id)
    heard = Heard()
    bench.script({})
    with run_lock(paths):
        folder = begin_attempt(paths)
        note_attempt(folder, note_of("elsewhere"))
        pace = replace(FAST, takeover=0.5)
        outcome = bench.scheduler([run], bench.inline(), 1, heard, pace=pace).run()
    assert outcome.done == (run.id,)
    assert f"{run.id} is taken over: elsewhere holds it and has shown no sign of life" in heard.notices()


def test_a_lock_of_this_machine_is_never_broken(bench):
    """Here the kernel frees the lock of a dead process, so whoever holds it lives."""
    (run,) = bench.runs(1)
    paths = bench.project.run(PRESET, run.id)
    bench.script({})
    lock = run_lock(paths)
    lock.__enter__()
    folder = begin_attempt(paths)
    note_attempt(folder, note_of(socket.gethostname()))
    heard = Heard()
    looks = 0

    def listener(event):
        nonlocal looks
        heard(event)
        looks += hasattr(event, "running")
        if looks == 20:
            lock.__exit__(None, None, None)

    pace = replace(FAST, takeover=0.1)
    outcome = bench.scheduler([run], LocalExecutor(), 1, listener, pace=pace).run()
    assert outcome.done == (run.id,)
    assert not any("is taken over" in text for text in heard.notices())


# Clocks


def test_clocks_that_jump_by_days_change_nothing(bench, tmp_path):
    """Every look at the wall clock, of the scheduler and of its workers, is off by up to a day either way."""
    folder = tmp_path / "jumping"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import datetime, random, time\n"
        "real = time.time\n"
        "time.time = lambda: real() + random.uniform(-86400, 86400)\n"
        "class Jumping(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None):\n"
        "        return datetime.datetime.fromtimestamp(time.time(), tz)\n"
        "Jumping.__name__ = 'datetime'\n"
        "original, datetime.datetime = datetime.datetime, Jumping\n"
        "Jumping.fromtimestamp = original.fromtimestamp\n"
    )
    runs = bench.runs(4)
    bench.script({runs[0].id: ["kill", "done"], runs[1].id: ["exit:75", "done"]})
    done = subprocess.run(
        [sys.executable, HERE / "fake_sweep.py", bench.project.results, "2", *(run.id for run in runs)],
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["done"]) == sorted(ids(runs))
    # The clock did jump: what was noted lies hours apart.
    noted = [
        json.loads((bench.project.run(PRESET, run.id).attempts / "1" / "attempt.json").read_text())["started"]
        for run in runs
    ]
    assert len({moment[:13] for moment in noted}) > 1


# Dead schedulers


@pytest.mark.slow
def test_nothing_of_a_killed_scheduler_is_left_even_where_its_worker_is_stuck(bench):
    """The worker cannot run a handler or a thread, and its child is in a session of its own."""
    (run,) = bench.runs(1)
    bench.script({"*": ["stuck"]})
    sweep = subprocess.Popen(
        [sys.executable, HERE / "fake_sweep.py", bench.project.results, "1", run.id],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = bench.project.results / "pids"
    wait_for(file.exists, "the worker to be stuck")
    pids = file.read_text().split()
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    wait_for(lambda: not any(_runs(pid) for pid in pids), "the end of the worker and its child")


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
