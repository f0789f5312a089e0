"""What a table says, before any format: its words and where they stand.

    CellSummary … → TableLayout → markdown or LaTeX (`repro.analysis.tables`, `repro.analysis.latex`)

Rows are losses and columns networks, as in the paper. A loss has two lines, so that three networks fit a
page and a terminal, and a number stands right above the one it is compared with; a third only where one of
its runs diverged:

    AM-Softmax Loss (s = 7.5, m = 0.35)   72.91 ± 0.20 (n = 2 of 3)   …
    – paper (Δ)                           72.85 ± 0.18 (+0.06)        …
    – not averaged                        1 of 3 diverged
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repro.analysis.aggregate import CellSummary, CountedRun, seeds_text
from repro.analysis.cell_verdict import Judged
from repro.config import Preset, Scalar, format_axis
from repro.experiments import Table, TableName
from repro.record_state import RecordState
from repro.registry import Registry


@dataclass(frozen=True)
class LaidOutCell:
    """One cell's text. `value` is mean ± std, empty in a blank; `count` is n, or the blank's reason.

    `marks` are the numbers of the notes that qualify it; `paper` holds the paper's value and Δ, empty in a
    table that reports nothing; `diverged` is `1 of 3 diverged` or empty.
    """

    value: str
    count: str
    best: bool
    marks: tuple[int, ...]
    paper: str
    diverged: str


@dataclass(frozen=True)
class LaidOutRow:
    """A loss with its cells, one a column; `beyond` where it is not one of the table's own."""

    label: str
    cells: tuple[LaidOutCell, ...]
    beyond: bool = False

    @property
    def lower_lines(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What stands below the measured values: (label, a text a column)."""
        paper = ("– paper (Δ)", tuple(cell.paper for cell in self.cells))
        diverged = ("– not averaged", tuple(cell.diverged for cell in self.cells))
        return tuple(line for line in (paper, diverged) if any(line[1]))


@dataclass(frozen=True)
class TableLayout:
    """One table in words. `remarks` say how to read it, `notes` are (mark, text), `blanks` are sentences.

    `name` is one that files and labels can use: `table1`, `quick-table1`, `quick-lfw`. `caption` is the title
    for a page that counts its own tables. `stale` says which runs older code made. `beyond` are the tables of
    the last rows, which extend this one.
    """

    name: str
    table: TableName
    corner: str
    title: str
    caption: str
    remarks: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[LaidOutRow, ...]
    notes: tuple[tuple[int, str], ...]
    blanks: tuple[str, ...]
    stale: tuple[str, ...] = ()
    beyond: tuple[TableName, ...] = ()


def lay_out(
    summaries: Sequence[CellSummary],
    registry: Registry,
    preset: Preset,
    supplied: bool = False,
    judged: Judged | None = None,
) -> tuple[TableLayout, ...]:
    """One layout for each table that the summaries touch; rows that extend one of them stand below its own.

    `supplied` says that the records lie in the project's own results folder and may have come with it;
    `judged` gives the marks behind Δ.
    """
    of_table: dict[TableName, list[CellSummary]] = {}
    for summary in summaries:
        of_table.setdefault(summary.cell.table, []).append(summary)
    extensions = {name: table for name in of_table if (table := registry.table(name)).extends in of_table}
    return tuple(
        _table(
            registry.table(name),
            of_table[name],
            [(table, of_table[other]) for other, table in extensions.items() if table.extends == name],
            preset,
            supplied,
            judged,
        )
        for name in of_table
        if name not in extensions
    )


def qualified_title(title: str, preset: Preset, generated: bool) -> str:
    """`title` behind the preset's own; SMOKE is added wherever generated data came under another preset."""
    words = [preset.title] if preset.title else []
    if generated and preset.recipe.data != "generated":
        words.append("SMOKE (generated data)")
    return " ".join([*words, title])


def preset_sentence(preset: Preset) -> str:
    """What the preset is, where it is not the paper's recipe; else empty."""
    return f"{preset.heading.rstrip('.')}." if preset.heading else ""


def loss_label(table: Table, row: str, axes: Sequence[tuple[str, Scalar]]) -> str:
    """A row's label, as the TOML has it, and behind it any departure from the preset."""
    return ", ".join([table.row(row).label, *(f"{axis} = {format_axis(value)}" for axis, value in axes)])


def network_label(table: Table, network: str) -> str:
    """A column's label; a network that the paper's table lacks is called by its name."""
    return table.networks.get(network, network)


def short_blank(summary: CellSummary) -> str:
    """Why a cell has no mean, in a few words: `not run yet`, `3 of 3 diverged`."""
    reasons = dict.fromkeys(blank.short for blank in summary.blanks if not blank.diverged)
    return ", ".join(filter(None, (diverged_text(summary), *reasons)))


def diverged_text(summary: CellSummary) -> str:
    """`1 of 3 diverged`; empty where none did."""
    return f"{summary.diverged} of {summary.expected} diverged" if summary.diverged else ""


_Key = tuple[str, tuple[tuple[str, Scalar], ...]]
"""A row: its name, and its departures from the preset."""


def _table(
    table: Table,
    summaries: Sequence[CellSummary],
    beyond: Sequence[tuple[Table, Sequence[CellSummary]]],
    preset: Preset,
    supplied: bool,
    judged: Judged | None,
) -> TableLayout:
    parts = [(table, summaries), *beyond]
    networks = list(dict.fromkeys(summary.cell.network for _, part in parts for summary in part))
    keys = [(owner, key) for owner, part in parts for key in _keys(owner, part)]
    at = {
        (summary.cell.network, summary.cell.row, summary.cell.axes): summary
        for _, part in parts
        for summary in part
    }
    # The best of the paper's losses: others, of which some may not have run, take no bold from them.
    best = {network: _best([at.get((network, *key)) for key in _keys(*parts[0])]) for network in networks}
    shared, notes = _notes(
        [at[network, *key] for _, key in keys for network in networks if (network, *key) in at]
    )
    marks_of = {summary.cell: mark for summary in summaries if judged and (mark := judged.mark(summary.cell))}

    def cell(network: str, owner: Table, key: _Key) -> LaidOutCell:
        summary = at.get((network, *key))
        if summary is None:
            return LaidOutCell("", "not selected", False, (), "—" if owner.reports else "", "")
        marks = tuple(number for text, number in notes.items() if text in summary.notes)
        # Means that print alike tie: a difference nobody can see makes no winner.
        ties = summary.mean is not None and _value(summary.mean, None) == best[network]
        value = _value(summary.mean, summary.std)
        diverged = diverged_text(summary) if value else ""
        paper = _paper(summary, marks_of.get(summary.cell, "")) if owner.reports else ""
        return LaidOutCell(value, _count(summary), ties and owner is table, marks, paper, diverged)

    generated = any(run.generated for summary in summaries for run in summary.runs)
    unit = "top-1 accuracy in percent"
    title = f"{table.heading}, {unit}"
    caption = f"{table.title} (the paper's Table {table.name}), {unit}" if table.of_paper else title
    name = f"table{table.name}" if table.of_paper else str(table.name)
    return TableLayout(
        name=name if preset.name == "paper" else f"{preset.name}-{name}",
        table=table.name,
        corner=table.title,
        title=qualified_title(title, preset, generated),
        caption=qualified_title(caption, preset, generated),
        remarks=(
            *_remarks(table, summaries, preset, shared, supplied),
            *([_beyond_remark(beyond)] if beyond else []),
            *([judged.legend] if judged and marks_of else []),
        ),
        columns=tuple(network_label(table, network) for network in networks),
        rows=tuple(
            LaidOutRow(
                loss_label(owner, *key),
                tuple(cell(network, owner, key) for network in networks),
                beyond=owner is not table,
            )
            for owner, key in keys
        ),
        notes=tuple((number, text) for text, number in notes.items()),
        blanks=tuple(
            text for owner, part in parts for text in _listed(owner, part, _every(owner, table), _blanks)
        ),
        stale=tuple(
            text for owner, part in parts for text in _listed(owner, part, _every(owner, table), _stale)
        ),
        beyond=tuple(owner.name for owner, _ in beyond),
    )


def _keys(table: Table, summaries: Sequence[CellSummary]) -> list[_Key]:
    """The rows of a table that the summaries touch, in its order; they come column by column."""
    keys = list(dict.fromkeys((summary.cell.row, summary.cell.axes) for summary in summaries))
    keys.sort(key=lambda key: (table.rows.index(table.row(key[0])), [str(axis) for axis in key[1]]))
    return keys


def _beyond_remark(beyond: Sequence[tuple[Table, Sequence[CellSummary]]]) -> str:
    every = [summary for _, part in beyond for summary in part]
    counted, expected = sum(summary.n for summary in every), sum(summary.expected for summary in every)
    return (
        f"Below the paper's losses: others under the same recipe, {counted} of {expected} runs counted. They "
        "are in no verdict and take no bold."
    )


def _value(mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _count(summary: CellSummary) -> str:
    if summary.mean is None:
        return short_blank(summary)
    return f"n = {summary.n}" if summary.n == summary.expected else f"n = {summary.n} of {summary.expected}"


def _paper(summary: CellSummary, mark: str) -> str:
    if summary.reported is None:
        return "—"
    text = _value(summary.reported.mean, summary.reported.std)
    if summary.difference is None:
        return text
    # Adding 0.0 turns a rounded −0.0 into 0.0, so that no difference reads “+0.00”.
    difference = f"{round(summary.difference, 2) + 0.0:+.2f}".replace("-", "−")
    return f"{text} ({difference}{mark and ' ' + mark})"


def _best(column: Sequence[CellSummary | None]) -> str | None:
    """The column's best mean as printed; None unless every row has all its runs: no winner of unequal n."""
    means = [
        summary.mean
        for summary in column
        if summary is not None and summary.mean is not None and summary.n == summary.expected
    ]
    return _value(max(means), None) if 2 <= len(means) == len(column) else None


def _notes(summaries: Sequence[CellSummary]) -> tuple[list[str], dict[str, int]]:
    """Notes that hold for every cell with a value, and the numbers of the others."""
    counted = [summary for summary in summaries if summary.runs]
    seen = Counter(note for summary in counted for note in summary.notes)
    shared = [note for note, times in seen.items() if times == len(counted)]
    others = [note for note in seen if note not in shared]
    return shared, {note: number for number, note in enumerate(others, 1)}


def _remarks(
    table: Table,
    summaries: Sequence[CellSummary],
    preset: Preset,
    shared: Sequence[str],
    supplied: bool,
) -> tuple[str, ...]:
    runs = [run for summary in summaries for run in summary.runs]
    remarks = [preset_sentence(preset)] if preset.heading else []
    measured = (
        "mean ± sample standard deviation (ddof = 1; none at n = 1) over n seeds, last epoch, percent points."
    )
    if table.reports:
        measured = (
            f"First line of a loss: {measured} Second line: the paper's mean ± std over three runs, "
            "and Δ = first line − paper."
        )
    else:
        measured = f"Not a table of the paper: nothing is reported to compare with. A value: {measured}"
    remarks.append(f"{measured} Bold: the best mean of a column in which every loss has all its runs.")
    if sizes := _sizes(table, runs):
        remarks.append(sizes)
    counted = f"Runs counted: {len(runs)} of {sum(summary.expected for summary in summaries)}"
    devices = Counter(f"{run.device}, {run.precision}" for run in runs)
    made = "; ".join(f"{device} ({times})" for device, times in devices.items())
    origin = (
        " The records lie in the project's own results folder: some may have come with it."
        if supplied
        else ""
    )
    remarks.append(f"{counted}, made on {made}.{origin}" if made else f"{counted}.")
    if len({run.data for summary in summaries if not summary.cell.axes for run in summary.runs}) > 1:
        remarks.append("The cells were not all trained on the same data.")
    if shared:
        remarks.append(f"Every value: {'; '.join(shared)}.")
    return tuple(remarks)


def _sizes(table: Table, runs: Sequence[CountedRun]) -> str:
    """What the runs were trained and tested on, beside what the paper says where that differs."""
    if not runs:
        return ""
    found = dict.fromkeys((run.classes, run.train_images, run.test_images) for run in runs)
    text = "; ".join(
        f"{classes} classes, {train:,} training and {test:,} test images" for classes, train, test in found
    )
    paper = table.reported_data
    if paper is None:
        return f"Data: {text}."
    counts = (paper.classes, paper.classes * paper.train_per_class, paper.classes * paper.test_per_class)
    if list(found) == [counts]:
        return f"Data: {text}, as in the paper."
    return (
        f"Data: {text}; the paper has {paper.classes} classes with {paper.train_per_class} training and "
        f"{paper.test_per_class} test images each."
    )


def _every(owner: Table, table: Table) -> str:
    return "every loss" if owner is table else "every loss beyond the paper"


def _blanks(summary: CellSummary) -> list[tuple[str, int]]:
    """Each seed that is not averaged, with the reason."""
    return [(blank.reason, blank.seed) for blank in summary.blanks]


def _stale(summary: CellSummary) -> list[tuple[str, int]]:
    """Each seed whose record older code made."""
    older = [run.seed for run in summary.runs if run.record_state is RecordState.OLDER_CODE]
    return [("made by older code", seed) for seed in older]


def _listed(
    table: Table,
    summaries: Sequence[CellSummary],
    every: str,
    seeds_of: Callable[[CellSummary], list[tuple[str, int]]],
) -> tuple[str, ...]:
    """A sentence a reason: `not run yet — every loss on VGG (seeds 0, 1); Our Loss (m = 1) on … (seed 2)`."""
    losses = {loss_label(table, summary.cell.row, summary.cell.axes) for summary in summaries}
    seeds_by_cell: dict[str, dict[tuple[str, str], list[int]]] = {}
    for summary in summaries:
        place = (
            network_label(table, summary.cell.network),
            loss_label(table, summary.cell.row, summary.cell.axes),
        )
        for reason, seed in seeds_of(summary):
            seeds_by_cell.setdefault(reason, {}).setdefault(place, []).append(seed)
    sentences = []
    # What went wrong is read first; what is only still to come is the longest list, and last.
    for reason, places in sorted(seeds_by_cell.items(), key=lambda item: item[0].startswith("not ")):
        groups: dict[tuple[str, str], list[str]] = {}
        for (network, loss), numbers in places.items():
            groups.setdefault((network, seeds_text(numbers)), []).append(loss)
        # Networks that lack the same losses and seeds share a phrase.
        phrases: dict[tuple[str, str], list[str]] = {}
        for (network, seeds), names in groups.items():
            text = every if len(losses) > 1 and set(names) == losses else ", ".join(names)
            phrases.setdefault((text, seeds), []).append(network)
        listed = "; ".join(
            f"{text} on {', '.join(columns)} ({seeds})" for (text, seeds), columns in phrases.items()
        )
        sentences.append(f"{reason} — {listed}")
    return tuple(sentences)
