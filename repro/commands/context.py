"""What most commands start from: the project's folders, the registry and a preset."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from repro.data.training_set import fingerprint
from repro.paths import Project
from repro.recipes import Preset, RunConfig
from repro.record_state import RunState, assess
from repro.registry import Registry, Run, Selection


@dataclass(frozen=True)
class Context:
    """One project, its registry, and the preset asked for."""

    project: Project
    registry: Registry
    preset: Preset

    @classmethod
    def open(cls, preset: str, results: Path | None = None, data: Path | None = None) -> "Context":
        """Finds the project, reads its registry and picks the preset; see `Project.find`."""
        project = Project.find(results=results, data=data)
        registry = Registry.load(project.experiments)
        return cls(project, registry, registry.preset(preset))

    def fingerprints(self, runs: Iterable[Run]) -> dict[str, str | None]:
        """The fingerprint of each run's data set; None where the data are not at hand."""
        first = {run.cell.dataset: run for run in reversed(list(runs))}
        return {
            dataset: fingerprint(self.registry.config(run, self.preset), self.project.data)
            for dataset, run in first.items()
        }

    def config_for(self, dataset: str, seed: int) -> RunConfig:
        """The configuration of any one run on `dataset`, for what all runs on it share: data and recipe.

        Raises SelectionError for a data set without a table.
        """
        run = self.registry.select_runs(Selection(datasets=(dataset,), seeds=(seed,)), self.preset)[0]
        return self.registry.config(run, self.preset)

    def states(self, runs: Iterable[Run], whole: bool = True) -> Iterator[RunState]:
        """Where each run stands, in order, one at a time; not `whole`, records lack curves and probes.

        Then many of them fit into memory.
        """
        runs = list(runs)
        yield from assess(runs, self.registry, self.preset, self.project, self.fingerprints(runs), whole)
