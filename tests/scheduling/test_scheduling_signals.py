"""Ctrl-C, SIGTERM and two sweeps at once, with real processes and real signals."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_bench import HERE, PRESET, Bench, wait_for


def start(bench: Bench, runs, slots: int = 1) -> subprocess.Popen:
    argv = [sys.executable, HERE / "fake_sweep.py", bench.project.results, str(slots)]
    return subprocess.Popen(
        [*argv, *(run.id for run in runs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(sweep: subprocess.Popen) -> tuple[dict, str]:
    output, lines = sweep.communicate(timeout=60)
    assert output, lines
    return json.loads(output), lines


def wait_until_trained(bench: Bench, *runs) -> None:
    for run in runs:
        wait_for(bench.project.run(PRESET, run.id).progress.exists, f"{run.id} to be trained")


def worker_of(bench: Bench, run) -> int:
    return json.loads(bench.project.run(PRESET, run.id).progress.read_text())["pid"]


def test_ctrl_c_once_drains(bench):
    runs = bench.runs(3)
    bench.script({"*": ["wait"]})
    sweep = start(bench, runs)
    wait_until_trained(bench, runs[0])
    sweep.send_signal(signal.SIGINT)
    # The notice comes after the worker was told, so that the run in hand is its last.
    line = sweep.stderr.readline()
    assert line.startswith("nothing new starts; waiting for 1 worker to finish the run in hand")
    bench.release()
    outcome, _ = end(sweep)
    assert outcome["done"] == [runs[0].id]
    assert outcome["unfinished"] == [runs[1].id, runs[2].id]
    assert (sweep.returncode, outcome["interrupted"]) == (130, "SIGINT")
    assert bench.attempts(runs[0]) == ["done"]
    assert bench.attempts(runs[1]) == []


def test_ctrl_c_twice_stops_at_the_next_checkpoint(bench):
    runs = bench.runs(2)
    bench.script({"*": ["wait"]})
    sweep = start(bench, runs, slots=2)
    wait_until_trained(bench, *runs)
    sweep.send_signal(signal.SIGINT)
    sweep.stderr.readline()
    sweep.send_signal(signal.SIGINT)
    outcome, lines = end(sweep)
    assert "stopping 2 workers at the next checkpoint, 20 s at most" in lines
    assert outcome["failed"] == []
    assert outcome["unfinished"] == [run.id for run in runs]
    assert sweep.returncode == 130
    assert [bench.attempts(run) for run in runs] == [["interrupted"]] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_end_stops_at_the_next_checkpoint_with_exit_code_75(bench, number):
    """SIGUSR1 is what a cluster's time limit sends ahead."""
    (run,) = bench.runs(1)
    bench.script({"*": ["wait"]})
    sweep = start(bench, [run])
    wait_until_trained(bench, run)
    sweep.send_signal(number)
    outcome, _ = end(sweep)
    assert (sweep.returncode, outcome["unfinished"]) == (75, [run.id])
    assert outcome["interrupted"] == number.name
    assert bench.attempts(run) == ["interrupted"]


def test_what_was_interrupted_goes_on_when_started_again(bench):
    (run,) = bench.runs(1)
    bench.script({"*": ["wait"]})
    sweep = start(bench, [run])
    wait_until_trained(bench, run)
    sweep.terminate()
    end(sweep)
    bench.release()
    again = start(bench, [run])
    outcome, lines = end(again)
    assert (again.returncode, outcome["done"]) == (0, [run.id])
    assert lines == f"[1/1] done {run.id}  40.0 %  8m 12s\n"


def test_a_killed_scheduler_leaves_no_worker_training(bench):
    (run,) = bench.runs(1)
    bench.script({"*": ["wait"]})
    sweep = start(bench, [run])
    wait_until_trained(bench, run)
    sweep.kill()
    sweep.communicate(timeout=60)
    wait_for(lambda: bench.attempts(run) == ["interrupted"], "the orphan to stop")


def test_two_sweeps_at_once_train_nothing_twice(bench):
    runs = bench.runs(5)
    bench.script({runs[0].id: ["wait"], runs[1].id: ["wait"]})
    sweeps = [start(bench, runs), start(bench, runs)]
    # One holds the first run, so the other has gone on to the second.
    wait_until_trained(bench, *runs[:2])
    assert worker_of(bench, runs[0]) != worker_of(bench, runs[1])
    bench.release()
    outcomes = [end(sweep)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0]
    for outcome in outcomes:
        assert sorted(outcome["done"] + outcome["left"]) == sorted(run.id for run in runs)
    assert [bench.attempts(run) for run in runs] == [["done"]] * 5


def test_the_log_of_every_worker_is_kept(bench):
    runs = bench.runs(2)
    bench.script({})
    sweep = start(bench, runs, slots=2)
    end(sweep)
    assert len(list(Path(bench.project.work(PRESET) / "logs").glob("*.log"))) == 2
