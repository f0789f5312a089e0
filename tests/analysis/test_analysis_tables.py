"""The tables' texts, literally, and read back."""

import json
import re
from dataclasses import replace

import pytest
from analysis_records import done, make_record, missing, recorded

from repro.analysis.export import escape_latex, render_tables
from repro.analysis.results import CellResult, summarise
from repro.config import Preset
from repro.experiments import ReportedData
from repro.record_state import RecordState, RunState
from repro.registry import Registry, Selection

ACCURACIES = {
    "vgg16/cross-entropy": (71.70, 71.90, 72.10),
    "vgg16/scaled-bn-m1": (73.00, 73.25, 73.50),
    "resnet18/cross-entropy": (75.00, None, None),
    "resnet18/scaled-bn-m1": (None, None, None),
}


def states_of(registry: Registry, preset: Preset, accuracies=ACCURACIES) -> list[RunState]:
    """VGG whole, scaled BN by older code; of ResNet-18 one run, one that diverged and four to come."""
    states = []
    for run in registry.select_runs(Selection(), preset):
        accuracy = accuracies[f"{run.cell.network}/{run.cell.row}"][run.seed]
        state = RecordState.OLDER_CODE if run.cell.row == "scaled-bn-m1" else RecordState.DONE
        if accuracy is not None:
            states.append(done(make_record(registry, preset, run, accuracy), registry, state))
        elif run.id == "cifar100/resnet18/cross-entropy/seed1":
            states += recorded(registry, preset, [run], diverged_in=3)
        else:
            states += missing([run])
    return states


@pytest.fixture
def quick(registry: Registry) -> Preset:
    return registry.preset("quick")


@pytest.fixture
def summaries(registry: Registry, quick: Preset) -> tuple[CellResult, ...]:
    return summarise(states_of(registry, quick), registry, quick)


def test_markdown_shows_ours_the_papers_value_and_the_reason_of_every_blank(summaries, registry, quick):
    assert render_tables(summaries, registry, quick, supplied=True) == (
        """\
### QUICK Table 1: CIFAR-100, top-1 accuracy in percent

QUICK: few images: it proves nothing about the paper.

First line of a row: mean ± sample standard deviation (ddof = 1; none at n = 1) over n seeds, last epoch, \
percentage points. Second line: the paper's mean ± std over 3 runs, made with another recipe than the preset \
quick: no difference is shown.

Data: 100 classes, 50,000 training and 10,000 test images.

Runs counted: 7 of 12, made on NVIDIA GeForce GTX 1080 Ti, float32 (7). \
Some records may have been supplied with the project.

| CIFAR-100          | VGG                    | ResNet-18          |
|:-------------------|:-----------------------|:-------------------|
| Cross-entropy Loss | 71.90 ± 0.20 (n = 3)   | 75.00 (n = 1 of 3) |
| – paper            | 71.86 ± 0.14           | 75.10 ± 0.34       |
| – not averaged     |                        | 1 of 3 diverged    |
| Our Loss (m = 1)   | 73.25 ± 0.25 (n = 3) ¹ | —: not run yet     |
| – paper            | 73.24 ± 0.06           | 76.08 ± 0.30       |

- ¹ older code (the training code has changed since)

Not counted:

- diverged in epoch 4 — Cross-entropy Loss on ResNet-18 (seed 1)
- not run yet — Cross-entropy Loss on ResNet-18 (seed 2); Our Loss (m = 1) on ResNet-18 (seeds 0, 1, 2)
"""
    )


def test_runs_of_the_papers_recipe_say_how_far_they_are_from_its_numbers(registry):
    paper = registry.preset("paper")
    text = render_tables(summarise(states_of(registry, paper), registry, paper), registry, paper)
    assert "Second line: the paper's mean ± std over 3 runs, and Δ = first line − paper." in text
    assert "| – paper (Δ)        | 71.86 ± 0.14 (+0.04)       | 75.10 ± 0.34 (−0.10) |" in text
    assert "| – paper (Δ)        | 73.24 ± 0.06 (+0.01)       | 76.08 ± 0.30         |" in text
    runs = registry.select_runs(Selection(networks=("vgg16",), losses=("cross-entropy",)), paper)
    nearly = recorded(registry, paper, runs, 71.857, test_images=100_000)
    text = render_tables(summarise(nearly, registry, paper), registry, paper, "latex")
    assert r"-- paper ($\Delta$) & 71.86 $\pm$ 0.14 (+0.00)" in text  # no minus sign


def test_latex_is_a_booktabs_table_with_its_notes(summaries, registry, quick):
    lines = render_tables(summaries, registry, quick, "latex").splitlines()
    assert lines[3:5] == [
        r"\caption{QUICK CIFAR-100 (the paper's Table 1), top-1 accuracy in percent.}",
        r"\label{tab:quick-table1}",
    ]
    assert lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")] == [
        r"Cross-entropy Loss & 71.90 $\pm$ 0.20 (n = 3) & 75.00 (n = 1 of 3) \\",
        r"-- paper & 71.86 $\pm$ 0.14 & 75.10 $\pm$ 0.34 \\",
        r"-- not averaged &  & 1 of 3 diverged \\",
        r"\addlinespace",
        r"Our Loss (m = 1) & 73.25 $\pm$ 0.25 (n = 3)$^{1}$ & ---: not run yet \\",
        r"-- paper & 73.24 $\pm$ 0.06 & 76.08 $\pm$ 0.30 \\",
    ]
    assert r"$^{1}$ older code (the training code has changed since).\par" in lines


def test_what_latex_would_read_as_markup_is_escaped():
    for text, latex in (
        ("a & b_c 100 % $5 #1", r"a \& b\_c 100 \% \$5 \#1"),
        (r"{\x}~^", r"\{\textbackslash{}x\}\textasciitilde{}\textasciicircum{}"),
        ("7 → 8 ± −1 × Δ…", r"7 $\rightarrow$ 8 $\pm$ $-$1 $\times$ $\Delta$\dots{}"),
        ("Größe 漢\nx", "Größe [U+6F22] x"),
    ):
        assert escape_latex(text) == latex


JSON = """{
 "schema_version": 2,
 "preset": {"name": "quick", "title": "QUICK", "description": "few images: it proves nothing about the paper",
            "seeds": [0, 1, 2]},
 "supplied": false, "std_ddof": 1, "rules": null,
 "tables": [{"table": 1, "title": "QUICK Table 1: CIFAR-100", "dataset": "cifar100", "counted": 1, "expected": 3,
  "cells": [{
   "id": "cifar100/vgg16/cross-entropy", "network": "vgg16", "network_label": "VGG", "loss": "cross-entropy",
   "label": "Cross-entropy Loss", "overrides": {}, "n": 1, "expected": 3, "diverged": 0, "mean": 71.7, "std": null,
   "reported": {"mean": 71.86, "std": 0.14}, "difference": null, "verdict": null,
   "runs": [{"id": "cifar100/vgg16/cross-entropy/seed0", "seed": 0, "accuracy": 71.7, "best_accuracy": 71.7,
             "best_epoch": 7, "record_state": "done", "data_unchecked": false, "data": "DATA", "classes": 100,
             "train_images": 50000, "test_images": 10000, "partial": null,
             "device": "NVIDIA GeForce GTX 1080 Ti", "precision": "float32"}],
   "not_counted": [
    {"id": "cifar100/vgg16/cross-entropy/seed1", "seed": 1, "short": "not run yet", "reason": "not run yet",
     "diverged": false},
    {"id": "cifar100/vgg16/cross-entropy/seed2", "seed": 2, "short": "not selected", "reason": "not selected",
     "diverged": false}],
   "extra": [], "notes": []}]}]}"""


def test_json_holds_everything_of_a_cell(registry, quick):
    runs = [registry.parse(f"cifar100/vgg16/cross-entropy/seed{seed}") for seed in (0, 1)]
    record = make_record(registry, quick, runs[0], 71.7)
    states = [done(record, registry), *missing(runs[1:])]
    text = render_tables(summarise(states, registry, quick), registry, quick, "json")
    assert json.loads(text) == json.loads(JSON.replace("DATA", record.signature.data))


@pytest.mark.parametrize(
    ("changes", "bold"),
    [
        ({"resnet18/cross-entropy": (75.0,) * 3, "resnet18/scaled-bn-m1": (76.0,) * 3}, ["73.25 ± 0.25", "76.00 ± 0.00"]),
        ({"resnet18/cross-entropy": (75.0,) * 3}, ["73.25 ± 0.25"]),
        ({}, ["73.25 ± 0.25"]),
        ({"vgg16/cross-entropy": (73.0, 73.25, 73.51)}, ["73.25 ± 0.26", "73.25 ± 0.25"]),
    ],
    ids=["whole column", "a loss without a run", "partly filled", "means that print alike"],
)  # fmt: skip
def test_the_best_mean_is_bold_once_every_loss_of_the_column_has_all_its_runs(
    registry, paper, quick, changes, bold
):
    states = states_of(registry, paper, {**ACCURACIES, **changes})
    results = summarise(states, registry, paper)
    assert re.findall(r"\*\*(.+?)\*\*", render_tables(results, registry, paper)) == bold
    assert (
        re.findall(
            r"textbf\{(.+?)\}", render_tables(results, registry, paper, "latex").replace(r"$\pm$", "±")
        )
        == bold
    )
    others = summarise(states_of(registry, quick, {**ACCURACIES, **changes}), registry, quick)
    assert "**" not in render_tables(others, registry, quick), "another preset has no winners"


def test_two_whole_losses_of_three_make_no_winner(registry, paper):
    table = registry.table(1)
    third = table.rows[0].model_copy(update={"name": "third"})
    three = replace(registry, tables=[table.model_copy(update={"rows": (*table.rows, third)})])
    accuracies = ACCURACIES | {f"{network}/third": (None, None, None) for network in table.networks}
    results = summarise(states_of(three, paper, accuracies), three, paper)
    assert "**" not in render_tables(results, three, paper)


@pytest.fixture
def table_of(registry, quick):
    """The text of a table with these records: row/seed → what `make_record` takes."""

    def text(records, shown=registry, preset=quick, form="markdown"):
        states = []
        for run, values in records.items():
            states += recorded(registry, preset, [registry.parse(f"cifar100/vgg16/{run}")], **values)
        return render_tables(summarise(states, shown, preset), shown, preset, form)

    return text


ONE = {"cross-entropy/seed0": {"accuracy": 71.0}}


def with_table(registry: Registry, label: str = "Cross-entropy Loss", **changes) -> Registry:
    """The registry with another label or other facts in its table."""
    table = registry.table(1)
    rows = (table.rows[0].model_copy(update={"label": label}), *table.rows[1:])
    return replace(registry, tables=[table.model_copy(update={"rows": rows, **changes})])


def test_a_cell_that_only_diverged_says_so(table_of):
    text = table_of({f"cross-entropy/seed{seed}": {"diverged_in": 2} for seed in range(3)})
    assert "| —: 3 of 3 diverged " in text
    assert "- diverged in epoch 3 — Cross-entropy Loss on VGG (seeds 0, 1, 2)" in text


def test_the_papers_preset_has_no_title_of_its_own(registry, paper):
    states = missing(registry.select_runs(Selection(), paper))
    text = render_tables(summarise(states, registry, paper), registry, paper)
    assert text.startswith("### Table 1: CIFAR-100, top-1 accuracy in percent\n\nFirst line")
    assert "Runs counted: 0 of 12." in text
    assert "- not run yet — every loss on VGG, ResNet-18 (seeds 0, 1, 2)" in text


def test_the_caption_tells_what_was_found_beside_what_the_paper_says_of_its_data(registry, table_of):
    found = "Data: 100 classes, 50,000 training and 10,000 test images"
    same = ReportedData(classes=100, train_per_class=500, test_per_class=100)
    other = ReportedData(classes=361, train_per_class=90, test_per_class=10)
    text = table_of(ONE, with_table(registry, reported_data=same))
    assert f"\n{found}, as in the paper.\n" in text
    text = table_of(ONE, with_table(registry, reported_data=other))
    assert f"\n{found}; the paper has 361 classes with 90 training and 10 test images each.\n" in text
    mixed = {f"{row}/seed0": {"fingerprint": row[0] * 64} for row in ("cross-entropy", "scaled-bn-m1")}
    assert "The cells were not all trained on the same data." in table_of(mixed)


def test_a_table_that_the_paper_lacks_has_no_number_and_no_line_of_the_papers(tmp_path, quick):
    (tmp_path / "experiments" / "table-faces.toml").write_text(
        'table = "faces"\ndataset = "faces"\ntitle = "Some faces"\nlike = 1\n'
    )
    mine = Registry.load(tmp_path / "experiments")
    runs = mine.select_runs(Selection(tables=("faces",), networks=("vgg16",)), quick)
    results = summarise(recorded(mine, quick, runs, 50.0), mine, quick)
    text = render_tables(results, mine, quick)
    assert text.startswith("### QUICK Some faces, top-1 accuracy in percent\n")
    assert "Not a table of the paper: there is nothing to compare with." in text
    assert "– paper" not in text
    assert "| Cross-entropy Loss | 50.00 ± 0.00 (n = 3) |" in text
    latex = render_tables(results, mine, quick, "latex")
    assert r"\label{tab:quick-faces}" in latex
    assert r"\caption{QUICK Some faces, top-1 accuracy in percent.}" in latex


def test_a_label_stays_a_label(registry, table_of):
    assert r"| a\|b\*c \<i> " in table_of(ONE, with_table(registry, "a|b*c <i>"))
