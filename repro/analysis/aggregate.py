"""From the states of runs to one summary a cell: what is averaged, what is not, and why.

    RunState …  → CellSummary …  → tables (`repro.analysis.tables`)

Only a record of today's recipe that ended with an accuracy is averaged. A diverged run is a result: it is
named and left out of the mean. A missing, corrupt, misplaced or other recipe's record is a blank with its
reason.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from repro.analysis.statistics import spread
from repro.config import Preset, format_axis
from repro.errors import IntegrityError, RecordCorruptError, RecordMisplacedError
from repro.experiments import Reported
from repro.record_state import RecordState, RunState
from repro.records import RunRecord
from repro.registry import Cell, Registry


@dataclass(frozen=True)
class CountedRun:
    """A run that is averaged. Accuracies in percent; `data` is the hash of the data it was trained on.

    `classes`, `train_images`, `test_images` count what was trained on, after the preset's subset was taken.
    """

    id: str
    seed: int
    accuracy: float
    best_accuracy: float | None
    best_epoch: int | None
    record_state: RecordState
    data_unchecked: bool
    data: str
    classes: int
    train_images: int
    test_images: int
    generated: bool
    partial: str | None
    device: str
    precision: str


@dataclass(frozen=True)
class Blank:
    """A run of a cell that is not averaged: `short` stands in the table, `reason` in the list below it."""

    id: str
    seed: int
    short: str
    reason: str
    diverged: bool = False


@dataclass(frozen=True)
class CellSummary:
    """One number of a table, with everything that a reader may ask about it.

    `mean` and `std` (ddof = 1) are over the `n` runs in `runs`, in percent points; `expected` is how many
    seeds the cell should have; `difference` is mean − reported mean, in points. `blanks` has an entry for
    each seed that is not in `runs`; `notes` qualify the runs that are.
    """

    cell: Cell
    n: int
    expected: int
    mean: float | None
    std: float | None
    reported: Reported | None
    difference: float | None
    runs: tuple[CountedRun, ...]
    blanks: tuple[Blank, ...]
    notes: tuple[str, ...]

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(blank.diverged for blank in self.blanks)


def summarise(states: Iterable[RunState], registry: Registry, preset: Preset) -> tuple[CellSummary, ...]:
    """One summary for each cell that `states` touch, in the registry's order.

    The order is table, column, row; a network or an axis beyond the paper's comes after the paper's own. A
    cell should have the preset's seeds and any others among `states`; one that `states` lack is "not
    selected".
    """
    by_cell: dict[Cell, dict[int, CountedRun | Blank]] = {}
    for state in states:
        # Curve and probes are let go here: what stays of a run is a few hundred bytes.
        by_cell.setdefault(state.run.cell, {})[state.run.seed] = _outcome(state)
    ordered = sorted(by_cell, key=lambda cell: _place(cell, registry))
    return tuple(_summary(cell, by_cell[cell], preset) for cell in ordered)


def integrity_errors(states: Iterable[RunState]) -> tuple[IntegrityError, ...]:
    """An error for each corrupt or misplaced record, each naming its file; raise the first to exit with 4."""
    kinds = {RecordState.CORRUPT: RecordCorruptError, RecordState.MISPLACED: RecordMisplacedError}
    return tuple(kinds[state.record_state](state.reason) for state in states if state.record_state in kinds)


def _place(cell: Cell, registry: Registry) -> tuple[int, int, int, tuple[str, ...]]:
    table = registry.table(cell.table)
    networks = [*table.networks, *(name for name in registry.networks if name not in table.networks)]
    return (
        registry.tables.index(table),
        networks.index(cell.network),
        table.rows.index(table.row(cell.row)),
        tuple(f"{axis}={format_axis(value)}" for axis, value in cell.axes),
    )


def _summary(cell: Cell, outcomes: dict[int, CountedRun | Blank], preset: Preset) -> CellSummary:
    runs: list[CountedRun] = []
    blanks: list[Blank] = []
    seeds = sorted({*preset.seeds, *outcomes})
    for seed in seeds:
        outcome = outcomes.get(seed) or Blank(f"{cell.id}/seed{seed}", seed, "not selected", "not selected")
        if isinstance(outcome, CountedRun):
            runs.append(outcome)
        else:
            blanks.append(outcome)
    if len({run.data for run in runs}) > 1:
        # With the data at hand the wrong ones would have been found out; without, none can be preferred.
        blanks = sorted([*blanks, *map(_of_unknown_data, runs)], key=lambda blank: blank.seed)
        runs = []
    measured = spread([run.accuracy for run in runs])
    difference = None
    if measured.mean is not None and cell.reported is not None:
        difference = measured.mean - cell.reported.mean
    return CellSummary(
        cell=cell,
        n=measured.n,
        expected=len(seeds),
        mean=measured.mean,
        std=measured.std,
        reported=cell.reported,
        difference=difference,
        runs=tuple(runs),
        blanks=tuple(blanks),
        notes=_notes(runs),
    )


def _outcome(state: RunState) -> CountedRun | Blank:
    """The run as it counts, or why it does not."""
    run_id, seed = state.run.id, state.run.seed
    if state.record_state is RecordState.MISSING:
        # `no data: FaceScrub cannot be …` is `no data` in the cell and whole in the note below.
        return Blank(run_id, seed, state.reason.partition(":")[0], state.reason)
    if state.record_state in (RecordState.CORRUPT, RecordState.MISPLACED):
        # The file's path is in the error that ends the command; here the cell and the seed say it.
        what = state.reason.rpartition(f"{run_id}.json: ")[2]
        return Blank(run_id, seed, f"{state.record_state} record", f"{state.record_state}: {what}")
    if not state.counts or state.record is None:
        return Blank(run_id, seed, "other recipe", state.reason)
    return _counted(run_id, seed, state, state.record)


def _counted(run_id: str, seed: int, state: RunState, record: RunRecord) -> CountedRun | Blank:
    result = record.result
    if result.accuracy is None:
        return Blank(run_id, seed, "diverged", result.divergence, diverged=True)
    return CountedRun(
        id=run_id,
        seed=seed,
        accuracy=result.accuracy,
        best_accuracy=result.best_accuracy,
        best_epoch=result.best_epoch,
        record_state=state.record_state,
        data_unchecked=state.data_unchecked,
        data=record.signature.data,
        classes=record.data.classes,
        train_images=record.data.train_images,
        test_images=record.data.test_images,
        generated=record.data.generated,
        partial=record.data.partial,
        device=record.provenance.device,
        precision=record.provenance.precision,
    )


def _of_unknown_data(run: CountedRun) -> Blank:
    reason = (
        f"trained on data {run.data[:8]}, the cell's other runs on others; "
        "prepare the data set here, and the runs of other data are told apart"
    )
    return Blank(run.id, run.seed, "data differ", reason)


def _notes(runs: Sequence[CountedRun]) -> tuple[str, ...]:
    notes: list[str] = []

    def note(text: str, concerned: Sequence[CountedRun]) -> None:
        if concerned:
            whole = len(concerned) == len(runs)
            notes.append(text if whole else f"{text}: {seeds_text([run.seed for run in concerned])}")

    note(
        "older code (what trains has changed since)",
        [run for run in runs if run.record_state is RecordState.OLDER_CODE],
    )
    note("data unchecked (not prepared here)", [run for run in runs if run.data_unchecked])
    note("generated data", [run for run in runs if run.generated])
    for partial in dict.fromkeys(run.partial for run in runs if run.partial):
        note(f"partial data ({partial})", [run for run in runs if run.partial == partial])
    for what in ("precision", "device"):
        groups: dict[str, list[int]] = {}
        for run in runs:
            groups.setdefault(getattr(run, what), []).append(run.seed)
        if len(groups) > 1:
            parts = "; ".join(f"{name} ({seeds_text(seeds)})" for name, seeds in groups.items())
            notes.append(f"mixed {what}s: {parts}")
    return tuple(notes)


def seeds_text(seeds: Sequence[int]) -> str:
    """`seed 1`, `seeds 0, 2` or, from four in a row on, `seeds 0–9, 12`."""
    # Numbers in a row differ from their places by one and the same.
    rows = groupby(enumerate(sorted(seeds)), lambda place: place[1] - place[0])
    texts: list[str] = []
    for _, places in rows:
        row = [seed for _, seed in places]
        texts += [f"{row[0]}–{row[-1]}"] if len(row) > 3 else map(str, row)
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(texts)}"
