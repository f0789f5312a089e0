"""What a sweep would train, and how long it would take: counts by column, time as a range.

Needs neither torch nor pandas, so that `repro plan` answers at once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repro.paths import Project
from repro.recipes import Preset, Recipe
from repro.registry import Registry, Run
from repro.scheduling.durations import format_seconds
from repro.scheduling.slots import Slot
from repro.scheduling.speeds import Measured, Speed, Work, roofline_speed
from repro.scheduling.train_command import StalePolicy
from repro.standings import RunState, Standing

EVALUATION_COST = 1 / 3
"""What a test image costs of a training image: the forward pass of three equal parts."""


@dataclass(frozen=True)
class DataSize:
    """How many images a data set has, from its manifest or as registered; `image_size` in px."""

    train: int
    test: int
    classes: int
    image_size: int


@dataclass(frozen=True)
class Duration:
    """Seconds, from `low` to `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = format_seconds(self.low), format_seconds(self.high)
        return low if low == high else f"{low} – {high}"


@dataclass(frozen=True)
class ColumnPlan:
    """One network on one data set. `to_do` counts every run that would be trained: those without a record,
    `stale` ones of another recipe, `damaged` ones, and under "rerun" those of `older_code` too.

    `duration` is of the runs to do, alone on all slots; None where no speed is known. `source` says where
    the speed is from, or what is missing.
    """

    table: int
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
        """The sum over the columns of `cells`, `runs`, `done`, `older_code`, `stale`, `damaged` or `to_do`."""
        return sum(getattr(column, count) for column in self.columns)

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
    columns: dict[tuple[int, str, str], list[RunState]] = {}
    for state in states:
        cell = state.run.cell
        columns.setdefault((cell.table, cell.dataset, cell.network), []).append(state)
    records = [state.record for state in states if state.record is not None]
    measured = Measured(records, {name: size.image_size for name, size in sizes.items()})
    clock = _Clock(registry, preset, slots, sizes, measured, _recorded_sizes(states))
    plans = [_column(key, column, registry, clock, stale) for key, column in columns.items()]
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
    key: tuple[int, str, str],
    states: Sequence[RunState],
    registry: Registry,
    clock: "_Clock",
    stale: StalePolicy,
) -> ColumnPlan:
    number, dataset, network = key
    to_do = [
        state.run
        for state in states
        if not state.counts or (stale == "rerun" and state.standing is Standing.OLDER_CODE)
    ]
    duration, source = clock.estimate(to_do)

    def count(*standings: Standing) -> int:
        return sum(state.standing in standings for state in states)

    return ColumnPlan(
        table=number,
        dataset=dataset,
        network=network,
        label=registry.table(number).networks.get(network, network),
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


@dataclass(frozen=True)
class _Clock:
    """Turns runs into time on the slots at hand."""

    registry: Registry
    preset: Preset
    slots: Sequence[Slot]
    sizes: Mapping[str, DataSize]
    measured: Measured
    recorded: Mapping[str, tuple[int, int]]

    def estimate(self, runs: Sequence[Run]) -> tuple[Duration | None, str]:
        """How long `runs` take on all slots, and where that is from; they share data set and network."""
        low = high = 0.0
        longest: dict[str, float] = {"low": 0.0, "high": 0.0}
        sources: list[str] = []
        recipes: dict[str, Recipe] = {}
        for run in runs:
            # Seeds of a cell cost the same: its recipe is resolved once.
            if run.cell.id not in recipes:
                recipes[run.cell.id] = self.registry.config(run, self.preset).recipe
            recipe = recipes[run.cell.id]
            if run.cell.dataset not in self.sizes:
                return None, f"no estimate: the size of {run.cell.dataset} is not known"
            speeds = self._speeds(run, recipe)
            if isinstance(speeds, str):
                return None, speeds
            images = self._images(run, recipe)
            together_low, together_high = sum(s.low for s in speeds), sum(s.high for s in speeds)
            low += images / together_high
            high += images / together_low
            longest["low"] = max(longest["low"], images / max(s.high for s in speeds))
            longest["high"] = max(longest["high"], images / max(s.low for s in speeds))
            sources += [speed.source for speed in speeds]
        # However many slots there are, a run is trained on one.
        duration = Duration(max(low, longest["low"]), max(high, longest["high"]))
        return duration, "; ".join(dict.fromkeys(sources))

    def _speeds(self, run: Run, recipe: Recipe) -> list[Speed] | str:
        """The speed of each GPU or CPU slot; a sentence where one is not known."""
        work = Work.of(run.cell.network, self.sizes[run.cell.dataset].image_size, recipe)
        speeds = []
        for slot in self.slots:
            if slot.device == "cuda" and slot.share > 0:
                continue
            speed = self.measured.speed(slot, work) or roofline_speed(slot, work)
            if speed is None:
                return f"no estimate: no speed measured on {slot.name} yet"
            speeds.append(speed)
        return speeds

    def _images(self, run: Run, recipe: Recipe) -> float:
        """Training images of the whole run, with the test images at what they cost."""
        train, test = self._counts(run, recipe)
        evaluations = sum(
            (epoch + 1) % recipe.evaluate_every == 0 or epoch + 1 == recipe.epochs
            for epoch in range(recipe.epochs)
        )
        return train * recipe.epochs + test * evaluations * EVALUATION_COST

    def _counts(self, run: Run, recipe: Recipe) -> tuple[int, int]:
        if not run.cell.axes and run.cell.dataset in self.recorded:
            return self.recorded[run.cell.dataset]
        size = self.sizes[run.cell.dataset]
        classes = recipe.classes or size.classes
        train, test = recipe.images_per_class, recipe.test_images_per_class
        if recipe.data == "generated":
            return classes * (train or 0), classes * (test or 0)
        return (
            min(size.train, classes * train) if train else size.train,
            min(size.test, classes * test) if test else size.test,
        )


def _recorded_sizes(states: Iterable[RunState]) -> dict[str, tuple[int, int]]:
    """Training and test images of each data set, as records that count found them."""
    return {
        state.run.cell.dataset: (state.record.data.train_images, state.record.data.test_images)
        for state in states
        if state.counts and state.record is not None and not state.run.cell.axes
    }


def render_plan(plan: Plan) -> str:
    """The plan as plain text with a markdown table."""
    from tabulate import tabulate

    supplied = ", supplied with the project; --results DIR starts a set of one's own" if plan.supplied else ""
    lines = [f"preset {plan.preset}: {plan.heading}", f"results: {plan.results}{supplied}"]
    slots = (f"{count} on {name}" for name, count in plan.devices.items())
    lines += [f"slots: {', '.join(slots)}", ""]
    headers = ("table", "data set", "network", "cells", "runs", "done", "older code", "to do", "time to do")
    rows = [
        (
            column.table,
            column.dataset,
            column.network,
            column.cells,
            column.runs,
            column.done,
            column.older_code,
            column.to_do,
            _time(column),
        )
        for column in plan.columns
    ]
    lines += [tabulate(rows, headers=headers, tablefmt="github"), ""]
    total = plan.total
    lines.append(
        f"{total('cells')} cells, {total('runs')} runs: {total('done')} done, {total('older_code')} done by "
        f"older code, {total('to_do')} to do (of them {total('stale')} with a record of another recipe, "
        f"{total('damaged')} with a damaged one)"
    )
    if plan.data_unchecked:
        lines.append(f"data unchecked: {plan.data_unchecked} records, their data set is not prepared here")
    lines += [f"{count} × {reason}" for reason, count in plan.reasons.items()]
    if total("to_do"):
        lines += _time_lines(plan)
    return "\n".join(lines)


def _time(column: ColumnPlan) -> str:
    if not column.to_do:
        return ""
    return str(column.duration) if column.duration else "?"


def _time_lines(plan: Plan) -> list[str]:
    waiting = [column for column in plan.columns if column.to_do]
    lines = []
    if plan.duration:
        part = "" if all(column.duration for column in waiting) else ", columns marked ? not counted"
        lines.append(f"time to do: {plan.duration} on these slots{part}")
    sources = dict.fromkeys(column.source for column in waiting)
    return [*lines, *(f"  {source}" for source in sources)]
