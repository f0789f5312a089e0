"""Tables for programs: CSV with a line a cell, and JSON with everything, at full precision."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence

from repro.analysis.aggregate import CellSummary
from repro.analysis.layout import loss_label, network_label, qualified_title
from repro.recipes import Preset
from repro.registry import Registry

CSV_COLUMNS = (
    "preset",
    "table",
    "dataset",
    "network",
    "loss",
    "label",
    "axes",
    "n",
    "expected",
    "diverged",
    "mean",
    "std",
    "reported_mean",
    "reported_std",
    "difference",
    "seeds",
    "accuracies",
    "best_accuracies",
    "not_counted",
    "notes",
)


def to_csv(summaries: Sequence[CellSummary], registry: Registry, preset: Preset) -> str:
    """A line a cell under CSV_COLUMNS; accuracies in percent points, shortest text that reads back exactly.

    `seeds`, `accuracies` and `best_accuracies` are lists parted by spaces, in one order; a number that there
    is not is an empty field. `not_counted` is `seed 1: reason; …`, `notes` are parted by `; `.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for summary in summaries:
        cell, reported = summary.cell, summary.reported
        table = registry.table(cell.table)
        best = ["" if run.best_accuracy is None else repr(run.best_accuracy) for run in summary.runs]
        writer.writerow(
            (
                preset.name,
                cell.table,
                cell.dataset,
                cell.network,
                cell.row,
                loss_label(table, cell.row, cell.axes),
                cell.id.partition("+")[2],
                summary.n,
                summary.expected,
                summary.diverged,
                summary.mean,
                summary.std,
                reported and reported.mean,
                reported and reported.std,
                summary.difference,
                " ".join(str(run.seed) for run in summary.runs),
                " ".join(repr(run.accuracy) for run in summary.runs),
                " ".join(best),
                "; ".join(f"seed {blank.seed}: {blank.reason}" for blank in summary.blanks),
                "; ".join(summary.notes),
            )
        )
    return file.getvalue()


def to_json(
    summaries: Sequence[CellSummary], registry: Registry, preset: Preset, supplied: bool = False
) -> str:
    """Everything that is known of the tables. Accuracies, means and stds are in percent points.

        {"schema_version": 1,
         "preset": {"name", "title", "description", "seeds": […]},
         "supplied": true where the records lie in the project's own results folder,
         "std_ddof": 1,
         "tables": [{"table": its number or name, "title", "dataset",
                     "counted": runs averaged, "expected": runs in all,
                     "cells": [{"id", "network", "network_label", "loss", "label", "axes": {axis: value},
                                "n", "expected", "diverged", "mean", "std",
                                "reported": {"mean", "std"} or null, "difference": mean − reported mean,
                                "runs": [{"id", "seed", "accuracy", "best_accuracy", "best_epoch",
                                          "standing", "data_unchecked", "data": sha256, "classes",
                                          "train_images", "test_images", "generated", "partial",
                                          "device", "precision"}],
                                "not_counted": [{"id", "seed", "short", "reason", "diverged"}],
                                "notes": […]}]}]}

    A number that there is not is null.
    """
    tables = []
    for name in dict.fromkeys(summary.cell.table for summary in summaries):
        table = registry.table(name)
        of_table = [summary for summary in summaries if summary.cell.table == name]
        generated = any(run.generated for summary in of_table for run in summary.runs)
        tables.append(
            {
                "table": name,
                "title": qualified_title(table.heading, preset, generated),
                "dataset": table.dataset,
                "counted": sum(summary.n for summary in of_table),
                "expected": sum(summary.expected for summary in of_table),
                "cells": [_cell(summary, registry) for summary in of_table],
            }
        )
    content = {
        "schema_version": 1,
        "preset": preset.model_dump(mode="json", include={"name", "title", "description", "seeds"}),
        "supplied": supplied,
        "std_ddof": 1,
        "tables": tables,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _cell(summary: CellSummary, registry: Registry) -> dict[str, object]:
    cell = summary.cell
    table = registry.table(cell.table)
    return {
        "id": cell.id,
        "network": cell.network,
        "network_label": network_label(table, cell.network),
        "loss": cell.row,
        "label": loss_label(table, cell.row, cell.axes),
        "axes": dict(cell.axes),
        "n": summary.n,
        "expected": summary.expected,
        "diverged": summary.diverged,
        "mean": summary.mean,
        "std": summary.std,
        "reported": summary.reported and summary.reported.model_dump(),
        "difference": summary.difference,
        "runs": [dataclasses.asdict(run) for run in summary.runs],
        "not_counted": [dataclasses.asdict(blank) for blank in summary.blanks],
        "notes": list(summary.notes),
    }
