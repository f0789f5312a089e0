"""`repro check`: the numbers that a paper quotes, against the records."""

from collections.abc import Callable, Sequence
from pathlib import Path

from repro.analysis.aggregate import CellSummary, integrity_errors, summarise
from repro.analysis.layout import short_blank
from repro.analysis.macros import FIELDS, macro_name, quotable
from repro.analysis.quotes import Check, check_quotes, find_quotes
from repro.commands.context import Context
from repro.commands.judge import judge_summaries
from repro.errors import UsageError
from repro.registry import Run, Selection

Key = tuple[str, str, str]


def check_file(file: Path, open_context: Callable[[str], Context]) -> Check:
    """Compares every number that `file` quotes; `open_context` gives the context of a preset.

    Raises UsageError for a file that cannot be read or quotes nothing, IntegrityError for a damaged record.
    """
    quotes = find_quotes(file)
    registry = open_context("paper").registry
    macros = {
        macro_name(preset, cell.id, field): (preset, cell.id, field)
        for preset in registry.presets
        for cell in registry.select_cells(Selection(tables=tuple(table.name for table in registry.tables)))
        for field in FIELDS
    }
    numbers = _Numbers(open_context)
    found = check_quotes(quotes, macros, numbers.value)
    return Check(found.compared, found.problems, tuple(numbers.notices))


class _Numbers:
    """What the records say, each preset's tables read when one of its numbers is first asked for."""

    def __init__(self, open_context: Callable[[str], Context]) -> None:
        self.notices: dict[str, None] = {}
        self._open = open_context
        self._contexts: dict[str, Context] = {}
        self._cells: dict[tuple[str, str], tuple[CellSummary, dict[str, float]]] = {}

    def value(self, key: Key) -> float | str:
        """The number of (preset, cell, field), or why there is none."""
        preset, cell, field = key
        try:
            summary, numbers = self._cell(preset, cell)
        except UsageError as error:
            return str(error)
        if field not in numbers:
            return short_blank(summary) or f"the cell has no {field} at n = {summary.n}"
        if summary.n < summary.expected and not field.startswith("reported"):
            self.notices[f"{preset}:{cell}: n = {summary.n} of {summary.expected}"] = None
        return numbers[field]

    def _cell(self, preset: str, cell: str) -> tuple[CellSummary, dict[str, float]]:
        if preset not in self._contexts:
            context = self._contexts[preset] = self._open(preset)
            every = Selection(tables=tuple(table.name for table in context.registry.tables))
            self._read(preset, context.registry.select_runs(every, context.preset))
        if (preset, cell) not in self._cells:
            context = self._contexts[preset]
            self._read(preset, [context.registry.parse(f"{cell}/seed{k}") for k in context.preset.seeds])
        return self._cells[preset, cell]

    def _read(self, preset: str, runs: Sequence[Run]) -> None:
        context = self._contexts[preset]
        states = list(context.states(runs))
        for error in integrity_errors(states):
            raise error
        summaries = summarise(states, context.registry, context.preset)
        judged = judge_summaries(context, summaries)
        for summary in summaries:
            verdict = judged.of(summary.cell) if judged else None
            self._cells[preset, summary.cell.id] = (summary, quotable(summary, verdict))
