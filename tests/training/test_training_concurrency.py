"""How many runs a process trains at once: one more while the total speed grows by 5 %."""

import json

import pytest
import torch

import repro.training.concurrency as concurrency_module
from repro.training.concurrency import Concurrency

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(concurrency_module.time, "perf_counter", lambda: Clock.now)
    return Clock


def growing(folder) -> Concurrency:
    """One that measures, and remembers in the folder."""
    return Concurrency(1, CPU, folder / "concurrency.json", "a kind")


def simulate(tuned, clock, speeds, rounds=1500, disturb_every=None):
    """Trains as a worker does, on a device whose total speed with n runs is speeds[n - 1]; the runs at the end."""
    runs = 1
    for number in range(rounds):
        while tuned.may_add(runs):
            runs += 1
            tuned.added(0)
        tuned.begin_round(runs)
        clock.now += runs / speeds[min(runs, len(speeds)) - 1]
        if disturb_every and number % disturb_every == 0:
            clock.now += 100.0  # an evaluation
            tuned.disturbed()
        tuned.end_round()
    return runs


@pytest.mark.parametrize(
    ("speeds", "limit"),
    [([10.0, 9.0], 1), ([10.0, 10.4], 1), ([10.0, 10.6, 10.7], 2), ([10.0, 14.0, 17.0, 17.5], 3)],
)
def test_runs_are_added_while_the_total_speed_grows_by_5_percent(clock, tmp_path, speeds, limit):
    tuned = growing(tmp_path)
    simulate(tuned, clock, speeds)
    assert tuned.limit == limit
    assert json.loads((tmp_path / "concurrency.json").read_text()) == {"a kind": limit}


def test_no_run_is_ended_for_speed_and_none_takes_the_place_of_one_too_many(clock, tmp_path):
    tuned = growing(tmp_path)
    assert simulate(tuned, clock, [10.0, 9.0]) == 2
    tuned.removed()
    assert not tuned.may_add(1)


def test_evaluations_are_not_measured(clock, tmp_path):
    tuned = growing(tmp_path)
    simulate(tuned, clock, [10.0, 20.0, 20.0], disturb_every=70)
    assert tuned.limit == 2


def test_nothing_is_decided_from_epochs_shorter_than_a_measurement(clock, tmp_path):
    tuned = growing(tmp_path)
    assert simulate(tuned, clock, [10.0, 20.0], disturb_every=10) == 1


def test_memory_that_ran_out_ends_the_growth(clock, tmp_path):
    tuned = growing(tmp_path)
    simulate(tuned, clock, [10.0, 20.0, 30.0, 40.0], rounds=500)
    tuned.too_many(3)
    assert (tuned.limit, tuned.may_add(2)) == (2, False)


def test_a_run_that_finds_no_company_is_not_asked_for_again_until_one_ends():
    tuned = Concurrency(4, CPU)
    assert tuned.may_add(1)
    tuned.nothing_to_add()
    assert not tuned.may_add(1)
    tuned.removed()
    assert tuned.may_add(1)


@pytest.mark.parametrize("content", ["", "[]", '{"a kind": "two"}', '{"a kind": 0}'])
def test_a_cache_that_cannot_be_used_is_measured_again(tmp_path, content, monkeypatch):
    cache = tmp_path / "concurrency.json"
    cache.write_text(content)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert Concurrency.of("auto", torch.device("cuda"), cache, "a kind").limit == 1
    cache.write_text('{"a card, a kind": 5}')
    assert Concurrency.of("auto", torch.device("cuda"), cache, "a kind").limit == 5


def test_a_cpu_process_trains_one_run_unless_told_otherwise(tmp_path):
    assert Concurrency.of("auto", CPU, tmp_path / "none.json", "a kind").limit == 1
    assert Concurrency.of(3, CPU, tmp_path / "none.json", "a kind").limit == 3
