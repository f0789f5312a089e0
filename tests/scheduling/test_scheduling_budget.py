"""A time budget: what it buys, and that the sweep ends when it is spent."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from sweep_bench import FAST, HERE, Bench

from repro.errors import UsageError
from repro.scheduling.budget import START_UP, spend
from repro.scheduling.durations import parse_duration
from repro.scheduling.estimate import Duration, Estimate
from repro.scheduling.executors.local import LocalExecutor
from repro.scheduling.outcome import Outcome


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("20h", 72000), ("1d2h", 93600), ("45s", 45), ("1h1m1s", 3661)]
)
def test_a_time_is_read_as_people_write_it(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "2h1d", "-5m", "0m", "1.5h", "tomorrow"])
def test_anything_else_is_no_time(text):
    with pytest.raises(UsageError, match="expected one such as 30m, 20h or 1d2h"):
        parse_duration(text)


def estimate_by(seconds: dict[str, float]):
    """Each run of a network takes so long; a network that is not named has no estimate."""

    def estimate(runs):
        each = seconds.get(runs[0].cell.network)
        wall = None if each is None else Duration(len(runs) * each / 2, len(runs) * each)
        return Estimate(wall, wall, "told")

    return estimate


def sweep_of(bench: Bench):
    """Three columns, two seeds each, dearest first."""
    return [
        run
        for network in ("resnet50", "vgg16", "resnet18")
        for run in bench.runs(16, network=network, seeds=(0, 1))
    ]


def names(parts):
    return [(part.network, part.seed) for part in parts]


def test_the_cheapest_columns_come_first_whole_and_seed_by_seed(bench):
    cost = {"resnet50": 1000, "vgg16": 10, "resnet18": 100}
    bought = spend(8 * (10 + 10 + 100) + 3 * START_UP, sweep_of(bench), estimate_by(cost))
    assert names(bought.fits) == [("vgg16", 0), ("vgg16", 1), ("resnet18", 0)]
    assert names(bought.rest) == [("resnet18", 1), ("resnet50", 0), ("resnet50", 1)]
    assert [run.id for run in bought.runs[:8]] == [run.id for run in bench.runs(8, network="vgg16")]
    assert len(bought.runs) == 48
    assert bought.lines()[0].startswith("budget 16m 30s: 3 of 6 column seeds fit, in ")
    assert bought.lines()[-1].startswith("  what time is left begins cifar100/resnet18 seed 1 (8 runs, ")


def test_a_column_that_is_nearly_done_is_cheap(bench):
    runs = [*bench.runs(8, network="vgg16"), *bench.runs(1, network="resnet50")]
    bought = spend(60, runs, estimate_by({"vgg16": 10, "resnet50": 30}))
    assert names(bought.fits) == [("resnet50", 0)]
    assert names(bought.rest) == [("vgg16", 0)]


def test_where_nothing_fits_the_cheapest_is_begun_and_it_says_so(bench):
    bought = spend(60, sweep_of(bench), estimate_by({"resnet50": 1000, "vgg16": 10, "resnet18": 100}))
    assert bought.fits == ()
    assert names(bought.rest)[0] == ("vgg16", 0)
    (line,) = bought.lines()
    assert "no column's seed fits whole; it begins cifar100/vgg16 seed 0" in line


def test_a_column_of_unknown_speed_comes_last(bench):
    bought = spend(10_000, sweep_of(bench), estimate_by({"vgg16": 10}))
    assert names(bought.fits) == [("vgg16", 0), ("vgg16", 1)]
    assert names(bought.rest) == [("resnet50", 0), ("resnet50", 1), ("resnet18", 0), ("resnet18", 1)]


def sweep_until(bench: Bench, runs, seconds: float, slots: int = 1) -> Outcome:
    """A sweep of real processes with so much time, told 0.5 s before and killed 0.5 s after."""
    pace = replace(FAST, lead=0.5)
    deadline = time.monotonic() + seconds
    return bench.scheduler(runs, LocalExecutor(), slots, pace=pace, deadline=deadline).run()


def test_at_the_end_of_the_budget_runs_are_interrupted_and_go_on_the_next_time(bench):
    runs = bench.runs(3)
    bench.script({runs[1].id: ["wait"]})
    outcome = sweep_until(bench, runs, 8)
    assert (outcome.done, outcome.failed) == ((runs[0].id,), ())
    assert (outcome.interrupted, outcome.exit_code) == ("budget", 75)
    assert bench.attempts(runs[1]) == ["interrupted"]
    assert bench.attempts(runs[2]) == []
    bench.release()
    again = sweep_until(bench, runs, 600)
    assert (again.done, again.exit_code) == ((runs[1].id, runs[2].id), 0)


def test_a_worker_that_does_not_heed_the_end_of_the_budget_is_killed(bench):
    (run,) = bench.runs(1)
    bench.script({run.id: ["deaf"]})
    outcome = sweep_until(bench, [run], 8)
    assert (outcome.unfinished, outcome.exit_code) == ((run.id,), 75)
    assert bench.attempts(run) == ["killed: its worker was killed by SIGKILL"]


def test_a_budget_that_is_enough_changes_nothing(bench):
    runs = bench.runs(2)
    bench.script({})
    outcome = sweep_until(bench, runs, 600)
    assert (outcome.done, outcome.exit_code, outcome.interrupted) == (
        tuple(run.id for run in runs),
        0,
        None,
    )


@pytest.mark.slow
def test_repro_run_ends_with_its_budget_and_goes_on_until_all_is_done(tmp_path):
    """Real training; the bound on time is generous, for a busy machine."""
    words = [sys.executable, "-m", "repro", "run", "--preset", "smoke", "--results", str(tmp_path)]
    words += ["--table", "1", "--network", "resnet18", "--loss", "cross-entropy", "--set", "epochs=400"]
    started = time.monotonic()
    first = subprocess.run(
        [*words, "--budget", "30s"], cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert first.returncode == 75, first.stderr
    assert time.monotonic() - started < 60
    assert "budget spent: the same command goes on where this one stopped" in first.stderr
    assert list(tmp_path.glob("smoke/.work/*/*/*/seed0/attempts/1/checkpoint-*.pt"))
    again = subprocess.run(words, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    (record,) = tmp_path.glob("smoke/cifar100/*/*/seed0.json")
    attempts = json.loads(record.read_text())["provenance"]["attempts"]
    assert attempts[-1]["resumed_at_step"] > 0
