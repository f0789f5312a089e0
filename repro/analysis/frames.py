"""Records, tables and verdicts as pandas DataFrames: what `repro.load()` returns."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from repro.analysis.claims import claim_runs, judge_claims
from repro.analysis.export import cells_frame
from repro.analysis.results import CellResult, summarise
from repro.analysis.rules import RULES_FILE, Rules, read_rules
from repro.analysis.tables import loss_label
from repro.analysis.verdicts import judge_cells, verdict_fields
from repro.data import fingerprints
from repro.paths import Project
from repro.record_state import RunState, assess
from repro.registry import Registry, Run, Selection

_RESULT = ("accuracy", "correct", "total", "test_loss", "best_accuracy")
_PROVENANCE = ("device", "precision", "images_per_second", "energy_joules", "started", "ended")


class Results:
    """The results of one preset; each frame is read once, when it is first asked for.

    Accuracies are in percent, differences in percentage points, epochs counted from 1, times UTC. A number
    that there is not is NaN or None.
    """

    def __init__(self, preset: str = "paper", results: Path | str | None = None) -> None:
        """Raises ProjectNotFoundError, RegistryError, or UsageError for an unknown preset."""
        self.project = Project.find(results=None if results is None else Path(results).expanduser())
        self.registry = Registry.load(self.project.experiments, strict=False)
        self.preset = self.registry.preset(preset)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run of the paper's tables, whether it has a record or not.

        `run` (its id), `dataset`, `network`, `loss`, `seed`, `table`, `label`; `state` (done, older code,
        other recipe, corrupt, misplaced, missing), `reason` (why it does not count), `counts`; `accuracy` of
        the last epoch, `correct` of `total` test images, `test_loss`, `best_accuracy`, `best_epoch`,
        `diverged_in` (an epoch); `device`, `precision`, `images_per_second`, `energy_joules`, `started`,
        `ended`.
        """
        return pd.DataFrame([self._run(state) for state in self._states])

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """One row per epoch of each run whose record counts.

        `run`, `dataset`, `network`, `loss`, `seed`, then the fields of `records.Epoch`.
        """
        rows = [
            {**_place(state.run), **epoch.model_dump(), "epoch": epoch.epoch + 1}
            for state in self._states
            if state.counts
            for epoch in (state.record.curve if state.record else ())
        ]
        return pd.DataFrame(rows)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell, as `repro aggregate --format csv` writes it; lists stay lists."""
        frame = cells_frame(self._cells, self.registry, self.preset)
        texts = frame.map(lambda value: isinstance(value, str | list)).any()
        numbers = {str(name): pd.to_numeric(frame[name]) for name in frame.columns[~texts]}
        return frame.assign(**numbers)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """One row per cell that the paper reports on: `id` and the fields of `repro claims --json`."""
        found = ((result, verdict_fields(result)) for result in self._cells)
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
        known = {state.run for state in self._states}
        needed = [run for run in claim_runs(self.rules, self.registry, self.preset) if run not in known]
        claims = judge_claims([*self._states, *self._assess(needed)], self.registry, self.preset, self.rules)
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
    def _states(self) -> list[RunState]:
        return list(self._assess(self.registry.select_runs(Selection(), self.preset)))

    def _assess(self, runs: Sequence[Run]) -> Iterator[RunState]:
        known = fingerprints(runs, self.registry, self.preset, self.project.data)
        return assess(runs, self.registry, self.preset, self.project, known)

    @cached_property
    def _cells(self) -> tuple[CellResult, ...]:
        results = summarise(self._states, self.registry, self.preset)
        return judge_cells(results, self.registry, self.preset, self.rules) if self.rules else results

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


def _place(run: Run) -> dict[str, Any]:
    cell = run.cell
    names = {"dataset": cell.dataset, "network": cell.network, "loss": cell.row}
    return {"run": run.id, **names, "seed": run.seed}


def _from_1(epoch: int | None) -> int | None:
    return None if epoch is None else epoch + 1
