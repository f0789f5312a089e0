"""The parts of the report's page as plain values: what the template shows, and nothing that it computes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from markupsafe import Markup

from repro.analysis.aggregate import CellSummary
from repro.analysis.layout import LaidOutCell, TableLayout, loss_label, network_label
from repro.analysis.report_numbers import busy, hours
from repro.analysis.report_verdicts import VerdictPart, cell_verdict
from repro.analysis.svg import Line, small_plot
from repro.analysis.verdicts import CellVerdict, Verdict
from repro.config import Preset, format_axis
from repro.record_state import RecordState, RunState
from repro.records import RunRecord
from repro.registry import Cell, Registry

_SEED_COLOURS = ("var(--seed-0)", "var(--seed-1)", "var(--seed-2)")


@dataclass(frozen=True)
class Drawn:
    """A figure: its name and its SVG."""

    name: str
    svg: Markup


@dataclass(frozen=True)
class ColumnPart:
    """The figures of one network on one data set."""

    title: str
    gradients: Markup
    curves: Markup


@dataclass(frozen=True)
class RunPart:
    """One run of a cell. Numbers are texts, empty where there is none; `command` repeats the run."""

    id: str
    seed: int
    result: str
    best: str
    state: str
    device: str
    speed: str
    hours: str
    started: str
    commit: str
    attempts: str
    command: str


@dataclass(frozen=True)
class CellPart:
    """One number of a table with all that stands behind it; `anchor` is its id in the page.

    `order` is what its column is sorted by: the measured mean, else None. `settings` are the resolved
    configuration as (key, value).
    """

    anchor: str
    title: str
    text: LaidOutCell
    order: float | None
    state: str
    runs: tuple[RunPart, ...]
    notes: tuple[str, ...]
    plot: Markup | None
    settings: tuple[tuple[str, str], ...]
    verdict: VerdictPart | None = None


@dataclass(frozen=True)
class RowPart:
    """A loss of a table; `beyond` where the paper does not have it."""

    label: str
    cells: tuple[CellPart, ...]
    beyond: bool


@dataclass(frozen=True)
class TablePart:
    """A table: its words (`repro.analysis.layout`), its rows, and the command that trains what is missing.

    `counted` of `expected` runs are of its own losses, `beyond` (counted, expected) of those that the paper
    does not have; `to_do` is how many of all are still to run. `foreign` are the reasons why cells cannot be
    held against the paper's.
    """

    layout: TableLayout
    columns: tuple[str, ...]
    rows: tuple[RowPart, ...]
    counted: int
    expected: int
    beyond: tuple[int, int]
    to_do: int
    foreign: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Headline:
    """The page in numbers, of the paper's tables where there are any; `beyond` are the runs of all others.

    `record_states` counts the runs by what their records are worth.
    """

    counted: int
    expected: int
    full_cells: int
    cells: int
    beyond: tuple[int, int]
    device_hours: str
    devices: tuple[str, ...]
    newest: str
    record_states: tuple[tuple[str, int], ...]


def table_part(
    layout: TableLayout,
    registry: Registry,
    preset: Preset,
    summaries: Sequence[CellSummary],
    states: Sequence[RunState],
    verdicts: Sequence[CellVerdict],
) -> TablePart:
    """One table of the page; `layout`, `summaries` and `verdicts` are of the same states."""
    own = [summary for summary in summaries if summary.cell.table in (layout.table, *layout.beyond)]
    by_run = {state.run.id: state for state in states}
    judged = {verdict.cell.id: cell_verdict(verdict) for verdict in verdicts}
    networks = list(dict.fromkeys(summary.cell.network for summary in own))
    by_place = {_place(summary.cell, registry): summary for summary in own}
    rows = tuple(
        RowPart(
            row.label,
            tuple(
                _cell(
                    by_place.get((column, row.label)),
                    (row.label, column),
                    text,
                    layout,
                    by_run,
                    judged,
                    preset,
                )
                for column, text in zip(layout.columns, row.cells, strict=True)
            ),
            row.beyond,
        )
        for row in layout.rows
    )
    in_paper = [summary for summary in own if summary.cell.table == layout.table]
    foreign = [
        verdict.reason
        for verdict in verdicts
        if verdict.cell.table == layout.table and verdict.word is Verdict.NOT_COMPARABLE
    ]
    names = "".join(f" --table {name}" for name in (layout.table, *layout.beyond))
    command = f"repro run --preset {preset.name}{names}"
    assert len(networks) == len(layout.columns)
    return TablePart(
        layout,
        layout.columns,
        rows,
        *_runs(in_paper),
        _runs([summary for summary in own if summary not in in_paper]),
        sum(not blank.diverged for summary in own for blank in summary.blanks),
        tuple(dict.fromkeys(foreign)),
        command,
    )


def _place(cell: Cell, registry: Registry) -> tuple[str, str]:
    """A cell's column and row in its table, by their labels."""
    table = registry.table(cell.table)
    return network_label(table, cell.network), loss_label(table, cell.row, cell.axes)


def _runs(summaries: Sequence[CellSummary]) -> tuple[int, int]:
    """How many runs are counted, of how many."""
    return sum(summary.n for summary in summaries), sum(summary.expected for summary in summaries)


def headline(summaries: Sequence[CellSummary], states: Sequence[RunState], registry: Registry) -> Headline:
    """What the first lines of the page say."""
    names = {table.name for table in registry.tables if table.of_paper} or {
        table.name for table in registry.tables
    }
    own = [summary for summary in summaries if summary.cell.table in names]
    records = [state.record for state in states if state.counts and state.record is not None]
    counts = Counter(
        "diverged" if _diverged(state) else _WORDS[state.record_state]
        for state in states
        if state.run.cell.table in names
    )
    counted, expected = _runs(own)
    return Headline(
        counted=counted,
        expected=expected,
        full_cells=sum(summary.n == summary.expected for summary in own),
        cells=len(own),
        beyond=_runs([summary for summary in summaries if summary.cell.table not in names]),
        device_hours=hours(sum((busy(record) for record in records), timedelta())),
        devices=tuple(dict.fromkeys(record.provenance.device for record in records)),
        newest=max((f"{record.provenance.ended:%Y-%m-%d}" for record in records), default=""),
        record_states=tuple((word, counts[word]) for word in _ORDER if counts[word]),
    )


_WORDS = {
    RecordState.DONE: "done",
    RecordState.OLDER_CODE: "done by older code",
    RecordState.OTHER_RECIPE: "other recipe",
    RecordState.CORRUPT: "damaged",
    RecordState.MISPLACED: "damaged",
    RecordState.MISSING: "missing",
}
_ORDER = ("done", "done by older code", "diverged", "other recipe", "damaged", "missing")


def _diverged(state: RunState) -> bool:
    return state.counts and state.record is not None and state.record.result.accuracy is None


def _cell(
    summary: CellSummary | None,
    place: tuple[str, str],
    text: LaidOutCell,
    layout: TableLayout,
    by_run: dict[str, RunState],
    judged: dict[str, VerdictPart],
    preset: Preset,
) -> CellPart:
    title = " · ".join((*place, layout.corner))
    if summary is None:
        return CellPart("", title, text, None, "not selected", (), (), None, ())
    ids = [*(run.id for run in summary.runs), *(blank.id for blank in summary.blanks)]
    cell_states = [by_run[run_id] for run_id in ids if run_id in by_run]
    cell_states.sort(key=lambda state: state.run.seed)
    records = [state.record for state in cell_states if state.counts and state.record is not None]
    return CellPart(
        anchor="cell-" + "".join(c if c.isalnum() or c in "-." else "_" for c in summary.cell.id),
        title=title,
        text=text,
        order=summary.mean,
        state="full" if summary.n == summary.expected else "part" if summary.n else "blank",
        runs=tuple(_run(state, preset) for state in cell_states),
        notes=summary.notes,
        plot=_curves(records, summary, title) if records else None,
        settings=_settings(records[0]) if records else (),
        verdict=judged.get(summary.cell.id),
    )


def _run(state: RunState, preset: Preset) -> RunPart:
    record = state.record if state.counts else None
    command = f"repro train {state.run.id} --preset {preset.name}"
    word = _WORDS[state.record_state]
    if record is None:
        reason = state.reason if state.record_state is not RecordState.MISSING else "not run yet"
        return RunPart(state.run.id, state.run.seed, "", "", reason, "", "", "", "", "", "", command)
    made, result = record.provenance, record.result
    if result.accuracy is None:
        outcome = result.divergence
    else:
        outcome = f"{result.accuracy:.2f} % ({result.correct:,} of {result.total:,})"
    best = ""
    if result.best_accuracy is not None and result.best_epoch is not None:
        best = f"{result.best_accuracy:.2f} % after epoch {result.best_epoch + 1}"
    shared = f", shared with {made.runs_on_device - 1} more" if made.runs_on_device > 1 else ""
    dirty = " with local changes" if made.git_dirty else ""
    attempts = "; ".join(
        f"{attempt.number}: {attempt.outcome}"
        + (f", from step {attempt.resumed_at_step:,}" if attempt.resumed_at_step else "")
        for attempt in made.attempts
    )
    return RunPart(
        id=state.run.id,
        seed=state.run.seed,
        result=outcome,
        best=best,
        state=word + (", data unchecked" if state.data_unchecked else ""),
        device=f"{made.device}, {made.precision}{shared}",
        speed=f"{made.images_per_second:,.0f} images/s",
        hours=hours(busy(record)),
        started=f"{made.started:%Y-%m-%d %H:%M} UTC",
        commit=(made.git_commit or "unknown")[:12] + dirty,
        attempts=attempts,
        command=command,
    )


def _curves(records: Sequence[RunRecord], summary: CellSummary, title: str) -> Markup:
    lines = [
        Line(
            f"seed {record.config.seed}",
            [(e.epoch + 1, e.test_accuracy) for e in record.curve if e.test_accuracy is not None],
            _SEED_COLOURS[index % len(_SEED_COLOURS)],
        )
        for index, record in enumerate(records)
    ]
    reference = ("paper", summary.reported.mean) if summary.reported else None
    epochs = max(record.config.recipe.epochs for record in records)
    return small_plot(lines, epochs, f"Test accuracy in percent by epoch, a line a seed: {title}", reference)


def _settings(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """The resolved configuration that the cell's runs share, as it stands in the record."""
    config = record.config
    recipe = config.recipe.model_dump()
    pairs: dict[str, object] = {"network": config.network, "loss": config.loss}
    pairs |= {f"loss: {key}": value for key, value in config.loss_parameters.items()}
    pairs |= {key: value for key, value in recipe.items() if value is not None}
    return tuple((key, _plain(value)) for key, value in pairs.items())


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return format_axis(value) if isinstance(value, bool | int | float | str) else str(value)
