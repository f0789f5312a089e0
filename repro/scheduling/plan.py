"""What a sweep would train, and how long it would take: counts by column, time as a range.

Needs neither torch nor pandas, so that `repro plan` answers at once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repro.experiments import TableName
from repro.paths import Project
from repro.recipes import Preset
from repro.registry import Registry
from repro.scheduling.estimate import DataSize, Duration, Estimator
from repro.scheduling.slots import Slot
from repro.scheduling.speeds import Measured
from repro.scheduling.train_command import StalePolicy
from repro.standings import RunState, Standing


@dataclass(frozen=True)
class ColumnPlan:
    """One network on one data set. `to_do` counts every run that would be trained: those without a record,
    `stale` ones of another recipe, `damaged` ones, and under "rerun" those of `older_code` too.

    `duration` is of the runs to do, alone on all slots; None where no speed is known. `source` says where
    the speed is from, or what is missing.
    """

    table: TableName
    dataset: str
    network: str
    label: str
    cells: int
    runs: int
    done: int
    older_code: int
    stale: int
    damaged: int
    to_do: int
    duration: Duration | None
    source: str


@dataclass(frozen=True)
class Plan:
    """A sweep before it starts. `devices` maps a device's name to its number of slots.

    `reasons` counts why records do not count; `duration` covers the columns whose speed is known.
    """

    preset: str
    heading: str
    results: str
    supplied: bool
    devices: Mapping[str, int]
    columns: tuple[ColumnPlan, ...]
    reasons: Mapping[str, int]
    data_unchecked: int
    duration: Duration | None

    def total(self, count: str) -> int:
        """The sum of one of the columns' counts, as `runs` or `to_do`."""
        return sum(getattr(column, count) for column in self.columns)

    def to_text(self) -> str:
        """The plan for a person, see `repro.scheduling.plan_text`."""
        from repro.scheduling.plan_text import render_plan

        return render_plan(self)

    def to_json(self) -> str:
        """Indented JSON: the totals first, then every column; durations are {low, high} in seconds."""
        content: dict[str, Any] = {"preset": self.preset, "results": self.results, "supplied": self.supplied}
        content |= {count: self.total(count) for count in _COUNTS}
        content |= {
            "duration": asdict(self.duration) if self.duration else None,
            "devices": dict(self.devices),
            "reasons": dict(self.reasons),
            "data_unchecked": self.data_unchecked,
            "columns": [asdict(column) for column in self.columns],
        }
        return json.dumps(content, indent=1, ensure_ascii=False)


_COUNTS = ("cells", "runs", "done", "older_code", "stale", "damaged", "to_do")


def make_plan(
    states: Sequence[RunState],
    registry: Registry,
    preset: Preset,
    project: Project,
    slots: Sequence[Slot],
    sizes: Mapping[str, DataSize],
    stale: StalePolicy = "keep",
) -> Plan:
    """The plan for `states` on `slots`; `sizes` has every data set's size, before the preset's subset."""
    columns: dict[tuple[TableName, str, str], list[RunState]] = {}
    for state in states:
        cell = state.run.cell
        columns.setdefault((cell.table, cell.dataset, cell.network), []).append(state)
    records = [state.record for state in states if state.record is not None]
    measured = Measured(records, {name: size.image_size for name, size in sizes.items()})
    estimator = Estimator(registry, preset, slots, sizes, measured, _recorded_sizes(states))
    plans = [_column(key, column, registry, estimator, stale) for key, column in columns.items()]
    reasons: dict[str, int] = {}
    for state in states:
        if state.reason and state.standing not in (Standing.DONE, Standing.MISSING):
            reasons[state.reason] = reasons.get(state.reason, 0) + 1
    known = [plan.duration for plan in plans if plan.duration and plan.to_do]
    devices: dict[str, int] = {}
    for slot in slots:
        devices[slot.name] = devices.get(slot.name, 0) + 1
    return Plan(
        preset=preset.name,
        heading=preset.heading or preset.description,
        results=str(project.preset_results(preset.name)),
        supplied=project.supplied_results,
        devices=devices,
        columns=tuple(plans),
        reasons=reasons,
        data_unchecked=sum(state.data_unchecked for state in states),
        duration=Duration(sum(d.low for d in known), sum(d.high for d in known)) if known else None,
    )


def _column(
    key: tuple[TableName, str, str],
    states: Sequence[RunState],
    registry: Registry,
    estimator: Estimator,
    stale: StalePolicy,
) -> ColumnPlan:
    table, dataset, network = key
    to_do = [
        state.run
        for state in states
        if not state.counts or (stale == "rerun" and state.standing is Standing.OLDER_CODE)
    ]
    duration, source = estimator.estimate(to_do)

    def count(*standings: Standing) -> int:
        return sum(state.standing in standings for state in states)

    return ColumnPlan(
        table=table,
        dataset=dataset,
        network=network,
        label=registry.table(table).networks.get(network, network),
        cells=len({state.run.cell.id for state in states}),
        runs=len(states),
        done=count(Standing.DONE),
        older_code=count(Standing.OLDER_CODE),
        stale=count(Standing.OTHER_RECIPE),
        damaged=count(Standing.CORRUPT, Standing.FOREIGN),
        to_do=len(to_do),
        duration=duration,
        source=source,
    )


def _recorded_sizes(states: Iterable[RunState]) -> dict[str, tuple[int, int]]:
    """Training and test images of each data set, as records that count found them."""
    return {
        state.run.cell.dataset: (state.record.data.train_images, state.record.data.test_images)
        for state in states
        if state.counts and state.record is not None and not state.run.cell.axes
    }
