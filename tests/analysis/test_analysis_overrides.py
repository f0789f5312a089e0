"""`repro aggregate --set`: overrides beside their baseline, and seeds beside the planned ones, from records."""

import csv
import io
import json

import pytest
from analysis_records import EXPERIMENTS, make_record, write_record
from click.testing import CliRunner
from scipy import stats

from repro.cli import main
from repro.paths import Project
from repro.registry import Registry, Selection

CELL = "cifar100/resnet18/cross-entropy"
OURS = "cifar100/resnet18/scaled-bn-m1"
ACCURACIES = {
    CELL: (73.0, 73.4, 73.8),
    f"{CELL}+lr=0.05": (74.0, None, 74.4),
    f"{CELL}+bias=false": (75.0,),
    OURS: (76.0, 76.2, 76.1),
}
GRID = ("--set", "lr=0.05,0.1,0.2")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Table 1's ResNet-18 column, and overrides of one loss: one of lr=0.2 diverged."""
    monkeypatch.setenv("REPRO_ROOT", str(EXPERIMENTS.parent))
    monkeypatch.setattr("repro.record_state.code_hash", lambda config: "c" * 64)
    registry = Registry.load(EXPERIMENTS)
    paper = registry.preset("paper")

    def put(run: str, accuracy: float | None = None, **values) -> None:
        record = make_record(registry, paper, registry.parse(run), accuracy, **values)
        write_record(Project.find(results=tmp_path), record)

    for run in registry.select_runs(Selection(tables=(1,), networks=("resnet18",)), paper):
        put(run.id)
    for cell, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            if accuracy is not None:
                put(f"{cell}/seed{seed}", accuracy)
    put(f"{CELL}+lr=0.2/seed1", diverged_in=2)
    return put, tmp_path


def aggregate(results, *words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, [*(words or ["aggregate"]), "--results", str(results[1])])
    assert done.exit_code == code, done.output
    return done.stderr if code else done.stdout


def test_the_table_of_a_grid_has_the_baseline_and_paired_differences_over_common_seeds(results):
    text = aggregate(results, "aggregate", *GRID)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    name, note = "CIFAR-100, ResNet-18, Cross-entropy Loss", "data unchecked (not prepared here)"
    half = stats.t.ppf(0.975, 1) * stats.sem([1.0, 0.6])
    assert lines[2:] == [
        [name, "none (baseline)", "73.40 ± 0.40 (n = 3)", "", note],
        [name, "lr=0.05", "74.20 ± 0.28 (n = 2 of 3)",
         f"+0.80 (−{half - 0.8:.2f} to +{half + 0.8:.2f}), 2 pairs", f"not run yet (seed 1); {note}"],
        [name, "lr=0.2", "—: 1 of 3 diverged, not run yet", "—, 0 pairs",
         "not run yet (seeds 0, 2); diverged in epoch 3 (seed 1)"],
    ]  # fmt: skip
    assert text.startswith("### Overrides, top-1 accuracy in percent\n")
    assert text.endswith("Left out: 71 cells without a run of these overrides.\n")
    smoke = aggregate(results, "aggregate", *GRID, "--preset", "smoke")
    assert smoke.startswith("### SMOKE Overrides")
    assert smoke.endswith("Left out: 72 cells without a run of these overrides.\n")


def test_csv_and_json_have_the_same_differences_in_full(results):
    rows = list(csv.DictReader(io.StringIO(aggregate(results, "aggregate", *GRID, "--format", "csv"))))
    content = json.loads(aggregate(results, "aggregate", *GRID, "--format", "json"))
    assert [row["overrides"] for row in rows] == ["", "lr=0.05", "lr=0.2"]
    for row, entry in zip(rows, content, strict=True):
        for name in ("n", "mean", "std", "pairs", "difference", "difference_std", "low", "high"):
            assert (float(row[name]) if row[name] else None) == entry[name], name
    gains = [74.0 - 73.0, 74.4 - 73.8]
    expected = stats.t.interval(0.95, 1, loc=0.8, scale=stats.sem(gains))
    assert (content[1]["low"], content[1]["high"]) == pytest.approx(expected)
    assert (content[1]["pairs"], content[2]["pairs"], content[0]["pairs"]) == (2, 0, None)


def test_an_override_of_a_losss_parameter_is_shown_for_the_losses_that_have_it(results):
    text = aggregate(results, "aggregate", "--set", "bias=false")
    assert "| +2.00, 1 pair " in text
    assert "unknown override 'rotate'" in aggregate(results, "aggregate", "--set", "rotate=1", code=2)
    assert "supports markdown, csv, json and parquet" in aggregate(
        results, "aggregate", *GRID, "--format", "latex", code=2
    )


def test_a_seed_beside_the_planned_ones_changes_no_number_and_no_verdict(results):
    put, _ = results
    as_csv = ("aggregate", "--format", "csv")
    before, claims = aggregate(results, *as_csv), aggregate(results, "claims", "--json")
    (row,) = [
        row
        for row in csv.DictReader(io.StringIO(before))
        if row["loss"] == "scaled-bn-m1" and row["n"] == "3"
    ]
    assert row["verdict"] == "reproduced"
    put(f"{OURS}/seed5", 20.0)
    assert aggregate(results, "claims", "--json") == claims
    old, new = ({tuple(row.items()) for row in csv.DictReader(io.StringIO(text))}
                for text in (before, aggregate(results, *as_csv)))  # fmt: skip
    (changed,) = new - old
    extra = {"extra_seeds": "5", "extra_accuracies": "20.0"}
    assert dict(changed) == {**row, **extra}
    assert "76.10 ± 0.10 (n = 3) ¹" in aggregate(results)
