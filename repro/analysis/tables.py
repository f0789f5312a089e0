"""The paper's tables made anew from records, as markdown, LaTeX, CSV or JSON; and their numbers as macros."""

from collections.abc import Sequence
from typing import Literal, get_args

from tabulate import tabulate

from repro.analysis.aggregate import CellSummary
from repro.analysis.cell_verdict import Judged
from repro.analysis.latex import to_latex
from repro.analysis.layout import LaidOutCell, TableLayout, lay_out
from repro.analysis.macros import to_macros
from repro.analysis.tidy import to_csv, to_json
from repro.config import Preset
from repro.errors import UsageError
from repro.registry import Registry

TableFormat = Literal["markdown", "latex", "macros", "csv", "json"]
TABLE_FORMATS: tuple[TableFormat, ...] = get_args(TableFormat)


def render_tables(
    summaries: Sequence[CellSummary],
    registry: Registry,
    preset: Preset,
    table_format: TableFormat = "markdown",
    *,
    judged: Judged | None = None,
    supplied: bool = False,
    standalone: bool = False,
) -> str:
    """The text of every table that the summaries touch, ending in a line feed.

    `judged`: the verdicts to show. `supplied`: the records lie in the project's own results folder, which is
    then said. `standalone`: LaTeX comes as a whole document. CSV and JSON hold every number at full precision
    (`repro.analysis.tidy`). Raises UsageError for an unknown format.
    """
    match table_format:
        case "markdown":
            return to_markdown(lay_out(summaries, registry, preset, supplied, judged))
        case "latex":
            return to_latex(lay_out(summaries, registry, preset, supplied, judged), standalone=standalone)
        case "macros":
            return to_macros(summaries, preset, judged)
        case "csv":
            return to_csv(summaries, registry, preset, judged)
        case "json":
            return to_json(summaries, registry, preset, supplied, judged)
    raise UsageError(f"there is no table format {table_format!r}; formats: {', '.join(TABLE_FORMATS)}")


BEYOND = "Not in the paper"
"""What stands above the first row that extends a table."""


def to_markdown(layouts: Sequence[TableLayout]) -> str:
    """GitHub's markdown, padded so that it reads in a terminal as well."""
    return "\n\n".join(_markdown_table(layout) for layout in layouts) + "\n"


def _markdown_table(layout: TableLayout) -> str:
    lines: list[list[str]] = []
    for index, row in enumerate(layout.rows):
        if row.beyond and (index == 0 or not layout.rows[index - 1].beyond):
            lines.append([f"*{BEYOND}*", *([""] * len(layout.columns))])
        lines.append([escape(row.label), *map(_measured, row.cells)])
        lines += [[label, *map(escape, texts)] for label, texts in row.lower_lines]
    grid = tabulate(
        lines,
        headers=[escape(layout.corner), *map(escape, layout.columns)],
        tablefmt="pipe",
        disable_numparse=True,
    )
    parts = [f"### {escape(layout.title)}", *map(escape, layout.remarks), grid]
    if layout.notes:
        parts.append("\n".join(f"- {_superscript(number)} {escape(text)}" for number, text in layout.notes))
    if layout.blanks:
        parts.append("Not counted:\n\n" + "\n".join(f"- {escape(text)}" for text in layout.blanks))
    return "\n\n".join(parts)


def _measured(cell: LaidOutCell) -> str:
    if not cell.value:
        return f"—: {escape(cell.count)}"
    value = f"**{cell.value}**" if cell.best else cell.value
    marks = " ".join(map(_superscript, cell.marks))
    return f"{value} ({escape(cell.count)}){marks and ' ' + marks}"


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def escape(text: str) -> str:
    """Keeps a label or a reason from being read as markup."""
    plain = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*|<[" else letter for letter in plain)
