"""Full sets of records in which the truth is known, made through the public API.

    PYTHONPATH=.:tests python tests/analysis/planted_records.py RESULTS [GAIN]

writes one into a results folder: scaled BN GAIN points ahead of every other loss (default: as in the paper).
"""

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from analysis_records import EXPERIMENTS, done, make_record, write_record

from repro.analysis.claims import ClaimVerdict, claim_runs, judge_claims
from repro.analysis.rules import Rules, read_rules
from repro.paths import Project
from repro.record_state import RunState
from repro.registry import Registry, Run, Selection


def column_of(run: Run) -> str:
    return f"{run.cell.dataset}/{run.cell.network}"


def is_scaled(run: Run) -> bool:
    return run.cell.row.startswith("scaled")


class PlantedRecords:
    """Every run of the paper's tables and of the claims, each with a record of the preset paper.

    With a `gain` scaled BN is so many points ahead of every other loss, all of which are as accurate as the
    paper's cross-entropy; without one each loss is near the paper's mean, and the controls at cross-entropy's.
    """

    def __init__(self, gain: float | None = None) -> None:
        self.registry = Registry.load(EXPERIMENTS)
        self.rules = read_rules(EXPERIMENTS / "claims.toml")
        self.paper = self.registry.preset("paper")
        self.columns = self.rules.tests.verdict_columns
        runs = [
            *self.registry.select_runs(Selection(), self.paper),
            *claim_runs(self.rules, self.registry, self.paper),
        ]
        self.states = [self.state(run, self._accuracy(run, gain)) for run in dict.fromkeys(runs)]

    def _accuracy(self, run: Run, gain: float | None) -> float | None:
        if gain is None and run.cell.row != "logit-scale-s2" and not run.cell.axes:
            return None
        noise = np.random.default_rng([run.seed, *run.cell.id.encode()])
        level = self.reported(column_of(run))["cross-entropy"]
        return level + (gain or 0.0) * is_scaled(run) + float(noise.normal(0, 0.1 if gain is None else 0.3))

    def reported(self, column: str) -> dict[str, float]:
        """The paper's means of a column by row."""
        dataset, network = column.split("/")
        table = next(t for t in self.registry.tables if t.of_paper and t.dataset == dataset)
        return {row.name: row.reported[network].mean for row in table.rows}

    def state(self, run: Run, accuracy: float | None = None, **values) -> RunState:
        return done(make_record(self.registry, self.paper, run, accuracy, **values), self.registry)

    def changed(
        self,
        choose: Callable[[Run], bool],
        states: Sequence[RunState] | None = None,
        shift: float = 0.0,
        **values,
    ) -> list[RunState]:
        """The states with new records where `choose(run)`: `shift` points off, or other `values`."""
        return [
            self.state(state.run, state.record.result.accuracy + shift, **values)
            if choose(state.run)
            else state
            for state in states or self.states
        ]

    def at(self, columns: Collection[str]) -> Rules:
        """The rules with the verdict at these columns."""
        named = {"columns": {"some": tuple(columns)}, "verdict_at": "some"}
        return self.rules.model_copy(update={"tests": self.rules.tests.model_copy(update=named)})

    def judge(
        self, states: Sequence[RunState] | None = None, rules: Rules | None = None
    ) -> dict[str, ClaimVerdict]:
        """The verdicts by claim."""
        given = self.states if states is None else states
        verdicts = judge_claims(given, self.registry, self.paper, rules or self.rules)
        return {verdict.claim.name: verdict for verdict in verdicts}

    def write(self, results: Path) -> None:
        """The records as files of a results folder."""
        project = Project.find(EXPERIMENTS.parent, results=results)
        for state in self.states:
            write_record(project, state.record)


if __name__ == "__main__":
    PlantedRecords(float(sys.argv[2]) if len(sys.argv) > 2 else None).write(Path(sys.argv[1]))
