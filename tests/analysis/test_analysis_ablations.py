"""How far an alternative moves its cell: against numbers computed here, and in words."""

import csv
import io
import json
import math

import pytest
from analysis_records import done, make_record, missing
from scipy import stats

from repro.analysis.ablations import (
    AblationEffect,
    Direction,
    compute_effects,
    effect_words,
    render_effects,
)
from repro.analysis.results import summarise
from repro.registry import Registry, Selection

BASE = "cifar100/resnet18/cross-entropy"  # the paper: 75.10
NO_BIAS = f"{BASE}+bias=false"
NEARER = {BASE: (73.0, 73.1, 73.2), NO_BIAS: (74.6, 74.7, 74.8)}


def effects_of(real: Registry, study: str, accuracies, preset="paper", **values):
    """The effects of a study in which only these cells have records, seed 0 first."""
    chosen = real.preset(preset)
    states = []
    for run in real.select_runs(Selection(studies=(study,)), chosen):
        given = accuracies.get(run.cell.id, ())
        if run.seed < len(given):
            record = make_record(real, chosen, run, given[run.seed], **(values if run.cell.axes else {}))
            states.append(done(record, real))
        else:
            states += missing([run])
    results = {result.cell: result for result in summarise(states, real, chosen)}
    return compute_effects(real.variations(study), results, real.paper.metric)


def the_effect(real: Registry, base, varied, **values) -> AblationEffect:
    (effect,) = effects_of(real, "bias", {BASE: base, NO_BIAS: varied}, **values)
    return effect


def test_the_interval_is_students_with_the_spread_pooled_over_the_study(real):
    effect = the_effect(real, (73.0, 73.4, 73.8), (74.6, 74.8))
    pooled = math.sqrt((2 * 0.4**2 + 1 * 0.02) / 3)
    half = stats.t.ppf(0.975, 3) * pooled * math.sqrt(1 / 3 + 1 / 2)
    assert effect.difference == pytest.approx(1.3)
    assert effect.interval == pytest.approx((1.3 - half, 1.3 + half))
    assert effect.nearer == pytest.approx(abs(73.4 - 75.1) - abs(74.7 - 75.1))
    alone = the_effect(real, (73.0, 73.2), (75.0,))
    half = stats.t.ppf(0.975, 1) * math.sqrt(0.02) * math.sqrt(1 / 2 + 1)
    assert alone.interval == pytest.approx((1.9 - half, 1.9 + half))


@pytest.mark.parametrize(
    ("base", "varied", "direction"),
    [
        ((73.0, 73.1, 73.2), (74.6, 74.7, 74.8), Direction.TOWARDS),
        ((77.0, 77.1, 77.2), (75.6, 75.7, 75.8), Direction.TOWARDS),
        ((73.0, 73.1, 73.2), (71.0, 71.1, 71.2), Direction.AWAY),
        ((73.0, 73.1, 73.2), (77.9, 78.0, 78.1), Direction.PAST),
        ((73.0, 74.1, 75.2), (73.5, 74.6, 75.7), Direction.UNCLEAR),
        ((73.0, 73.1), (), Direction.OPEN),
        ((), (73.0, 73.1), Direction.OPEN),
    ],
)
def test_the_direction_is_said_only_where_the_interval_excludes_0(real, base, varied, direction):
    assert the_effect(real, base, varied).direction is direction


def test_another_preset_than_the_papers_moves_nothing_towards_or_away_from_its_number(real):
    effects = effects_of(real, "bias", NEARER, preset="quick")
    assert [(effect.direction, effect.nearer) for effect in effects] == [(Direction.OPEN, None)]
    text = render_effects(effects, real, real.preset("quick"), "markdown")
    assert "| 75.10   |" in text
    assert "+1.60 (+1.37 to +1.83)" in text
    assert "Δ" not in text
    assert "towards" not in text


def test_one_run_of_each_has_no_interval_and_says_why(real):
    effect = the_effect(real, (73.0,), (78.0,))
    assert (effect.difference, effect.interval, effect.direction) == (5.0, None, Direction.UNCLEAR)
    assert effect.reason == "no cell of the study has two runs, so there is no interval"
    assert effect_words(effect, real)["with it"] == "78.00 (n = 1 of 3)"


def test_the_best_epoch_is_read_from_the_same_runs_paired(real):
    (_, effect) = effects_of(real, "epoch", {BASE: (73.0, 73.4, 73.8)})
    assert effect.varied is effect.baseline
    gains = [run.best_accuracy - run.accuracy for run in effect.baseline.averaged]
    half = stats.t.ppf(0.975, 2) * stats.sem(gains)
    mean = sum(gains) / 3
    assert effect.difference == pytest.approx(mean)
    assert effect.interval == pytest.approx((mean - half, mean + half))
    assert all(gain >= 0 for gain in gains)


def test_the_table_says_each_ablation_with_its_question(real):
    text = render_effects(effects_of(real, "bias", NEARER), real, real.preset("paper"), "markdown")
    (row,) = [line for line in text.splitlines() if line.startswith("| bias")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "bias",
        "CIFAR-100, ResNet-18, Cross-entropy Loss",
        "73.10 ± 0.10 (n = 3)",
        "75.10 (−2.00)",
        "no bias",
        "74.70 ± 0.10 (n = 3)",
        "+1.60 (+1.37 to +1.83)",
        "towards, by 1.60",
    ]
    assert text.startswith("### What the paper leaves open, top-1 accuracy in percent\n")
    assert "- bias: Has the classifier of the cross-entropy loss a bias? Here it has." in text
    quick = real.preset("quick")
    text = render_effects(effects_of(real, "bias", {}, "quick"), real, quick, "markdown")
    assert text.startswith("### QUICK What the paper leaves open")
    assert "it proves nothing about the paper." in text


def test_csv_and_json_hold_the_same_numbers_in_full(real):
    paper = real.preset("paper")
    effects = effects_of(real, "ambiguities", NEARER)
    rows = list(csv.DictReader(io.StringIO(render_effects(effects, real, paper, "csv"))))
    content = json.loads(render_effects(effects, real, paper, "json"))
    for row, entry, effect in zip(rows, content["moves"], effects, strict=True):
        assert row["difference"] == ("" if effect.difference is None else repr(effect.difference))
        assert entry["difference"] == effect.difference
        assert entry["alternative_cell"] == row["alternative_cell"] == effect.variation.cell.id
        assert entry["question"] == effect.variation.ablation.question


def test_a_diverged_run_is_said_and_not_averaged(real):
    effect = the_effect(real, (73.0, 73.1, 73.2), (74.0,) * 3, diverged_in=2)
    assert effect.direction is Direction.OPEN
    assert effect_words(effect, real)["with it"] == "—: 3 of 3 diverged"
