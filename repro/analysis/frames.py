"""Records, tables and verdicts as pandas DataFrames: what `repro.load()` returns."""

from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any

import pandas as pd

from repro.analysis.claims import claim_runs, judge_claims
from repro.analysis.export import cells_frame
from repro.analysis.results import CellResult, summarise
from repro.analysis.rules import RULES_FILE, Rules, read_rules
from repro.analysis.tables import loss_label
from repro.analysis.verdicts import judge_cells, verdict_fields
from repro.config import Preset
from repro.data import fingerprints
from repro.experiments import TableName
from repro.paths import Project
from repro.record_state import RunState, assess, recorded_runs
from repro.records import Epoch
from repro.registry import Registry, Run, Selection

_RESULT = ("accuracy", "correct", "total", "test_loss", "best_accuracy")
_PROVENANCE = ("device", "precision", "images_per_second", "energy_joules", "started", "ended")
_PLACE = ("run", "dataset", "network", "loss", "seed")
# Whatever values there are, so that no frame's types depend on how far a sweep is.
_RUN_TYPES = {
    **dict.fromkeys(("correct", "total", "best_epoch", "diverged_in"), "Int64"),
    **dict.fromkeys(("accuracy", "test_loss", "best_accuracy"), "float64"),
    **dict.fromkeys(("images_per_second", "energy_joules"), "float64"),
    **dict.fromkeys(("started", "ended"), "datetime64[us, UTC]"),
}


class Results:
    """The results of one preset; each frame is read from the records when it is first asked for.

    Accuracies are in percent, differences in percentage points, epochs counted from 1, times UTC. A number
    that there is not is NaN, NA or None. Runs and cells are those `selected`, by default the paper's, and of
    the losses that extend their tables and have a record; `extended`, of every such loss.
    """

    def __init__(
        self,
        project: Project,
        registry: Registry,
        preset: Preset,
        selected: Selection = Selection(),  # noqa: B008 - it is frozen
        extended: bool = False,
    ) -> None:
        """Reads nothing yet."""
        self.project, self.registry, self.preset = project, registry, preset
        self._selected, self._extended = selected, extended
        self._damaged: dict[str, None] = {}

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per planned run, whether it has a record or not.

        `run` (its id), `dataset`, `network`, `loss`, `seed`, `table`, `label`; `state` (done, older code,
        other recipe, corrupt, misplaced, missing), `reason` (why it does not count), `counts`; `accuracy` of
        the last epoch, `correct` of `total` test images, `test_loss`, `best_accuracy`, `best_epoch`,
        `diverged_in` (an epoch); `device`, `precision`, `images_per_second`, `energy_joules`, `started`,
        `ended`.
        """
        rows = [self._run(state) for state in self._assess(self._planned, whole=False)]
        return pd.DataFrame(rows).astype(_RUN_TYPES)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """One row per epoch of each planned run whose record counts.

        `run`, `dataset`, `network`, `loss`, `seed`, then the fields of `records.Epoch`.
        """
        rows = [
            {**_place(state.run), **epoch.model_dump(), "epoch": epoch.epoch + 1}
            for state in self._assess(self._planned)
            if state.counts
            for epoch in (state.record.curve if state.record else ())
        ]
        return pd.DataFrame(rows, columns=[*_PLACE, *Epoch.model_fields])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell, as `repro aggregate --format csv` writes it; lists stay lists."""
        return cells_frame(self.cell_results, self.registry, self.preset)

    @cached_property
    def cell_results(self) -> tuple[CellResult, ...]:
        """The cells with their verdicts, in the tables' order.

        Verdicts are corrected over all the paper's cells, so its runs are read whichever are selected.
        """
        cells = {run.cell for run in self._planned}
        recorded, _ = recorded_runs(self.project, self.preset, self.registry)
        beside = [run for run in recorded if run.cell in cells and run.seed not in self.preset.seeds]
        every = dict.fromkeys([*self._planned, *beside, *self._papers])
        results = summarise(self._assess(every, whole=False), self.registry, self.preset)
        if self.rules:
            results = judge_cells(results, self.registry, self.preset, self.rules)
        return tuple(result for result in results if result.cell in cells)

    @property
    def damaged(self) -> list[str]:
        """A sentence for each record, of the selected ones read so far, that is not valid."""
        return list(self._damaged)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """One row per cell that the paper reports on: `id` and the fields of `repro claims --json`."""
        found = ((result, verdict_fields(result)) for result in self.cell_results)
        return pd.DataFrame([{"id": result.cell.id, **fields} for result, fields in found if fields])

    @cached_property
    def claims(self) -> pd.DataFrame:
        """One row per claim of `experiments/claims.toml`; empty without that file.

        `claim`, `title`, `word`; `effect` with `low` and `high`, the ends of its interval, in `unit`; `p` and
        `p_opposite`, of the claim's test and of its mirror, corrected within their families (None before the
        verdict is due); `complete` of the `needed` columns have every run; `sentence` says it all in words.
        """
        if self.rules is None:
            return pd.DataFrame()
        runs = dict.fromkeys([*self._papers, *claim_runs(self.rules, self.registry, self.preset)])
        claims = judge_claims(list(self._assess(runs)), self.registry, self.preset, self.rules)
        return pd.DataFrame(
            [
                {
                    "claim": verdict.claim.name,
                    "title": verdict.title,
                    "word": str(verdict.word),
                    "effect": verdict.effect.value,
                    "low": verdict.effect.low,
                    "high": verdict.effect.high,
                    "unit": verdict.effect.unit,
                    "p": verdict.support.p_adjusted,
                    "p_opposite": verdict.opposite.p_adjusted,
                    "complete": verdict.complete,
                    "needed": verdict.needed,
                    "sentence": verdict.sentence,
                }
                for verdict in claims
            ]
        )

    @cached_property
    def rules(self) -> Rules | None:
        """The rules of the verdicts; None in a project without any."""
        path = self.project.experiments / RULES_FILE
        return read_rules(path) if path.exists() else None

    @cached_property
    def _papers(self) -> tuple[Run, ...]:
        return self.registry.select_runs(Selection(), self.preset)

    @cached_property
    def _planned(self) -> tuple[Run, ...]:
        return selected_runs(self.project, self.registry, self.preset, self._selected, self._extended)

    def _assess(self, runs: Collection[Run], whole: bool = True) -> Iterator[RunState]:
        """The states one at a time; not `whole`, without curves and probes, so that many fit into memory."""
        known = fingerprints(runs, self.registry, self.preset, self.project.data)
        shown = {run.cell for run in self._planned}
        for state in assess(runs, self.registry, self.preset, self.project, known, whole):
            if state.is_damaged and state.run.cell in shown:
                self._damaged[state.reason] = None
            yield state

    def _run(self, state: RunState) -> dict[str, Any]:
        cell, record = state.run.cell, state.record if state.counts else None
        result, provenance = (record.result, record.provenance) if record else (None, None)
        return {
            **_place(state.run),
            "table": str(cell.table),
            "label": loss_label(self.registry.table(cell.table), cell.row, cell.axes),
            "state": str(state.record_state),
            "reason": state.reason,
            "counts": state.counts,
            **{name: getattr(result, name, None) for name in _RESULT},
            "best_epoch": _from_1(result.best_epoch if result else None),
            "diverged_in": _from_1(result.diverged_in if result else None),
            **{name: getattr(provenance, name, None) for name in _PROVENANCE},
        }


def selected_runs(
    project: Project, registry: Registry, preset: Preset, selected: Selection, extended: bool = False
) -> tuple[Run, ...]:
    """The runs selected, and in their columns those of losses that extend the table and have a record.

    `extended`: of every such loss. A selection by loss or override, and one of a study, is taken as it is.
    """
    runs = registry.select_runs(selected, preset)
    found = dict.fromkeys(runs)
    if not (selected.losses or selected.axes or selected.studies):
        columns = {(run.cell.dataset, run.cell.network, run.seed) for run in runs}
        for table in dict.fromkeys(run.cell.table for run in runs):
            for run in extension_runs(project, registry, preset, table, extended):
                if (run.cell.dataset, run.cell.network, run.seed) in columns:
                    found[run] = None
    return tuple(found)


def extension_runs(
    project: Project, registry: Registry, preset: Preset, table: TableName, every: bool = False
) -> list[Run]:
    """The runs of the losses that extend a table and have a record, of `every` such loss if asked."""
    names = tuple(extension.name for extension in registry.extensions(table))
    runs = registry.select_runs(Selection(tables=names), preset) if names else ()
    have = {run.cell.row for run in runs if project.run(preset.name, run.id).record.exists()}
    return [run for run in runs if every or run.cell.row in have]


def _place(run: Run) -> dict[str, Any]:
    cell = run.cell
    return dict(zip(_PLACE, (run.id, cell.dataset, cell.network, cell.row, run.seed), strict=True))


def _from_1(epoch: int | None) -> int | None:
    return None if epoch is None else epoch + 1
