r"""Results in every format: tables as text, and for programs CSV, JSON, Parquet and LaTeX macros.

A paper quotes the records by keys, and never copies a number:

    \input{numbers}                    % repro aggregate --format macros --output numbers.tex
    … reaches \repro{table1}{resnet18}{cross-entropy} \%, at n = \repro[n]{table1}{resnet18}{cross-entropy} …

The keys are a table's name (`quick-table1` at the preset quick), a network and a row's name, as the TOML
files have them. A key without a number is an error that names it.
"""

import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Literal

import pandas as pd

from repro.analysis.results import CellResult, RunResult
from repro.analysis.rules import Rules
from repro.analysis.tables import TableCell, TableText, build_tables, to_markdown
from repro.analysis.text import (
    csv_cell,
    json_text,
    loss_label,
    mean_text,
    network_label,
    qualified_title,
    signed,
)
from repro.analysis.verdicts import verdict_fields
from repro.config import Preset
from repro.errors import SetupError
from repro.experiments import Table
from repro.registry import Registry

TableFormat = Literal["markdown", "latex", "macros", "csv", "json", "parquet"]
Readings = Literal["deciding", "all"]
READING_FIELDS = ("low", "high", "p_beyond", "p_beyond_adjusted", "p_equivalence", "p_equivalence_adjusted")
_DIFFERENCE = ("difference", "difference-low", "difference-high")  # in points, with the ends of its interval
MACRO_FIELDS = ("value", "mean", "std", "n", "reported-mean", "reported-std", *_DIFFERENCE)
_NAMES = ("preset", "table", "dataset", "network", "loss", "label", "overrides")
_TEXTS = (*_NAMES, "not_counted", "notes", "verdict", "so_far")
_LISTS = {
    "seeds": int,
    "accuracies": float,
    "best_accuracies": float,
    "extra_seeds": int,
    "extra_accuracies": float,
}


def render_tables(
    results: Sequence[CellResult],
    registry: Registry,
    preset: Preset,
    table_format: TableFormat = "markdown",
    *,
    rules: Rules | None = None,
    supplied: bool = False,
    readings: Readings = "deciding",
) -> str | bytes:
    """Every table that the results touch in a format: text that ends in a line feed, or Parquet's bytes.

    `rules`: those that the results' verdicts rest on, None without verdicts. `supplied`: the records lie in
    the project's own results folder, which is then said. CSV, JSON and Parquet hold every number at full
    precision, and with "all" `readings` both readings of the paper's ±.
    """
    if table_format in ("markdown", "latex"):
        tables = build_tables(results, registry, preset, supplied, rules)
        return to_markdown(tables) if table_format == "markdown" else to_latex(tables)
    if table_format == "macros":
        return to_macros(results, preset)
    if table_format == "json":
        return to_json(results, registry, preset, supplied, rules, readings)
    return render_frame(cells_frame(results, registry, preset, readings), table_format, rules)


def cells_frame(
    results: Sequence[CellResult], registry: Registry, preset: Preset, readings: Readings = "deciding"
) -> pd.DataFrame:
    """One row per cell: the columns of the CSV. Accuracies in percent, NaN for a number there is not.

    `seeds`, `accuracies` and `best_accuracies` are lists in one order, of the planned seeds averaged;
    `extra_seeds` and `extra_accuracies` (None for a run without one) of the others. `not_counted` is
    `seed 1: reason; …`, `notes` are joined by `; `. Verdict and interval are None or NaN for a cell that the
    paper does not report on. `low`, `high` and the p are those of the reading that decides; of "all"
    `readings`, `low_ddof0` is the lower end with the paper's std read as ddof = 0.
    """
    rows = []
    for result in results:
        cell, reported, verdict = result.cell, result.reported, result.verdict
        shown = {"": verdict.deciding} if verdict else {}
        if verdict and readings == "all":
            shown |= {f"_ddof{reading.ddof}": reading for reading in verdict.readings}
        rows.append(
            {
                "preset": preset.name,
                "table": str(cell.table),
                "dataset": cell.dataset,
                "network": cell.network,
                "loss": cell.row,
                "label": loss_label(registry.table(cell.table), cell.row, cell.axes),
                "overrides": cell.id.partition("+")[2],
                **{name: getattr(result, name) for name in ("n", "expected", "diverged", "mean", "std")},
                "reported_mean": reported.mean if reported else None,
                "reported_std": reported.std if reported else None,
                "difference": result.difference,
                "seeds": [run.seed for run in result.averaged],
                "accuracies": [run.accuracy for run in result.averaged],
                "best_accuracies": [run.best_accuracy for run in result.averaged],
                "extra_seeds": [run.seed for run in result.extra],
                "extra_accuracies": [run.accuracy for run in result.extra],
                "not_counted": not_counted(result),
                "notes": "; ".join(result.notes),
                "verdict": str(verdict.word) if verdict else None,
                "so_far": str(verdict.so_far) if verdict and verdict.so_far else None,
                **{
                    f"{field}{suffix}": getattr(shown.get(suffix), field, None)
                    for suffix in ("", *(("_ddof1", "_ddof0") if readings == "all" else ()))
                    for field in READING_FIELDS
                },
            }
        )
    return typed(pd.DataFrame(rows, dtype=object))


def not_counted(result: CellResult) -> str:
    """`seed 1: reason; …`: the planned runs that are not averaged."""
    return "; ".join(f"seed {run.seed}: {run.reason}" for run in result.blanks)


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of objects with its numbers as int64 or float64."""
    numbers = [name for name in map(str, frame) if name not in (*_TEXTS, *_LISTS)]
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in numbers})


def render_frame(frame: pd.DataFrame, table_format: TableFormat, rules: Rules | None = None) -> str | bytes:
    """A frame as CSV, JSON (a list of one object per row) or Parquet, every number at full precision.

    CSV has lists joined by spaces. The sha256 of `rules` is in the metadata of Parquet, which needs pyarrow:
    else SetupError.
    """
    if table_format == "parquet":
        return _to_parquet(frame, rules)
    if table_format == "json":
        rows = frame.to_dict("records")
        return json_text([{name: _json_value(value) for name, value in row.items()} for row in rows])
    return frame.map(_csv_value).to_csv(index=False, lineterminator="\n")


def _json_value(value: Any) -> Any:
    if isinstance(value, list):
        return value
    if pd.isna(value):
        return None
    return value.isoformat() if isinstance(value, datetime) else value


def _csv_value(value: object) -> object:
    if not isinstance(value, list):
        return csv_cell(value)
    return " ".join("" if number is None else repr(number) for number in value)


def _to_parquet(frame: pd.DataFrame, rules: Rules | None) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SetupError("Parquet needs pyarrow, which is not installed: pip install pyarrow") from None
    found = pa.Schema.from_pandas(frame, preserve_index=False)
    lists = {name: pa.list_(pa.int64() if of is int else pa.float64()) for name, of in _LISTS.items()}
    # The type of a column without any value is not seen in it.
    types = [lists.get(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in found]
    named = {"rules": rules.place, "rules_sha256": rules.sha256} if rules else {}
    schema = pa.schema(zip(found.names, types, strict=True), metadata={**found.metadata, **named})
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), file)
    return file.getvalue()


def to_json(
    results: Sequence[CellResult],
    registry: Registry,
    preset: Preset,
    supplied: bool = False,
    rules: Rules | None = None,
    readings: Readings = "deciding",
) -> str:
    """Everything that is known of the tables. Accuracies, means and stds are in percent.

        {"schema_version": 2,
         "preset": {"name", "title", "description", "seeds": […]},
         "supplied": true where the records lie in the project's own results folder,
         "std_ddof": 1,
         "rules": {"file", "sha256"} of what the verdicts rest on, or null,
         "tables": [{"table": its number or name, "title", "dataset",
                     "counted": runs averaged, "expected": runs in all,
                     "cells": [{"id", "network", "network_label", "loss", "label", "overrides": {name: value},
                                "n", "expected", "diverged", "mean", "std",
                                "reported": {"mean", "std"} or null,
                                "difference": mean − reported mean, in the preset paper,
                                "verdict": `verdict_fields` with the reading that decides, of "all" `readings`
                                           with each; null where nothing is reported,
                                "runs": [{"id", "seed", "accuracy", "best_accuracy", "best_epoch",
                                          "record_state", "data_unchecked", "data": sha256, "classes",
                                          "train_images", "test_images", "partial",
                                          "device", "precision"}],
                                "not_counted": [{"id", "seed", "short", "reason", "diverged"}],
                                "extra": [{"id", "seed", "accuracy", "reason"}] beside the planned seeds,
                                "notes": […]}]}]}

    A number that there is not is null.
    """
    tables = []
    for name, group in groupby(results, lambda result: result.cell.table):
        table, of_table = registry.table(name), list(group)
        tables.append(
            {
                "counted": sum(result.n for result in of_table),
                "expected": sum(result.expected for result in of_table),
                "cells": [_cell_fields(result, table, readings) for result in of_table],
                "table": name,
                "title": qualified_title(table.heading, preset),
                "dataset": table.dataset,
            }
        )
    return json_text(
        {
            "schema_version": 2,
            "preset": preset.model_dump(mode="json", include={"name", "title", "description", "seeds"}),
            "supplied": supplied,
            "std_ddof": 1,
            "rules": rules.fields if rules else None,
            "tables": tables,
        }
    )


def _cell_fields(result: CellResult, table: Table, readings: Readings) -> dict[str, object]:
    cell, verdict = result.cell, verdict_fields(result)
    blank = ("short", "reason", "diverged")
    runs = [run._asdict() for run in result.averaged]
    if verdict and result.verdict:
        every = verdict.pop("readings")
        verdict |= {field: getattr(result.verdict.deciding, field, None) for field in READING_FIELDS}
        verdict |= {"readings": every} if readings == "all" else {}
    return {
        "id": cell.id,
        "network": cell.network,
        "network_label": network_label(table, cell.network),
        "loss": cell.row,
        "label": loss_label(table, cell.row, cell.axes),
        "overrides": dict(cell.axes),
        **{
            name: getattr(result, name) for name in ("n", "expected", "diverged", "mean", "std", "difference")
        },
        "reported": result.reported and result.reported.model_dump(),
        "verdict": verdict,
        "runs": [{name: run[name] for name in run if name not in blank} for run in runs],
        "not_counted": [_fields(run, "id", "seed", *blank) for run in result.blanks],
        "extra": [_fields(run, "id", "seed", "accuracy", "reason") for run in result.extra],
        "notes": list(result.notes),
    }


def _fields(run: RunResult, *names: str) -> dict[str, object]:
    return {name: getattr(run, name) for name in names}


_MACROS = r"""% Numbers of the preset {preset}, written by `repro aggregate --format macros`; do not edit.
% \repro{{{example}}}{{NETWORK}}{{ROW}} is mean ± std, or the mean alone without a std. One field of it:
% \repro[FIELD]{{{example}}}{{NETWORK}}{{ROW}} with {fields}.
\makeatletter
\providecommand\repro[4][value]{{\repro@get{{#2/#3/#4/#1}}}}
\providecommand\repro@get[1]{{\ifcsname repro@\detokenize{{#1}}\endcsname
  \expandafter\@firstoftwo\else\expandafter\@secondoftwo\fi
  {{\csname repro@\detokenize{{#1}}\endcsname}}%
  {{\PackageError{{repro}}{{There is no number \detokenize{{#1}}}}%
    {{This file lists every number that there is: `repro aggregate --format macros' wrote it.}}}}}}
\providecommand\repro@set[1]{{\expandafter\gdef\csname repro@\detokenize{{#1}}\endcsname}}
"""


def to_macros(results: Sequence[CellResult], preset: Preset) -> str:
    r"""The definition of \repro and a line per number, in the results' order, for a LaTeX document to \input.

    A cell without a mean has a comment that says why.
    """
    prefix = "" if preset.name == "paper" else f"{preset.name}-"
    tables = dict.fromkeys(result.cell.table for result in results)
    names = {table: f"{prefix}table{table}" if isinstance(table, int) else prefix + table for table in tables}
    example = next(iter(names.values()), "table1")
    lines = [_MACROS.format(preset=preset.name, example=example, fields=", ".join(MACRO_FIELDS[1:]))]
    for result in results:
        key = "/".join([names[result.cell.table], result.cell.id.split("/", 1)[1]])
        if result.mean is None:
            lines.append(f"% {key}: {result.count}\n")
        lines += [
            rf"\repro@set{{{key}/{field}}}{{{text}}}" + "\n" for field, text in quotable(result).items()
        ]
    return "".join([*lines, "\\makeatother\n"])


def quotable(result: CellResult) -> dict[str, str]:
    """The numbers of a cell by field, as LaTeX prints them: two decimals, a difference with its sign."""
    reported = (result.reported.mean, result.reported.std) if result.reported else (None, None)
    interval = (result.verdict and result.verdict.interval) or (None, None)
    numbers = (result.mean, result.std, result.n, *reported, result.difference, *interval)
    value = mean_text(result.mean, result.std).replace("±", r"\pm")
    texts = {"value": rf"\ensuremath{{{value}}}"} if value else {}
    for field, number in zip(MACRO_FIELDS[1:], numbers, strict=True):
        if number is not None and field in _DIFFERENCE:
            texts[field] = signed(number).replace("−", r"\ensuremath{-}")
        elif number is not None:
            texts[field] = f"{number:.{0 if field == 'n' else 2}f}"
    return texts


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "≠": r"$\neq$",
    "×": r"$\times$", "→": r"$\rightarrow$", "Δ": r"$\Delta$", "·": r"$\cdot$", "√": r"$\surd$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "τ": r"$\tau$", "…": r"\dots{}", "–": "--",
    "—": "---",
    "/": r"\slash{}",  # lets a run id break at the end of a line
}  # fmt: skip


def to_latex(tables: Sequence[TableText]) -> str:
    r"""One `table` environment per table, to be \input by a document that has \usepackage{booktabs}.

    Labels are `tab:table1`, `tab:quick-table1`, ….
    """
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(map(_latex_table, tables))


def escape_latex(text: str) -> str:
    """`text` as LaTeX prints it literally; a character that pdfLaTeX may lack becomes its code point."""
    return "".join(_SPECIAL.get(letter) or _latex_letter(letter) for letter in " ".join(text.split()))


def _latex_letter(letter: str) -> str:
    # Accented Latin letters are in every font encoding; of the others pdfLaTeX may know nothing.
    accented = "À" <= letter <= "ÿ" and letter not in "ÐÞðþ÷"
    return letter if (letter.isascii() and letter.isprintable()) or accented else f"[U+{ord(letter):04X}]"


def _latex_table(table: TableText) -> str:
    lines = [
        r"\begin{table}[tp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_latex(table.caption)}.}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'l' * len(table.columns)}}}",
        r"\toprule",
        _line(escape_latex(table.corner), map(escape_latex, table.columns)),
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        if index:
            begins = row.beyond and not table.rows[index - 1].beyond
            lines.append(r"\midrule" if begins else r"\addlinespace")
        lines.append(_line(escape_latex(row.label), map(_measured, row.cells)))
        lines += [_line(escape_latex(label), map(escape_latex, texts)) for label, texts in row.lower_lines]
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\medskip\begin{minipage}{\linewidth}\sloppy"]
    below = [escape_latex(remark) for remark in table.remarks]
    below += [f"$^{{{number}}}$ {escape_latex(text)}." for number, text in table.notes]
    below += [f"Not counted: {escape_latex(text)}." for text in table.blanks]
    lines += [f"{text}\\par" for text in below]
    lines += [r"\end{minipage}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _line(label: str, texts: Iterable[str]) -> str:
    return " & ".join([label, *texts]) + r" \\"


def _measured(cell: TableCell) -> str:
    marks = f"$^{{{','.join(map(str, cell.marks))}}}$" if cell.marks else ""
    if not cell.value:
        return escape_latex(f"—: {cell.count}") + marks
    value = rf"\textbf{{{escape_latex(cell.value)}}}" if cell.best else escape_latex(cell.value)
    return f"{value} ({escape_latex(cell.count)}){marks}"
