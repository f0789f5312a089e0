"""What most commands start from: the project's folders, the registry, a preset, what its runs have so far."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.cli.options import say
from repro.config import Preset
from repro.data import fingerprints
from repro.paths import Project
from repro.record_state import RunState, assess, recorded_runs
from repro.registry import Registry, Run, Selection

if TYPE_CHECKING:
    from repro.analysis.rules import Rules
    from repro.scheduling.estimate import DataSize, Survey

_SHOWN = 5  # files that are pointed out by name


@dataclass(frozen=True)
class Context:
    """One project, its registry, and the preset asked for; and a sentence for each damaged record met."""

    project: Project
    registry: Registry
    preset: Preset
    damaged: dict[str, None] = field(default_factory=dict, compare=False)

    @classmethod
    def open(cls, preset: str, results: Path | None = None, data: Path | None = None) -> "Context":
        """Finds the project, reads its registry and picks the preset; see `Project.find`."""
        project = Project.find(results=results, data=data)
        if not project.has_experiments:
            here = f"no experiments/presets.toml in {project.root} or any folder above it"
            used = f"using the paper's in {project.experiments}; results go to {project.results}"
            say(f"repro: {here}: {used}")
        # A table of the user's own that is being edited must not end a sweep over another.
        registry = Registry.load(project.experiments, strict=False)
        for reason in registry.broken.values():
            say(f"repro: a table is left out: {reason}")
        return cls(project, registry, registry.preset(preset))

    @cached_property
    def rules(self) -> "Rules | None":
        """The rules of verdicts; None where there are none, as in a project with tables of its own alone."""
        from repro.analysis.rules import RULES_FILE, read_rules

        path = self.project.experiments / RULES_FILE
        return read_rules(path) if path.exists() else None

    def runs(self, **selection: Any) -> tuple[Run, ...]:
        """The preset's runs that `Selection(**selection)` names; raises SelectionError."""
        return self.registry.select_runs(Selection(**selection), self.preset)

    def fingerprints(self, runs: Iterable[Run]) -> dict[str, str | None]:
        """The fingerprint of each run's data set; None where the data are missing."""
        return fingerprints(runs, self.registry, self.preset, self.project.data)

    def states(self, runs: Iterable[Run], whole: bool = True) -> Iterator[RunState]:
        """The state of each run, in order, one at a time; not `whole`, records lack curves and probes.

        Then many of them fit into memory.
        """
        runs = list(runs)
        known = self.fingerprints(runs)
        for state in assess(runs, self.registry, self.preset, self.project, known, whole):
            if state.is_damaged:
                self.damaged[state.reason] = None
            yield state

    def point_out_misnamed(self) -> None:
        """Names on stderr each file among the records that has no run's name, as `Seed0.json`."""
        if self.registry.broken:
            return  # names of a table that is left out are not known
        _, found = recorded_runs(self.project, self.preset, self.registry)
        for line in found[:_SHOWN]:
            say(f"repro: {line}")
        if len(found) > _SHOWN:
            say(f"repro: {len(found) - _SHOWN} more files count nowhere")

    def survey(self, runs: Sequence[Run]) -> "Survey":
        """What a sweep over `runs` starts from; reads each record once."""
        from repro.scheduling.estimate import Survey

        sizes = self.data_sizes(run.cell.dataset for run in runs)
        return Survey.of(self.states(runs, whole=False), sizes)

    def begun(self, runs: Iterable[Run]) -> dict[str, float]:
        """The share, 0 to 1, that a checkpoint holds of each run that has one, by run id."""
        from repro.scheduling.sweep_status import read_traces

        traces = read_traces(runs, self.project, self.preset.name)
        return {run: trace.begun for run, trace in traces.items() if trace.begun}

    def data_sizes(self, names: Iterable[str]) -> "dict[str, DataSize]":
        """The size of each data set: as prepared here, else as registered, else as the paper counts it."""
        from repro.data import dataset_info
        from repro.errors import DataMissingError
        from repro.manifest import read_manifest
        from repro.scheduling.estimate import DataSize

        sizes = {}
        for name in dict.fromkeys(names):
            try:
                there = read_manifest(self.project.data, name)
                sizes[name] = DataSize(there.train.count, there.test.count, there.classes, there.image_size)
            except DataMissingError:
                known = dataset_info(name)
                counts = known.paper_counts
                if known.train_count and known.test_count and known.classes:
                    counts = known.train_count, known.test_count, known.classes
                if counts:
                    sizes[name] = DataSize(*counts, known.image_size)
        return sizes


def data_commands(name: str, fetch: bool = True) -> str:
    """The commands that prepare a data set; DIR and FOLDER stand for what only the user has."""
    from repro.data import DATA_SETS

    if name not in DATA_SETS:
        return f"`repro data prepare {name} --from FOLDER`"
    prepare = f"`repro data prepare {name}`"
    lists = " --lists DIR" if "--lists" in DATA_SETS[name].fetch_needs else ""
    return f"`repro data fetch {name}{lists}`, then {prepare}" if fetch else prepare
