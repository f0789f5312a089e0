"""The tables' texts, literally, and read back."""

import csv
import io
import json
import re

import pytest
from analysis_records import done, make_record, missing

from repro.analysis.aggregate import CellSummary, summarise
from repro.analysis.tables import TABLE_FORMATS, render_tables
from repro.config import Preset
from repro.errors import UsageError
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
            states.append(done(make_record(registry, preset, run, diverged_in=3), registry))
        else:
            states += missing([run])
    return states


@pytest.fixture
def quick(registry: Registry) -> Preset:
    return registry.preset("quick")


@pytest.fixture
def summaries(registry: Registry, quick: Preset) -> tuple[CellSummary, ...]:
    return summarise(states_of(registry, quick), registry, quick)


def test_markdown_shows_ours_the_papers_value_and_the_reason_of_every_blank(summaries, registry, quick):
    assert render_tables(summaries, registry, quick, supplied=True) == (
        """\
### QUICK Table 1: CIFAR-100, top-1 accuracy in percent

QUICK: few images: it proves nothing about the paper.

First line of a loss: mean ± sample standard deviation (ddof = 1; none at n = 1) over n seeds, last epoch, \
percent points. Second line: the paper's mean ± std over three runs, and Δ = first line − paper. \
Bold: the best mean of a column in which every loss has all its runs.

Data: 100 classes, 50,000 training and 10,000 test images.

Runs counted: 7 of 12, made on NVIDIA GeForce GTX 1080 Ti, float32 (7). \
The records lie in the project's own results folder: some may have come with it.

| CIFAR-100          | VGG                        | ResNet-18            |
|:-------------------|:---------------------------|:---------------------|
| Cross-entropy Loss | 71.90 ± 0.20 (n = 3)       | 75.00 (n = 1 of 3)   |
| – paper (Δ)        | 71.86 ± 0.14 (+0.04)       | 75.10 ± 0.34 (−0.10) |
| – not averaged     |                            | 1 of 3 diverged      |
| Our Loss (m = 1)   | **73.25 ± 0.25** (n = 3) ¹ | —: not run yet       |
| – paper (Δ)        | 73.24 ± 0.06 (+0.01)       | 76.08 ± 0.30         |

- ¹ older code (what trains has changed since)

Not counted:

- diverged in epoch 4 — Cross-entropy Loss on ResNet-18 (seed 1)
- not run yet — Cross-entropy Loss on ResNet-18 (seed 2); Our Loss (m = 1) on ResNet-18 (seeds 0, 1, 2)
"""
    )


def test_csv_has_a_line_a_cell_at_full_precision(summaries, registry, quick):
    assert render_tables(summaries, registry, quick, "csv") == (
        "preset,table,dataset,network,loss,label,axes,n,expected,diverged,mean,std,reported_mean,"
        "reported_std,difference,seeds,accuracies,best_accuracies,not_counted,notes,verdict,so_far,"
        "low_ddof1,high_ddof1,p_beyond_ddof1,p_beyond_adjusted_ddof1,p_equivalence_ddof1,"
        "p_equivalence_adjusted_ddof1,low_ddof0,high_ddof0,p_beyond_ddof0,p_beyond_adjusted_ddof0,"
        "p_equivalence_ddof0,p_equivalence_adjusted_ddof0\n"
        "quick,1,cifar100,vgg16,cross-entropy,Cross-entropy Loss,,3,3,0,71.9,0.19999999999999574,71.86,0.14,"
        "0.04000000000000625,0 1 2,71.7 71.9 72.1,71.7 71.9 72.1,,,,,,,,,,,,,,,,\n"
        "quick,1,cifar100,vgg16,scaled-bn-m1,Our Loss (m = 1),,3,3,0,73.25,0.25,73.24,0.06,"
        "0.010000000000005116,0 1 2,73.0 73.25 73.5,73.0 73.25 73.5,,"
        "older code (what trains has changed since),,,,,,,,,,,,,,\n"
        "quick,1,cifar100,resnet18,cross-entropy,Cross-entropy Loss,,1,3,1,75.0,,75.1,0.34,"
        "-0.09999999999999432,0,75.0,75.0,"
        "seed 1: diverged in epoch 4; seed 2: not run yet,,,,,,,,,,,,,,,\n"
        "quick,1,cifar100,resnet18,scaled-bn-m1,Our Loss (m = 1),,0,3,0,,,76.08,0.3,,,,,"
        "seed 0: not run yet; seed 1: not run yet; seed 2: not run yet,,,,,,,,,,,,,,,\n"
    )


def test_json_holds_everything_of_a_cell(registry, quick):
    run = registry.parse("cifar100/vgg16/cross-entropy/seed0")
    record = make_record(registry, quick, run, 71.7)
    states = [
        done(record, registry),
        RunState(
            registry.parse("cifar100/vgg16/cross-entropy/seed1"), RecordState.MISSING, reason="not run yet"
        ),
    ]
    text = render_tables(summarise(states, registry, quick), registry, quick, "json")
    assert json.loads(text) == {
        "schema_version": 1,
        "preset": {
            "name": "quick",
            "title": "QUICK",
            "description": "few images: it proves nothing about the paper",
            "seeds": [0, 1, 2],
        },
        "supplied": False,
        "std_ddof": 1,
        "rules": None,
        "tables": [
            {
                "table": 1,
                "title": "QUICK Table 1: CIFAR-100",
                "dataset": "cifar100",
                "counted": 1,
                "expected": 3,
                "cells": [
                    {
                        "id": "cifar100/vgg16/cross-entropy",
                        "network": "vgg16",
                        "network_label": "VGG",
                        "loss": "cross-entropy",
                        "label": "Cross-entropy Loss",
                        "axes": {},
                        "n": 1,
                        "expected": 3,
                        "diverged": 0,
                        "mean": 71.7,
                        "std": None,
                        "reported": {"mean": 71.86, "std": 0.14},
                        "difference": 71.7 - 71.86,
                        "verdict": None,
                        "runs": [
                            {
                                "id": "cifar100/vgg16/cross-entropy/seed0",
                                "seed": 0,
                                "accuracy": 71.7,
                                "best_accuracy": record.result.best_accuracy,
                                "best_epoch": record.result.best_epoch,
                                "record_state": "done",
                                "data_unchecked": False,
                                "data": record.signature.data,
                                "classes": 100,
                                "train_images": 50_000,
                                "test_images": 10_000,
                                "generated": False,
                                "partial": None,
                                "device": "NVIDIA GeForce GTX 1080 Ti",
                                "precision": "float32",
                            }
                        ],
                        "not_counted": [
                            {
                                "id": "cifar100/vgg16/cross-entropy/seed1",
                                "seed": 1,
                                "short": "not run yet",
                                "reason": "not run yet",
                                "diverged": False,
                            },
                            {
                                "id": "cifar100/vgg16/cross-entropy/seed2",
                                "seed": 2,
                                "short": "not selected",
                                "reason": "not selected",
                                "diverged": False,
                            },
                        ],
                        "notes": [],
                    }
                ],
            }
        ],
    }


def test_csv_and_json_read_back_equal_the_records(summaries, registry, quick):
    rows = list(csv.DictReader(io.StringIO(render_tables(summaries, registry, quick, "csv"))))
    (table,) = json.loads(render_tables(summaries, registry, quick, "json"))["tables"]
    assert len(rows) == len(table["cells"]) == len(summaries) == 4
    for summary, row, cell in zip(summaries, rows, table["cells"], strict=True):
        accuracies = [run.accuracy for run in summary.runs]
        assert [float(text) for text in row["accuracies"].split()] == accuracies
        assert [run["accuracy"] for run in cell["runs"]] == accuracies
        for column, number in (
            ("mean", summary.mean),
            ("std", summary.std),
            ("difference", summary.difference),
        ):
            assert (float(row[column]) if row[column] else None) == number
            assert cell[column] == number
        assert int(row["n"]) == cell["n"] == summary.n
        assert float(row["reported_mean"]) == cell["reported"]["mean"] == summary.reported.mean


def test_markdown_read_back_equals_the_records(summaries, registry, quick):
    text = render_tables(summaries, registry, quick)
    lines = [line for line in text.splitlines() if line.startswith("|") and "averaged" not in line]
    grid = [[field.strip() for field in line.strip("|").split("|")] for line in lines]
    header, body = grid[0], grid[2:]
    by_place = {(summary.cell.network, summary.cell.row): summary for summary in summaries}
    table = registry.table(1)
    assert header == ["CIFAR-100", *table.networks.values()]
    for index, row in enumerate(table.rows):
        measured, reported = body[2 * index], body[2 * index + 1]
        assert measured[0] == row.label
        for column, network in enumerate(table.networks, 1):
            summary = by_place[network, row.name]
            means = [float(number) for number in re.findall(r"\d+\.\d\d", measured[column])]
            assert means == [round(n, 2) for n in (summary.mean, summary.std) if n is not None]
            mean, std, *difference = re.findall(r"[+−]?\d+\.\d\d", reported[column])
            assert (float(mean), float(std)) == (summary.reported.mean, summary.reported.std)
            if summary.difference is None:
                assert difference == []
            else:
                assert float(difference[0].replace("−", "-")) == round(summary.difference, 2)


@pytest.mark.parametrize(
    ("seeds_of_cross_entropy", "seeds_of_scaled_bn", "bold"),
    [
        ((75.0, 75.0, 75.0), (76.0, 76.0, 76.0), ["73.25 ± 0.25", "76.00 ± 0.00"]),
        ((75.0, 75.0, 75.0), (76.0, None, None), ["73.25 ± 0.25"]),
        ((75.0, None, None), (76.0, None, None), ["73.25 ± 0.25"]),
    ],
)
def test_the_best_mean_is_bold_once_every_loss_of_the_column_has_all_its_runs(
    registry, quick, seeds_of_cross_entropy, seeds_of_scaled_bn, bold
):
    full = {
        **ACCURACIES,
        "resnet18/cross-entropy": seeds_of_cross_entropy,
        "resnet18/scaled-bn-m1": seeds_of_scaled_bn,
    }
    text = render_tables(summarise(states_of(registry, quick, full), registry, quick), registry, quick)
    assert re.findall(r"\*\*(.+?)\*\*", text) == bold


def test_means_that_print_alike_are_both_bold(registry, quick):
    tied = {**ACCURACIES, "vgg16/cross-entropy": (73.0, 73.25, 73.51)}
    text = render_tables(summarise(states_of(registry, quick, tied), registry, quick), registry, quick)
    assert re.findall(r"\*\*(.+?)\*\*", text) == ["73.25 ± 0.26", "73.25 ± 0.25"]


def test_a_partly_filled_column_has_no_bold(summaries, registry, quick):
    for table_format in ("markdown", "latex"):
        lines = render_tables(summaries, registry, quick, table_format).splitlines()
        assert not [line for line in lines if re.search(r"(\*\*|textbf\{)75\.00", line)]


def test_a_cell_that_only_diverged_says_so(registry, quick):
    runs = [registry.parse(f"cifar100/vgg16/cross-entropy/seed{seed}") for seed in range(3)]
    states = [done(make_record(registry, quick, run, diverged_in=2), registry) for run in runs]
    text = render_tables(summarise(states, registry, quick), registry, quick)
    assert "| —: 3 of 3 diverged " in text
    assert "- diverged in epoch 3 — Cross-entropy Loss on VGG (seeds 0, 1, 2)" in text


def test_the_papers_preset_has_no_title_of_its_own(registry, paper):
    text = render_tables(
        summarise(missing(registry.select_runs(Selection(), paper)), registry, paper), registry, paper
    )
    assert text.startswith("### Table 1: CIFAR-100, top-1 accuracy in percent\n\nFirst line")
    assert "Runs counted: 0 of 12." in text
    assert "- not run yet — every loss on VGG, ResNet-18 (seeds 0, 1, 2)" in text


def test_generated_data_are_never_shown_without_smoke_in_the_title(registry, paper):
    run = registry.parse("cifar100/vgg16/cross-entropy/seed0")
    states = [done(make_record(registry, paper, run, 71.0, generated=True), registry)]
    text = render_tables(summarise(states, registry, paper), registry, paper)
    assert text.startswith("### SMOKE (generated data) Table 1")
    assert "Every value: generated data." in text


def test_the_caption_tells_what_was_found_beside_what_the_paper_says_of_its_data(registry, quick):
    table = registry.table(1)
    run = registry.parse("cifar100/vgg16/cross-entropy/seed0")
    states = [done(make_record(registry, quick, run, 71.0), registry)]
    for said, remark in (
        ((100, 500, 100), "Data: 100 classes, 50,000 training and 10,000 test images, as in the paper."),
        (
            (361, 90, 10),
            "Data: 100 classes, 50,000 training and 10,000 test images; the paper has 361 classes with "
            "90 training and 10 test images each.",
        ),
    ):
        data = ReportedData(classes=said[0], train_per_class=said[1], test_per_class=said[2])
        told = Registry([table.model_copy(update={"reported_data": data})], registry.presets)
        assert remark in render_tables(summarise(states, told, quick), told, quick).splitlines()


def test_a_table_that_the_paper_lacks_has_no_number_and_no_line_of_the_papers(tmp_path, registry, quick):
    (tmp_path / "experiments" / "table-faces.toml").write_text(
        'table = "faces"\ndataset = "faces"\ntitle = "Some faces"\nlike = 1\n'
    )
    mine = Registry.load(tmp_path / "experiments")
    runs = mine.select_runs(Selection(tables=("faces",), networks=("vgg16",)), quick)
    states = [done(make_record(mine, quick, run, 50.0), mine) for run in runs]
    text = render_tables(summarise(states, mine, quick), mine, quick)
    assert text.startswith("### QUICK Some faces, top-1 accuracy in percent\n")
    assert "Not a table of the paper: nothing is reported to compare with." in text
    assert "– paper" not in text
    assert "| Cross-entropy Loss | **50.00 ± 0.00** (n = 3) |" in text
    latex = render_tables(summarise(states, mine, quick), mine, quick, "latex")
    assert r"\label{tab:quick-faces}" in latex
    assert r"\caption{QUICK Some faces, top-1 accuracy in percent.}" in latex


def test_cells_trained_on_different_data_are_remarked(registry, quick):
    states = [
        done(
            make_record(registry, quick, registry.parse(f"cifar100/vgg16/{row}/seed0"), 71.0, fingerprint=f),
            registry,
        )
        for row, f in (("cross-entropy", "a" * 64), ("scaled-bn-m1", "b" * 64))
    ]
    text = render_tables(summarise(states, registry, quick), registry, quick)
    assert "The cells were not all trained on the same data." in text


def test_a_label_with_markup_characters_stays_a_label(tmp_path, registry, quick):
    table = registry.table(1)
    row = table.rows[0].model_copy(update={"label": "a|b*c <i>"})
    odd = Registry([table.model_copy(update={"rows": (row, table.rows[1])})], registry.presets)
    text = render_tables(summarise(states_of(odd, quick), odd, quick), odd, quick)
    assert r"| a\|b\*c \<i> " in text


def test_a_difference_that_rounds_to_zero_has_no_minus_sign(registry, quick):
    run = registry.parse("cifar100/vgg16/cross-entropy/seed0")
    state = done(make_record(registry, quick, run, 71.857, test_images=100_000), registry)
    assert "71.86 ± 0.14 (+0.00)" in render_tables(summarise([state], registry, quick), registry, quick)


def test_an_unknown_format_lists_the_known_ones(summaries, registry, quick):
    with pytest.raises(UsageError, match="markdown, latex, macros, csv, json"):
        render_tables(summaries, registry, quick, "html")


@pytest.mark.parametrize("table_format", TABLE_FORMATS)
def test_every_format_ends_in_one_line_feed(table_format, summaries, registry, quick):
    text = render_tables(summaries, registry, quick, table_format)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_summaries_of_nothing_render_as_an_empty_document(registry, quick):
    assert render_tables((), registry, quick).strip() == ""
