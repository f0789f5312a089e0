"""Tables for programs: CSV with a line a cell, and JSON with everything, at full precision."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence

from repro.analysis.aggregate import CellSummary
from repro.analysis.cell_verdict import Judged, verdict_fields
from repro.analysis.layout import loss_label, network_label, qualified_title
from repro.config import Preset
from repro.registry import Registry

CellValue = str | int | float | list[int] | list[float] | list[float | None] | None

READING_FIELDS = (
    "low",
    "high",
    "p_beyond",
    "p_beyond_adjusted",
    "p_equivalence",
    "p_equivalence_adjusted",
)
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
    "verdict",
    "so_far",
    *(f"{field}_ddof{ddof}" for ddof in (1, 0) for field in READING_FIELDS),
)


def cell_values(
    summary: CellSummary, registry: Registry, preset: Preset, judged: Judged | None = None
) -> dict[str, CellValue]:
    """A cell's values under CSV_COLUMNS: accuracies in percent points, None for a number there is not.

    `seeds`, `accuracies` and `best_accuracies` are lists in one order. `not_counted` is
    `seed 1: reason; …`, `notes` are parted by `; `. Verdict and interval are empty for a cell that the paper
    does not report on; `low_ddof0` is the lower end of the interval with the paper's std read as ddof = 0.
    """
    cell, reported = summary.cell, summary.reported
    verdict = judged.of(cell) if judged else None
    readings = {reading.ddof: reading for reading in verdict.readings} if verdict else {}
    return {
        "preset": preset.name,
        "table": str(cell.table),
        "dataset": cell.dataset,
        "network": cell.network,
        "loss": cell.row,
        "label": loss_label(registry.table(cell.table), cell.row, cell.axes),
        "axes": cell.id.partition("+")[2],
        "n": summary.n,
        "expected": summary.expected,
        "diverged": summary.diverged,
        "mean": summary.mean,
        "std": summary.std,
        "reported_mean": reported.mean if reported else None,
        "reported_std": reported.std if reported else None,
        "difference": summary.difference,
        "seeds": [run.seed for run in summary.runs],
        "accuracies": [run.accuracy for run in summary.runs],
        "best_accuracies": [run.best_accuracy for run in summary.runs],
        "not_counted": "; ".join(f"seed {blank.seed}: {blank.reason}" for blank in summary.blanks),
        "notes": "; ".join(summary.notes),
        "verdict": str(verdict.word) if verdict else None,
        "so_far": str(verdict.so_far) if verdict and verdict.so_far else None,
        **{
            f"{field}_ddof{ddof}": getattr(readings[ddof], field) if ddof in readings else None
            for ddof in (1, 0)
            for field in READING_FIELDS
        },
    }


def to_csv(
    summaries: Sequence[CellSummary], registry: Registry, preset: Preset, judged: Judged | None = None
) -> str:
    """A line a cell: `cell_values`, lists parted by spaces, numbers as the shortest text that reads back."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for summary in summaries:
        values = cell_values(summary, registry, preset, judged).values()
        writer.writerow([_joined(value) if isinstance(value, list) else value for value in values])
    return file.getvalue()


def _joined(values: Sequence[float | None]) -> str:
    return " ".join("" if value is None else repr(value) for value in values)


def to_json(
    summaries: Sequence[CellSummary],
    registry: Registry,
    preset: Preset,
    supplied: bool = False,
    judged: Judged | None = None,
) -> str:
    """Everything that is known of the tables. Accuracies, means and stds are in percent points.

        {"schema_version": 1,
         "preset": {"name", "title", "description", "seeds": […]},
         "supplied": true where the records lie in the project's own results folder,
         "std_ddof": 1,
         "rules": {"file", "sha256"} of what the verdicts rest on, or null,
         "tables": [{"table": its number or name, "title", "dataset",
                     "counted": runs averaged, "expected": runs in all,
                     "cells": [{"id", "network", "network_label", "loss", "label", "axes": {axis: value},
                                "n", "expected", "diverged", "mean", "std",
                                "reported": {"mean", "std"} or null, "difference": mean − reported mean,
                                "verdict": the fields of `CellVerdict`, null where nothing is reported,
                                "runs": [{"id", "seed", "accuracy", "best_accuracy", "best_epoch",
                                          "record_state", "data_unchecked", "data": sha256, "classes",
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
                "cells": [_cell(summary, registry, judged) for summary in of_table],
            }
        )
    content = {
        "schema_version": 1,
        "preset": preset.model_dump(mode="json", include={"name", "title", "description", "seeds"}),
        "supplied": supplied,
        "std_ddof": 1,
        "rules": {"file": judged.rules.place, "sha256": judged.rules.sha256} if judged else None,
        "tables": tables,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _cell(summary: CellSummary, registry: Registry, judged: Judged | None) -> dict[str, object]:
    cell = summary.cell
    verdict = judged.of(cell) if judged else None
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
        "verdict": verdict_fields(verdict) if verdict else None,
        "runs": [dataclasses.asdict(run) for run in summary.runs],
        "not_counted": [dataclasses.asdict(blank) for blank in summary.blanks],
        "notes": list(summary.notes),
    }
