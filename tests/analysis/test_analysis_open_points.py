"""How far an alternative moves its cell: against numbers computed here, and in words."""

import csv
import io
import json
import math

import pytest
from analysis_records import EXPERIMENTS, done, make_record, missing
from scipy import stats

from repro.analysis.aggregate import summarise
from repro.analysis.open_points import Direction, Move, weigh
from repro.analysis.open_points_text import (
    move_text,
    open_points_csv,
    open_points_json,
    open_points_markdown,
)
from repro.registry import Registry, Selection

BASE = "cifar100/resnet18/cross-entropy"  # the paper: 75.10
NO_BIAS = f"{BASE}+bias=false"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(EXPERIMENTS)


def moves_of(registry: Registry, study: str, accuracies: dict[str, tuple[float, ...]], preset="paper"):
    """The moves of a study in which only these cells have records, seed 0 first."""
    chosen = registry.preset(preset)
    runs = registry.select_runs(Selection(studies=(study,)), chosen)
    states = []
    for run in runs:
        given = accuracies.get(run.cell.id, ())
        if run.seed < len(given):
            states.append(done(make_record(registry, chosen, run, given[run.seed]), registry))
        else:
            states += missing([run])
    summaries = {summary.cell: summary for summary in summarise(states, registry, chosen)}
    return weigh(registry.variations(study), summaries)


def the_move(registry: Registry, base: tuple[float, ...], varied: tuple[float, ...]) -> Move:
    (move,) = moves_of(registry, "bias", {BASE: base, NO_BIAS: varied})
    return move


def test_the_interval_is_students_with_the_spread_pooled_over_the_study(registry):
    base, varied = (73.0, 73.4, 73.8), (74.6, 74.8)
    move = the_move(registry, base, varied)
    degrees = 3
    pooled = math.sqrt((2 * 0.4**2 + 1 * 0.02) / degrees)
    half = stats.t.ppf(0.975, degrees) * pooled * math.sqrt(1 / 3 + 1 / 2)
    assert move.difference == pytest.approx(1.3)
    assert move.interval == pytest.approx((1.3 - half, 1.3 + half))
    assert move.nearer == pytest.approx(abs(73.4 - 75.1) - abs(74.7 - 75.1))


@pytest.mark.parametrize(
    ("base", "varied", "direction"),
    [
        ((73.0, 73.1, 73.2), (74.6, 74.7, 74.8), Direction.TOWARDS),
        ((77.0, 77.1, 77.2), (75.6, 75.7, 75.8), Direction.TOWARDS),
        ((73.0, 73.1, 73.2), (71.0, 71.1, 71.2), Direction.AWAY),
        ((73.0, 73.1, 73.2), (77.9, 78.0, 78.1), Direction.PAST),
        ((73.0, 74.1, 75.2), (73.5, 74.6, 75.7), Direction.UNCLEAR),
        ((73.0,), (78.0,), Direction.UNCLEAR),
        ((73.0, 73.1), (), Direction.OPEN),
        ((), (73.0, 73.1), Direction.OPEN),
    ],
)
def test_the_direction_is_said_only_where_the_interval_excludes_0(registry, base, varied, direction):
    assert the_move(registry, base, varied).direction is direction


def test_one_run_of_each_has_no_interval_and_says_why(registry):
    move = the_move(registry, (73.0,), (78.0,))
    assert (move.difference, move.interval) == (5.0, None)
    assert move.reason == "no cell of the study has two runs, so there is no interval"
    assert move_text(move, registry).varied == "78.00 (n = 1 of 3)"


def test_a_cell_of_one_run_takes_the_spread_of_the_others(registry):
    move = the_move(registry, (73.0, 73.2), (75.0,))
    half = stats.t.ppf(0.975, 1) * math.sqrt(0.02) * math.sqrt(1 / 2 + 1)
    assert move.interval == pytest.approx((1.9 - half, 1.9 + half))


def test_the_best_epoch_is_read_from_the_same_runs_paired(registry):
    (_, move) = moves_of(registry, "epoch", {BASE: (73.0, 73.4, 73.8)})
    assert move.varied is move.baseline
    gains = [run.best_accuracy - run.accuracy for run in move.baseline.runs]
    mean = sum(gains) / 3
    half = stats.t.ppf(0.975, 2) * stats.sem(gains)
    assert move.difference == pytest.approx(mean)
    assert move.interval == pytest.approx((mean - half, mean + half))
    assert all(gain >= 0 for gain in gains)


def test_the_table_says_each_point_with_its_question(registry):
    chosen = registry.preset("paper")
    moves = moves_of(registry, "bias", {BASE: (73.0, 73.1, 73.2), NO_BIAS: (74.6, 74.7, 74.8)})
    text = open_points_markdown(moves, registry, chosen)
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


def test_another_preset_is_in_the_title_and_says_that_it_is_not_about_the_paper(registry):
    moves = moves_of(registry, "bias", {BASE: (30.0,)}, "quick")
    text = open_points_markdown(moves, registry, registry.preset("quick"))
    assert text.startswith("### QUICK What the paper leaves open")
    assert "it proves nothing about the paper." in text


def test_csv_and_json_hold_the_same_numbers_in_full(registry):
    chosen = registry.preset("paper")
    moves = moves_of(registry, "ambiguities", {BASE: (73.0, 73.1, 73.3), NO_BIAS: (74.6, 74.7)})
    rows = list(csv.DictReader(io.StringIO(open_points_csv(moves, chosen))))
    content = json.loads(open_points_json(moves, chosen))
    assert len(rows) == len(content["moves"]) == len(moves)
    for row, entry, move in zip(rows, content["moves"], moves, strict=True):
        assert row["difference"] == ("" if move.difference is None else repr(move.difference))
        assert entry["difference"] == move.difference
        assert entry["alternative_cell"] == row["alternative_cell"] == move.variation.cell.id
        assert entry["question"] == move.variation.ablation.question


def test_a_diverged_run_is_said_and_not_averaged(registry):
    chosen = registry.preset("paper")
    runs = registry.select_runs(Selection(studies=("bias",)), chosen)
    states = [
        done(make_record(registry, chosen, run, diverged_in=2 if run.cell.axes else None), registry)
        for run in runs
    ]
    summaries = {summary.cell: summary for summary in summarise(states, registry, chosen)}
    (move,) = weigh(registry.variations("bias"), summaries)
    assert move.direction is Direction.OPEN
    assert move_text(move, registry).varied == "—: 3 of 3 diverged"
