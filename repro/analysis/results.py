"""From the states of runs to one result per cell: what is averaged, what is not, and why.

    RunState … → RunResult, one per run → CellResult, one per cell → tables, verdicts, figures

Only a record of today's recipe that ended with an accuracy is averaged. A diverged run is a result: it is
named and left out of the mean. A missing, corrupt, misplaced or other recipe's record is a blank with its
reason.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, NamedTuple

from repro.analysis.text import mean_text, n_text, seeds_text
from repro.config import Preset, format_axis
from repro.experiments import Reported
from repro.paper import Metric
from repro.record_state import RecordState, RunState
from repro.registry import Cell, Registry

if TYPE_CHECKING:
    from repro.analysis.verdicts import CellVerdict


class RunResult(NamedTuple):
    """A run as its cell counts it.

    `short` is empty for a run that is averaged; else it stands in the table, and `reason` in the list below
    it. What a record says is None where there is none that counts. Accuracies in percent, top-1; `best_epoch`
    counts from 0; `data` is the hash of the data trained on, `classes`, `train_images` and `test_images`
    count them after the preset's subset was taken.
    """

    id: str
    seed: int
    accuracy: float | None = None
    best_accuracy: float | None = None
    best_epoch: int | None = None
    record_state: RecordState = RecordState.MISSING
    data_unchecked: bool = False
    data: str = ""
    classes: int = 0
    train_images: int = 0
    test_images: int = 0
    partial: str | None = None
    device: str = ""
    precision: str = ""
    short: str = ""
    reason: str = ""
    diverged: bool = False

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Classes, training images and test images."""
        return self.classes, self.train_images, self.test_images


@dataclass(frozen=True)
class CellResult:
    """One number of a table, with everything that a reader may ask about it.

    `mean` and `std` (ddof = 1, None at n = 1) are the paper's metric over the `n` averaged ones of `runs`, in
    percent; `runs` has every seed that the preset plans, in order; `extra` has those of other seeds that were
    trained, `beside` in words: they are in no mean and no verdict. `notes` qualify the runs averaged. Only
    results with the paper's recipe are `compared`: those of another preset have no difference.
    """

    cell: Cell
    runs: tuple[RunResult, ...]
    n: int
    mean: float | None
    std: float | None
    notes: tuple[str, ...] = ()
    verdict: "CellVerdict | None" = None
    extra: tuple[RunResult, ...] = ()
    beside: str = ""
    compared: bool = True

    @property
    def averaged(self) -> tuple[RunResult, ...]:
        """The runs behind the mean."""
        return tuple(run for run in self.runs if not run.short)

    @property
    def blanks(self) -> tuple[RunResult, ...]:
        """The runs that are not averaged, each with its reason."""
        return tuple(run for run in self.runs if run.short)

    @property
    def expected(self) -> int:
        """How many seeds the cell should have."""
        return len(self.runs)

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(run.diverged for run in self.runs)

    @property
    def missing(self) -> int:
        """How many runs are still to come: neither averaged nor diverged."""
        return len(self.blanks) - self.diverged

    @property
    def reported(self) -> Reported | None:
        """What the paper prints."""
        return self.cell.reported

    @property
    def difference(self) -> float | None:
        """Mean − reported mean, in points; None where there is none, or nothing to compare."""
        if self.mean is None or self.reported is None or not self.compared:
            return None
        return self.mean - self.reported.mean

    @property
    def value(self) -> str:
        """`73.25 ± 0.25`; empty in a blank."""
        return mean_text(self.mean, self.std)

    @property
    def count(self) -> str:
        """`n = 2 of 3`; in a blank why it is one: `not run yet`, `3 of 3 diverged`."""
        if self.mean is not None:
            return n_text(self.n, self.expected)
        reasons = dict.fromkeys(run.short for run in self.blanks if not run.diverged)
        return ", ".join(filter(None, (self.divergence, *reasons)))

    @property
    def divergence(self) -> str:
        """`1 of 3 diverged`; empty where none did."""
        return f"{self.diverged} of {self.expected} diverged" if self.diverged else ""


def summarise(states: Iterable[RunState], registry: Registry, preset: Preset) -> tuple[CellResult, ...]:
    """One result for each cell that `states` touch, in the registry's order.

    A cell should have the preset's seeds; one that `states` lack is "not selected", and others among `states`
    are the cell's `extra`. The order is table, column, row; a network or an override beyond the paper's comes
    after the paper's own.
    """
    metric = registry.paper.metric
    cells: dict[Cell, dict[int, RunResult]] = {}
    for state in states:
        # Curve and probes are let go here: what stays of a run is a few hundred bytes.
        cells.setdefault(state.run.cell, {})[state.run.seed] = _run_result(state)
    results = []
    for cell in sorted(cells, key=lambda cell: place_in(registry, cell)):
        found = cells[cell]
        runs = [
            found.get(seed)
            or RunResult(f"{cell.id}/seed{seed}", seed, short="not selected", reason="not selected")
            for seed in sorted(preset.seeds)
        ]
        # With the data at hand the wrong ones would have been found out; without, none can be preferred.
        if len({run.data for run in runs if not run.short}) > 1:
            reason = (
                "trained on data {}, the cell's other runs on others; "
                "prepare the data set here, and the runs of other data are told apart"
            )
            runs = [
                run if run.short else run._replace(short="data differ", reason=reason.format(run.data[:8]))
                for run in runs
            ]
        counted = [run for run in runs if not run.short]
        values = [metric.of(run.accuracy) for run in counted if run.accuracy is not None]
        extra = tuple(found[seed] for seed in sorted(found.keys() - set(preset.seeds)))
        results.append(
            CellResult(
                cell,
                runs=tuple(runs),
                n=len(values),
                mean=mean(values) if values else None,
                std=stdev(values) if len(values) > 1 else None,
                notes=_notes(counted),
                extra=extra,
                beside=_beside(extra, metric),
                compared=preset.name == "paper",
            )
        )
    return tuple(results)


def place_in(registry: Registry, cell: Cell) -> tuple[int, int, int, tuple[str, ...]]:
    """Sorts cells by table, column and row; a network or an override beyond the paper's comes last."""
    table = registry.table(cell.table)
    networks = [*table.networks, *(name for name in registry.networks if name not in table.networks)]
    return (
        registry.tables.index(table),
        networks.index(cell.network),
        table.rows.index(table.row(cell.row)),
        tuple(f"{name}={format_axis(value)}" for name, value in cell.axes),
    )


def _run_result(state: RunState) -> RunResult:
    """The run as it counts, or why it does not."""
    blank = RunResult(state.run.id, state.run.seed, record_state=state.record_state, reason=state.reason)
    if state.record_state is RecordState.MISSING:
        # `no data: FaceScrub cannot be …` is `no data` in the cell and whole in the note below.
        return blank._replace(short=state.reason.partition(":")[0])
    if state.is_damaged:
        # The file's path is in the error that ends the command; here the cell and the seed say it.
        what = state.reason.rpartition(f"{state.run.id}.json: ")[2]
        return blank._replace(short=f"{state.record_state} record", reason=f"{state.record_state}: {what}")
    if not state.counts or state.record is None:
        return blank._replace(short="other recipe")
    result, data = state.record.result, state.record.data
    if result.accuracy is None:
        return blank._replace(short="diverged", reason=result.divergence, diverged=True)
    made = state.record.provenance
    return blank._replace(
        **{name: getattr(result, name) for name in ("accuracy", "best_accuracy", "best_epoch")},
        **{name: getattr(data, name) for name in ("classes", "train_images", "test_images", "partial")},
        **{name: getattr(made, name) for name in ("device", "precision")},
        data=state.record.signature.data,
        data_unchecked=state.data_unchecked,
        reason="",
    )


def _beside(extra: Sequence[RunResult], metric: Metric) -> str:
    """`trained beside the planned seeds, not averaged: 73.10 (seed 5)`; empty where there is none."""
    texts = [run.short if run.accuracy is None else mean_text(metric.of(run.accuracy)) for run in extra]
    seeds = ", ".join(f"{text} (seed {run.seed})" for text, run in zip(texts, extra, strict=True))
    return seeds and f"trained beside the planned seeds, not averaged: {seeds}"


def _notes(runs: Sequence[RunResult]) -> tuple[str, ...]:
    older = RecordState.OLDER_CODE
    texts: dict[str, list[int]] = {}
    for run in runs:
        for text, holds in (
            ("older code (the training code has changed since)", run.record_state is older),
            ("data unchecked (not prepared here)", run.data_unchecked),
            (f"partial data ({run.partial})", run.partial),
        ):
            if holds:
                texts.setdefault(text, []).append(run.seed)
    notes = [text if len(s) == len(runs) else f"{text}: {seeds_text(s)}" for text, s in texts.items()]
    for what in ("precision", "device"):
        groups: dict[str, list[int]] = {}
        for run in runs:
            groups.setdefault(getattr(run, what), []).append(run.seed)
        if len(groups) > 1:
            parts = "; ".join(f"{name} ({seeds_text(seeds)})" for name, seeds in groups.items())
            notes.append(f"mixed {what}s: {parts}")
    return tuple(notes)
