"""The rules by which workers share runs, in random interleavings: none is broken, and each of them is needed."""

import os

import pytest
from protocol_model import World
from protocol_scenarios import SCENARIOS, Rule

SEEDS = range(int(os.environ.get("REPRO_PROTOCOL_SEEDS", "6")))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_interleaving_breaks_an_invariant(scenario):
    assert [dict(World(SCENARIOS[scenario], seed).play()) for seed in SEEDS] == [{}] * len(SEEDS)


@pytest.mark.parametrize(
    ("rule", "scenario", "violation"),
    [
        (Rule.ALONE, "segfault late, sticky CUDA error", "a healthy run was lost"),
        (Rule.PROGRESS, "killed very often", "a healthy run was lost"),
        (Rule.BOUND, "stopped again and again", "attempts without bound"),
        (Rule.FOLDER, "killed between folder and note", "attempts without bound"),
        (Rule.UNDER_LOCK, "segfault at step 2", "a living attempt was called dead"),
        (Rule.STOPPING, "stopped, then killed", "a healthy run was lost"),
        (Rule.MEMORY, "small devices beside a large one", "a big run was lost"),
        (Rule.DATA, "a data set missing on one", "a healthy run was lost"),
        (Rule.LEFT, "a data set missing on all", "workers start though their device can train nothing"),
        (Rule.SELF_TEST, "a broken device", "a healthy run was lost"),
        (Rule.STARTS, "no device that works", "never ends"),
        (Rule.BASELINE, "two codes", "attempts without bound"),
        (Rule.FENCE, "locks are lost", "trained on long after another had begun"),
    ],
)
def test_without_a_rule_an_invariant_breaks(rule, scenario, violation):
    rules = set(Rule) - {rule}
    assert any(violation in World(SCENARIOS[scenario], seed, rules).play() for seed in SEEDS)
