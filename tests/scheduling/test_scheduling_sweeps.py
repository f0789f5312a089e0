"""Sweeps of real workers on this machine: requests to stop, deaths, neighbours, budgets."""

import os
import signal

import pytest
from real_sweep import ENDLESS, LONG, SHORT
from smoke_project import ROOT, record_of, repro, smoke_context, train_here, wait_for

from repro.storage import FileLock
from repro.system import usable_cores

CORES = usable_cores()  # workers at once
pytestmark = pytest.mark.slow


def test_ctrl_c_lets_the_runs_in_progress_finish(sweep):
    its = sweep(CORES + 1, LONG)
    its.wait_until_training(*its.runs[:CORES])
    its.process.send_signal(signal.SIGINT)
    said = its.end(130)
    assert "stopping after the runs in progress; Ctrl-C again" in said
    assert f"{CORES} done, 1 to do" in said
    assert "interrupted by SIGINT: the same command resumes it" in said
    assert its.outcomes() == [["done"]] * CORES + [[]]


def test_a_second_ctrl_c_stops_at_a_checkpoint_and_a_third_kills(sweep):
    its = sweep(2, ENDLESS)
    notes = its.wait_until_training(*its.runs[: min(2, CORES)])
    os.kill(notes[0].pid, signal.SIGSTOP)  # one that hears nothing
    its.process.send_signal(signal.SIGINT)
    its.wait_until_says("stopping after")
    its.process.send_signal(signal.SIGINT)
    its.wait_until_says("writing checkpoints and stopping")
    wait_for(lambda: len(its.workers()) == 1, "the other worker to end")
    its.process.send_signal(signal.SIGINT)
    said = its.end(130)
    assert "killing the workers" in said
    assert "2 interrupted" in said
    assert not its.workers()
    for note in notes:
        (run,) = [each.run for each in note.runs]
        (attempt,) = its.attempts(run)
        assert attempt.kind == ("running" if note is notes[0] else "interrupted")
        assert note is notes[0] or attempt.saved_step > 0


def test_sigterm_stops_at_a_checkpoint_and_the_same_command_resumes(sweep):
    its = sweep(1, LONG)
    its.wait_until_training()
    its.process.send_signal(signal.SIGTERM)
    assert "interrupted by SIGTERM: the same command resumes it" in its.end(75)
    its.start()
    its.end(0)
    interrupted, done = its.attempts(its.runs[0])
    assert (interrupted.kind, done.kind) == ("interrupted", "done")
    assert done.resumed_at_step == interrupted.saved_step > 0
    its.assert_nothing_lost_or_duplicated()


def test_a_worker_killed_again_and_again_ends_with_the_uninterrupted_record(sweep, tmp_path):
    its = sweep(1, 2 * LONG, "--checkpoint-interval", "0.3")
    (run,) = its.runs
    folder = its.context.project.run("smoke", run).attempts
    for attempt in (1, 2, 3, 4):  # one more than a run may crash without getting further
        wait_for(lambda number=attempt: list(folder.glob(f"{number}/checkpoint-*.pt")), "a checkpoint")
        (worker,) = its.workers()
        worker.kill()
    said = its.end(0)
    assert said.count("killed by SIGKILL") == 4
    record = record_of(its.context, run)
    assert [each.outcome for each in record.provenance.attempts] == ["crashed: killed by SIGKILL"] * 4 + [
        "done"
    ]
    assert record.provenance.attempts[-1].resumed_at_step > 0
    assert not list(folder.glob("*/checkpoint-*.pt"))
    straight = smoke_context(None, tmp_path / "straight")
    assert train_here(straight, run) == 0
    assert record.comparable() == record_of(straight, run).comparable()


def test_nothing_outlives_a_killed_supervisor_and_the_next_one_resumes(sweep):
    its = sweep(2, LONG)
    its.wait_until_training(*its.runs[: min(2, CORES)])
    its.process.kill()
    its.process.wait()
    wait_for(lambda: not its.workers(), "the workers to end", 10)
    assert its.outcomes()[0] == ["interrupted"]
    its.start()
    its.end(0)
    assert its.attempts(its.runs[0])[-1].resumed_at_step > 0
    its.assert_nothing_lost_or_duplicated()


def test_two_supervisors_on_one_results_folder_train_nothing_twice(sweep):
    first = sweep(4, LONG // 2)
    second = sweep(4, LONG // 2, folder=first.log.parent)
    first.end(0)
    assert "another worker has this device; waiting for it" in first.said + second.said
    second.end(0)
    assert first.outcomes() == [["done"]] * 4
    first.assert_nothing_lost_or_duplicated()


def test_a_run_that_another_process_trains_is_waited_for(sweep):
    its = sweep(1, SHORT)
    its.end(0)
    lock = FileLock(its.context.project.run("smoke", its.runs[0]).lock)
    its.context.project.run("smoke", its.runs[0]).record.unlink()
    assert lock.acquire()
    its.start()
    its.wait_until_says(f"{its.runs[0]} is being trained by another process; waiting")
    (file,) = its.context.project.sweeps("smoke").glob("*.json")
    late = ("train", "--preset", "smoke", "--results", its.context.project.results, "--sweep", file)
    idle = repro(*late, check=0, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "torch" not in idle.stderr  # a worker that finds nothing, as an array's late task, is gone at once
    lock.release()
    assert "1 done" in its.end(0)
    assert "its sweep has ended" in repro(*late, check=0).stderr


def test_status_sees_a_sweep_and_stop_ends_it_from_elsewhere(sweep):
    its = sweep(CORES + 1, ENDLESS)
    notes = its.wait_until_training(*its.runs[:CORES])
    shown = its.repro("status", "--set", f"epochs={ENDLESS}", "--table", "1", "--network", "resnet18")
    assert f"{CORES} running" in shown
    assert all(f"worker {note.pid} on {note.host} (" in shown for note in notes)
    assert f"running: {its.runs[0]}  epoch " in shown
    its.repro("stop", "--now")
    said = its.end(75)
    assert "stopped by request: the same command resumes it" in said
    assert its.outcomes() == [["interrupted"]] * CORES + [[]]
    assert "attempt 1: " in its.repro("logs", its.runs[0])
    results = its.context.project.results
    assert "no sweep is running" in repro("stop", "--preset", "smoke", "--results", results, check=0).stderr


def test_clocks_that_jump_by_days_change_nothing(sweep, tmp_path):
    """Every look at the wall clock, of the supervisor and of its workers, is off by up to a day either way."""
    (tmp_path / "jumping").mkdir()
    (tmp_path / "jumping" / "sitecustomize.py").write_text(
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
    its = sweep(2, LONG, environment={"PYTHONPATH": f"{tmp_path / 'jumping'}:{ROOT}"})
    (note, *_) = its.wait_until_training(its.runs[0])
    os.kill(note.pid, signal.SIGKILL)
    its.end(0)
    started = {note.started.strftime("%d %H") for run in its.runs for note in its.attempts(run)}
    assert len(started) > 1, "the clock did not jump"
    its.assert_nothing_lost_or_duplicated()
