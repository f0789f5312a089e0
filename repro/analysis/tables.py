"""The paper's tables regenerated from records: their words, and their text as markdown.

    CellResult … → TableText → markdown, LaTeX (`repro.analysis.export`), or a table of the report

Rows are losses and columns networks, as in the paper. A loss has two lines, so that three networks fit a
page and a terminal, and a number stands right above the one it is compared with; a third only where one of
its runs diverged:

    AM-Softmax Loss (s = 7.5, m = 0.35)   72.91 ± 0.20 (n = 2 of 3)   …
    – paper (Δ)                           72.85 ± 0.18 (+0.06)        …
    – not averaged                        1 of 3 diverged
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd
from tabulate import tabulate

from repro.analysis.results import CellResult, RunResult
from repro.analysis.rules import Rules
from repro.analysis.text import (
    loss_label,
    mean_text,
    network_label,
    preset_sentence,
    qualified_title,
    seeds_text,
    signed,
)
from repro.analysis.verdicts import legend, mark
from repro.config import Preset, Scalar
from repro.errors import counted
from repro.experiments import Table, TableName
from repro.paper import Metric, Paper
from repro.record_state import RecordState
from repro.registry import Cell, Registry

BEYOND = "Not in the paper"  # is shown above the first row that extends a table

_Part = tuple[Table, list[CellResult]]
_Key = tuple[str, tuple[tuple[str, Scalar], ...]]  # a row: its name, and its overrides of the preset


@dataclass(frozen=True)
class TableCell:
    """One cell's text. `value` is mean ± std, empty in a blank; `count` is n, or the blank's reason.

    `marks` are the numbers of the notes that qualify it; `paper` holds the paper's value and Δ, empty in a
    table that reports nothing. `result` is None for a cell that was not selected.
    """

    result: CellResult | None
    value: str
    count: str
    best: bool
    marks: tuple[int, ...]
    paper: str

    @property
    def diverged(self) -> str:
        """`1 of 3 diverged` below a value; empty where none did."""
        return self.result.divergence if self.result and self.value else ""


@dataclass(frozen=True)
class TableRow:
    """A loss with its cells, one per column; `beyond` where it is not one of the table's own.

    `compared` where the cells say how far they are from the paper's.
    """

    label: str
    cells: tuple[TableCell, ...]
    beyond: bool
    compared: bool

    @property
    def lower_lines(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What is shown below the measured values: (label, a text per column)."""
        paper = ("– paper (Δ)" if self.compared else "– paper", tuple(cell.paper for cell in self.cells))
        diverged = ("– not averaged", tuple(cell.diverged for cell in self.cells))
        return tuple(line for line in (paper, diverged) if any(line[1]))


@dataclass(frozen=True)
class TableText:
    """One table in words. `remarks` say how to read it, `notes` are (mark, text), `blanks` are sentences.

    `name` is one that files and labels can use: `table1`, `quick-table1`, `quick-lfw`. `caption` is the title
    for a page that counts its own tables. `stale` says which runs older code made. `results` are the
    table's own, `further` those of the tables that extend it, whose rows are the last.
    """

    name: str
    table: TableName
    corner: str
    title: str
    caption: str
    remarks: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[tuple[int, str], ...]
    blanks: tuple[str, ...]
    stale: tuple[str, ...]
    results: tuple[CellResult, ...]
    further: tuple[CellResult, ...]


def to_markdown(tables: Sequence[TableText]) -> str:
    """GitHub's markdown, padded so that it reads in a terminal as well."""
    return "\n\n".join(_markdown_table(table) for table in tables) + "\n"


def _markdown_table(table: TableText) -> str:
    lines: list[list[str]] = []
    for index, row in enumerate(table.rows):
        if row.beyond and (index == 0 or not table.rows[index - 1].beyond):
            lines.append([f"*{BEYOND}*", *([""] * len(table.columns))])
        lines.append([escape(row.label), *map(_measured, row.cells)])
        lines += [[label, *map(escape, texts)] for label, texts in row.lower_lines]
    headers = [escape(table.corner), *map(escape, table.columns)]
    grid = tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)
    parts = [f"### {escape(table.title)}", *map(escape, table.remarks), grid]
    if table.notes:
        parts.append("\n".join(f"- {_superscript(number)} {escape(text)}" for number, text in table.notes))
    if table.blanks:
        parts.append("Not counted:\n\n" + "\n".join(f"- {escape(text)}" for text in table.blanks))
    return "\n\n".join(parts)


def _measured(cell: TableCell) -> str:
    marks = "".join(f" {_superscript(number)}" for number in cell.marks)
    if not cell.value:
        return f"—: {escape(cell.count)}{marks}"
    value = f"**{cell.value}**" if cell.best else cell.value
    return f"{value} ({escape(cell.count)}){marks}"


def markdown_page(title: str, preset: Preset, *parts: str) -> str:
    """A heading that names the preset, what the preset is, and the parts that are not empty, as markdown."""
    head = (f"### {escape(qualified_title(title, preset))}", escape(preset_sentence(preset)))
    return "\n\n".join(filter(None, (*head, *parts))) + "\n"


def markdown_grid(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of the rows' texts below their keys, as markdown."""
    escaped = [{name: escape(text) for name, text in row.items()} for row in rows]
    return tabulate(escaped, headers="keys", tablefmt="pipe", disable_numparse=True)


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def escape(text: str) -> str:
    """Keeps a label or a reason from being read as markdown's markup."""
    return "".join(f"\\{letter}" if letter in "\\`*|<[" else letter for letter in " ".join(text.split()))


def build_tables(
    results: Sequence[CellResult],
    registry: Registry,
    preset: Preset,
    supplied: bool = False,
    rules: Rules | None = None,
) -> tuple[TableText, ...]:
    """One table for each that the results touch; rows that extend one of them are shown below its own.

    `supplied` says that the records lie in the project's own results folder and may have come with it; with
    `rules` the verdicts' marks stand behind Δ.
    """
    of_table = {name: list(group) for name, group in groupby(results, lambda result: result.cell.table)}
    parts: dict[TableName, list[_Part]] = {}
    # A table comes before those that extend it, whatever was touched first.
    for table in sorted(map(registry.table, of_table), key=lambda table: table.extends is not None):
        owner = table.extends if table.extends in of_table else table.name
        assert owner is not None
        parts.setdefault(owner, []).append((table, of_table[table.name]))
    paper = registry.paper
    return tuple(_table(parts[name], paper, preset, supplied, rules) for name in of_table if name in parts)


def _table(
    parts: Sequence[_Part], paper: Paper, preset: Preset, supplied: bool, rules: Rules | None
) -> TableText:
    """A table from its own results and those of the tables that extend it, which come after it."""
    (table, results), *beyond = parts
    every = [result for _, part in parts for result in part]
    networks = list(dict.fromkeys(result.cell.network for result in every))
    keys = [(owner, key) for owner, part in parts for key in _keys(owner, part)]
    compared = preset.name == "paper"
    at = {(result.cell.network, result.cell.row, result.cell.axes): result for result in every}
    # The best of the paper's losses: others, of which some may not have run, take no bold from them. Another
    # preset tests the harness: it has no winners.
    own = _keys(*parts[0]) if compared else []
    best = {network: _best([at.get((network, *key)) for key in own], paper.metric) for network in networks}
    measured = [result for result in every if result.n]
    seen = Counter(note for result in measured for note in result.notes)
    shared = [note for note, times in seen.items() if times == len(measured)]
    beside = (result.beside for result in every if result.beside)
    marked = dict.fromkeys([*(note for note in seen if note not in shared), *beside])
    notes = {note: number for number, note in enumerate(marked, 1)}

    def cell(network: str, owner: Table, key: _Key) -> TableCell:
        result = at.get((network, *key))
        if result is None:
            return TableCell(None, "", "not selected", False, (), "—" if owner.reports else "")
        marks = tuple(n for text, n in notes.items() if text in (*result.notes, result.beside))
        # Means that print alike tie: a difference nobody can see makes no winner.
        ties = result.mean is not None and mean_text(result.mean) == best[network]
        printed = _printed(result, mark(result) if rules else "") if owner.reports else ""
        return TableCell(result, result.value, result.count, ties and owner is table, marks, printed)

    def sentences(reason: Callable[[RunResult], str]) -> tuple[str, ...]:
        """What `reason` says of the runs that it says anything of."""
        found: list[str] = []
        for owner, part in parts:
            runs = [
                (each.cell, run.seed, text) for each in part for run in each.runs if (text := reason(run))
            ]
            whole = "every loss" if owner is table else "every loss beyond the paper"
            found += _listed(owner, runs, whole, len(_keys(owner, part))) if runs else []
        return tuple(found)

    def stale(run: RunResult) -> str:
        older = run.record_state is RecordState.OLDER_CODE and not run.short
        return "made by older code" if older else ""

    unit = f"{paper.metric.title} in percent"
    title = f"{table.heading}, {unit}"
    caption = f"{table.title} (the paper's Table {table.name}), {unit}" if table.of_paper else title
    name = f"table{table.name}" if table.of_paper else str(table.name)
    remarks = _remarks(table, results, paper, preset, shared, supplied)
    further = [result for _, part in beyond for result in part]
    if further:
        runs, expected = sum(result.n for result in further), sum(result.expected for result in further)
        remarks.append(
            f"Below the paper's losses: others under the same recipe, {runs} of {expected} runs counted. "
            "They are in no verdict and take no bold."
        )
    return TableText(
        name=name if preset.name == "paper" else f"{preset.name}-{name}",
        table=table.name,
        corner=table.title,
        title=qualified_title(title, preset),
        caption=qualified_title(caption, preset),
        remarks=(*remarks, *([legend(rules)] if rules and any(map(mark, results)) else [])),
        columns=tuple(network_label(table, network) for network in networks),
        rows=tuple(
            TableRow(
                loss_label(owner, *key),
                tuple(cell(n, owner, key) for n in networks),
                beyond=owner is not table,
                compared=compared,
            )
            for owner, key in keys
        ),
        notes=tuple((number, text) for text, number in notes.items()),
        blanks=sentences(lambda run: run.reason),
        stale=sentences(stale),
        results=tuple(results),
        further=tuple(further),
    )


def _keys(table: Table, results: Sequence[CellResult]) -> list[_Key]:
    """The rows of a table that the results touch, in its order; they come column by column."""
    keys = list(dict.fromkeys((result.cell.row, result.cell.axes) for result in results))
    keys.sort(key=lambda key: (table.rows.index(table.row(key[0])), [str(axis) for axis in key[1]]))
    return keys


def _printed(result: CellResult, verdict_mark: str) -> str:
    if result.reported is None:
        return "—"
    text = mean_text(result.reported.mean, result.reported.std)
    if result.difference is None:
        return text
    return f"{text} ({signed(result.difference)}{verdict_mark and ' ' + verdict_mark})"


def _best(column: Sequence[CellResult | None], metric: Metric) -> str | None:
    """The column's best mean as printed; None unless every row has all its runs: no winner of unequal n."""
    means = [each.mean for each in column if each and each.mean is not None and each.n == each.expected]
    return mean_text(metric.best(means)) if 2 <= len(means) == len(column) else None


def _remarks(
    table: Table,
    results: Sequence[CellResult],
    paper: Paper,
    preset: Preset,
    shared: Sequence[str],
    supplied: bool,
) -> list[str]:
    runs = [run for result in results for run in result.averaged]
    remarks = [preset_sentence(preset)] if preset.heading else []
    measured = "mean ± sample standard deviation (ddof = 1; none at n = 1) over n seeds, last epoch, "
    measured += "percentage points."
    if table.reports:
        printed = any(cell.std is not None for row in table.rows for cell in row.reported.values())
        over = f" over {counted(runs_behind, 'run')}" if (runs_behind := paper.reported.runs) else ""
        shown = f"mean ± std{over}" if printed else f"mean{over}, printed without a spread"
        measured = f"First line of a row: {measured} Second line: the paper's {shown}, "
        measured += (
            "and Δ = first line − paper."
            if preset.name == "paper"
            else f"made with another recipe than the preset {preset.name}: no difference is shown."
        )
    else:
        what = "No number of the paper is given here" if table.of_paper else "Not a table of the paper"
        measured = f"{what}: there is nothing to compare with. A value: {measured}"
    if preset.name == "paper":
        measured += " Bold: the best mean of a column in which every loss has all its runs."
    remarks.append(measured)
    if runs:
        remarks.append(f"Data: {_sizes(table, runs)}.")
    made_of = f"Runs counted: {len(runs)} of {sum(result.expected for result in results)}"
    devices = Counter(f"{run.device}, {run.precision}" for run in runs)
    made = "; ".join(f"{device} ({times})" for device, times in devices.items())
    origin = " Some records may have been supplied with the project."
    remarks.append(f"{made_of}, made on {made}.{origin if supplied else ''}" if made else f"{made_of}.")
    if len({run.data for result in results if not result.cell.axes for run in result.averaged}) > 1:
        remarks.append("The cells were not all trained on the same data.")
    if shared:
        remarks.append(f"Every value: {'; '.join(shared)}.")
    return remarks


def _sizes(table: Table, runs: Sequence[RunResult]) -> str:
    """What the runs were trained and tested on, beside what the paper says where that differs."""
    found = dict.fromkeys(run.sizes for run in runs)
    text = "; ".join("{} classes, {:,} training and {:,} test images".format(*sizes) for sizes in found)
    paper = table.reported_data
    if paper is None:
        return text
    if list(found) == [paper.counts]:
        return f"{text}, as in the paper"
    return (
        f"{text}; the paper has {paper.classes} classes with {paper.train_per_class} training and "
        f"{paper.test_per_class} test images each"
    )


def _listed(table: Table, runs: Sequence[tuple[Cell, int, str]], every: str, losses: int) -> list[str]:
    """A sentence per reason: `not run yet — every loss on VGG (seeds 0, 1); AM-Softmax on … (seed 2)`.

    `runs` are (cell, seed, reason); `every` is said where all `losses` of the table share a phrase.
    """
    frame = pd.DataFrame(
        [
            (reason, network_label(table, cell.network), loss_label(table, cell.row, cell.axes), seed)
            for cell, seed, reason in runs
        ],
        columns=["reason", "network", "loss", "seeds"],
    )

    def losses_text(names: pd.Series) -> str:
        return every if 1 < losses == len(names) else ", ".join(names)

    # Networks that lack the same losses and seeds share a phrase.
    for keys, column, joined in (
        (["reason", "network", "loss"], "seeds", seeds_text),
        (["reason", "network", "seeds"], "loss", losses_text),
        (["reason", "loss", "seeds"], "network", ", ".join),
    ):
        frame = frame.groupby(keys, sort=False)[column].agg(joined).reset_index()
    phrases = frame["loss"] + " on " + frame["network"] + " (" + frame["seeds"] + ")"
    listed = phrases.groupby(frame["reason"], sort=False).agg("; ".join)
    # What went wrong is read first; what is only still to come is the longest list, and last.
    return sorted(
        (f"{reason} — {text}" for reason, text in listed.items()), key=lambda text: text.startswith("not ")
    )
