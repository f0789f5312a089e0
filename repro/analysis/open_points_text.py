"""The table of open points, as markdown, CSV or JSON; its words also stand in the report."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from repro.analysis.cell_verdict import signed
from repro.analysis.layout import loss_label, network_label, preset_sentence, qualified_title, short_blank
from repro.analysis.open_points import LEVEL, Direction, Move
from repro.analysis.tables import escape
from repro.config import Preset
from repro.registry import Cell, Registry

TITLE = "What the paper leaves open, top-1 accuracy in percent"
HEADERS = (
    "open point",
    "cell",
    "as resolved",
    "paper (Δ)",
    "alternative",
    "with it",
    "moves by",
    "the paper",
)
HOW = (
    "As resolved, with it: mean ± sample standard deviation (ddof = 1) over n seeds. Moves by: with it − as "
    f"resolved, in points, with its {100 * LEVEL:g} % interval (spread pooled over these cells; paired for "
    "the best epoch). The paper: whether that is towards the paper's number, away from it, or past it; "
    "unclear where the interval includes 0, open where there is nothing to compare yet. Shown, not tested."
)


@dataclass(frozen=True)
class MoveText:
    """A move in words; `mark` is its direction alone."""

    point: str
    cell: str
    baseline: str
    paper: str
    alternative: str
    varied: str
    difference: str
    verdict: str
    mark: Direction

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands under HEADERS."""
        return (
            self.point,
            self.cell,
            self.baseline,
            self.paper,
            self.alternative,
            self.varied,
            self.difference,
            self.verdict,
        )


def move_text(move: Move, registry: Registry) -> MoveText:
    """The words of one move."""
    variation, baseline = move.variation, move.baseline
    varied = _mean(move.mean, move.std, move.n, move.varied.expected) or f"—: {short_blank(move.varied)}"
    reported = baseline.reported
    paper = f"{reported.mean:.2f}" if reported else "—"
    if baseline.difference is not None:
        paper += f" ({signed(baseline.difference)})"
    difference = "" if move.difference is None else signed(move.difference)
    if move.interval:
        difference += f" ({signed(move.interval[0])} to {signed(move.interval[1])})"
    verdict = str(move.direction)
    if move.reason:
        verdict += f": {move.reason}"
    elif move.nearer is not None and move.direction is not Direction.PAST:
        verdict += f", by {abs(move.nearer):.2f}"
    return MoveText(
        point=variation.ablation.name,
        cell=_place(variation.baseline, registry),
        baseline=_mean(baseline.mean, baseline.std, baseline.n, baseline.expected)
        or f"—: {short_blank(baseline)}",
        paper=paper,
        alternative=variation.alternative.label,
        varied=varied,
        difference=difference,
        verdict=verdict,
        mark=move.direction,
    )


@dataclass(frozen=True)
class OpenCell:
    """A point in one of its cells, with the alternatives that have run."""

    point: str
    question: str
    cell: str
    baseline: str
    paper: str
    moves: tuple[MoveText, ...]


def open_cells(moves: Sequence[Move], registry: Registry) -> tuple[OpenCell, ...]:
    """The moves that there are, by point and cell, in order."""
    groups: dict[tuple[str, Cell], list[Move]] = {}
    for move in moves:
        if move.difference is not None:
            groups.setdefault((move.variation.ablation.name, move.variation.baseline), []).append(move)
    cells = []
    for (name, _), group in groups.items():
        texts = tuple(move_text(move, registry) for move in group)
        first = texts[0]
        question = group[0].variation.ablation.question
        cells.append(OpenCell(name, question, first.cell, first.baseline, first.paper, texts))
    return tuple(cells)


def open_points_markdown(moves: Sequence[Move], registry: Registry, preset: Preset) -> str:
    """GitHub's markdown, ending in a line feed."""
    rows = [tuple(map(escape, move_text(move, registry).columns)) for move in moves]
    questions = {move.variation.ablation.name: move.variation.ablation.question for move in moves}
    parts = [
        f"### {escape(open_points_title(moves, preset))}",
        *([escape(preset_sentence(preset))] if preset.heading else []),
        escape(HOW),
        tabulate(rows, HEADERS, tablefmt="pipe", disable_numparse=True),
        "\n".join(f"- {name}: {escape(question)}" for name, question in questions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def open_points_title(moves: Sequence[Move], preset: Preset) -> str:
    """The table's title behind the preset's."""
    generated = any(run.generated for move in moves for run in move.baseline.runs)
    return qualified_title(TITLE, preset, generated)


def open_points_csv(moves: Sequence[Move], preset: Preset) -> str:
    """A line a move, numbers at full precision."""
    rows = [_values(move, preset) for move in moves]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def open_points_json(moves: Sequence[Move], preset: Preset) -> str:
    """Every move with its question, numbers at full precision."""
    content = [{**_values(move, preset), "question": move.variation.ablation.question} for move in moves]
    return json.dumps({"preset": preset.name, "level": LEVEL, "moves": content}, indent=1) + "\n"


def _values(move: Move, preset: Preset) -> dict[str, str | int | float | None]:
    variation, baseline = move.variation, move.baseline
    low, high = move.interval or (None, None)
    return {
        "preset": preset.name,
        "point": variation.ablation.name,
        "cell": variation.baseline.id,
        "alternative": variation.alternative.label,
        "alternative_cell": variation.cell.id,
        "result": variation.alternative.result,
        "n": baseline.n,
        "mean": baseline.mean,
        "std": baseline.std,
        "reported_mean": baseline.reported.mean if baseline.reported else None,
        "alternative_n": move.n,
        "alternative_mean": move.mean,
        "alternative_std": move.std,
        "difference": move.difference,
        "low": low,
        "high": high,
        "nearer": move.nearer,
        "direction": str(move.direction),
        "reason": move.reason,
    }


def _place(cell: Cell, registry: Registry) -> str:
    table = registry.table(cell.table)
    labels = (network_label(table, cell.network), loss_label(table, cell.row, cell.axes))
    return ", ".join((table.title, *labels))


def _mean(mean: float | None, std: float | None, n: int, expected: int) -> str:
    if mean is None:
        return ""
    value = f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
    return f"{value} (n = {n})" if n == expected else f"{value} (n = {n} of {expected})"
