"""What a sweep would train, how long it would take, and what a time budget buys of it.

A budget buys whole parts, the cheapest first. A part is what one column (a network on one data set) lacks at
one seed, all losses of it: only whole parts give numbers that can be compared. Needs neither torch nor
pandas, so that `repro plan` answers at once.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from repro.config import Preset
from repro.errors import counted
from repro.experiments import TableName
from repro.paths import Project
from repro.record_state import RecordState, RunState
from repro.registry import Registry, Run
from repro.scheduling.devices import Device
from repro.scheduling.durations import format_seconds
from repro.scheduling.estimate import (
    Duration,
    Estimate,
    Estimator,
    Footprint,
    StalePolicy,
    Survey,
    footprint,
    is_to_do,
)

START_UP = 10.0  # seconds that a worker may take to import, to load the data and to make its first step


@dataclass(frozen=True)
class Part:
    """The runs that a column lacks at one seed; `duration` is None where no speed is known."""

    dataset: str
    network: str
    seed: int
    runs: tuple[Run, ...]
    duration: Duration | None

    @property
    def cost(self) -> float:
        """Seconds that are surely enough; infinite where no speed is known."""
        return self.duration.high + START_UP if self.duration else float("inf")

    def __str__(self) -> str:
        runs = counted(len(self.runs), "run")
        return f"{self.dataset}/{self.network} seed {self.seed} ({runs}, {self.duration or 'no estimate'})"


@dataclass(frozen=True)
class Budget:
    """How `seconds` are spent: `fits` is trained whole, in order; what is left over begins `rest`.

    What is not done in time leaves checkpoints, from which the same command resumes.
    """

    seconds: float
    fits: tuple[Part, ...]
    rest: tuple[Part, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run to do, in the order in which it is trained."""
        return tuple(run for part in (*self.fits, *self.rest) for run in part.runs)

    def lines(self) -> list[str]:
        """What the budget buys, in sentences."""
        whole = format_seconds(self.seconds)
        if not self.runs:
            return [f"budget {whole}: nothing is left that can be trained here"]
        if not self.fits:
            return [
                f"budget {whole}: no column's seed fits completely; training starts with {self.rest[0]} "
                "and leaves checkpoints, from which the same command resumes"
            ]
        count = len(self.fits) + len(self.rest)
        took = Duration.sum(part.duration for part in self.fits if part.duration)
        lines = [f"budget {whole}: {len(self.fits)} of {count} column seeds fit, in {took}:"]
        lines += [f"  {part}" for part in self.fits]
        if self.rest:
            lines.append(f"  the remaining time starts {self.rest[0]} and leaves checkpoints")
        return lines


def spend(seconds: float, runs: Sequence[Run], estimate: Callable[[Sequence[Run]], Estimate]) -> Budget:
    """Orders `runs`, those still to do, for a budget: what fits by its longest estimate, and the rest.

    `estimate` says how long runs of one column take. Columns without an estimate come last, in their order.
    """
    grouped: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.cell.dataset, run.cell.network, run.seed), []).append(run)
    parts = [Part(*place, tuple(part), estimate(part).duration) for place, part in grouped.items()]
    of_column: dict[tuple[str, str], float] = {}
    for part in parts:
        column = (part.dataset, part.network)
        of_column[column] = of_column.get(column, 0.0) + part.cost
    fits: list[Part] = []
    rest: list[Part] = []
    left = seconds
    for part in sorted(parts, key=lambda part: of_column[part.dataset, part.network]):
        if part.cost <= left:
            left -= part.cost
            fits.append(part)
        else:
            rest.append(part)
    # A begun run of the rest is finished soonest where the least is missing.
    rest.sort(key=lambda part: part.cost)
    return Budget(seconds, tuple(fits), tuple(rest))


COUNTS = ("cells", "runs", "done", "older_code", "stale", "damaged", "to_do")


@dataclass(frozen=True)
class ColumnPlan:
    """One network on one data set. Of its `counts` (COUNTS), `to_do` has every run that would be trained:
    those without a record, `stale` ones of another recipe, `damaged` ones, and under "rerun" those of
    `older_code` too. The `estimate` is of the runs to do, alone on all devices.
    """

    table: TableName
    dataset: str
    network: str
    label: str
    counts: Mapping[str, int]
    estimate: Estimate

    @property
    def is_unknown(self) -> bool:
        """Whether it has runs to do, and nobody knows how long they take."""
        return bool(self.counts["to_do"]) and self.estimate.duration is None

    def time(self) -> str:
        """How long the runs to do take; `?` where no speed is known."""
        return str(self.estimate.duration or "?") if self.counts["to_do"] else ""

    def fields(self) -> dict[str, Any]:
        """The column for programs."""
        name = {"table": self.table, "dataset": self.dataset, "network": self.network, "label": self.label}
        return {**name, **self.counts, **vars(self.estimate)}


@dataclass(frozen=True)
class Plan:
    """A sweep before it starts. `devices` maps a device's name to its number of workers.

    `reasons` counts why records do not count; `duration` and `busy`, in seconds of a `busy_unit` ("GPU" or
    "core"), cover the columns whose speed is known; `disk` is what the runs to do add. Data sets in
    `missing_data`, with the commands that get them, have no part in the budget. `seeds`: what the planned
    seeds can decide, by table and claim. `overrides`: of a grid the ids of the runs with each, `""` for the
    baseline.
    """

    preset: str
    description: str
    results: str
    supplied: bool
    devices: Mapping[str, int]
    columns: tuple[ColumnPlan, ...]
    reasons: Mapping[str, int]
    data_unchecked: int
    duration: Duration | None
    busy: Duration | None
    busy_unit: str
    disk: Footprint
    budget: Budget | None
    missing_data: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def total(self, count: str) -> int:
        """The sum of one of the columns' counts, as `runs` or `to_do`."""
        return sum(column.counts[count] for column in self.columns)

    def to_text(self) -> str:
        """Plain text with a table."""
        from tabulate import tabulate

        supplied = ""
        if self.supplied and self.total("done") + self.total("older_code"):
            with_clone = "its records may have been supplied with the clone"
            supplied = f", the project's own: {with_clone}; --results DIR starts your own set"
        lines = [f"preset {self.preset}: {self.description}", f"results: {self.results}{supplied}"]
        workers = (f"{count} on {name}" for name, count in self.devices.items())
        lines += [f"workers: {', '.join(workers)}", ""]
        total = self.total
        # Fits 80 columns where no record is of older code.
        shown = ["runs", "done", *(["older_code"] if total("older_code") else []), "to_do"]
        headers = ("table", "data set", "network", *(name.replace("_", " ") for name in shown), "time")
        rows = [
            (each.table, each.dataset, each.network, *(each.counts[name] for name in shown), each.time())
            for each in self.columns
        ]
        lines += [tabulate(rows, headers=headers, tablefmt="simple"), ""]
        if self.overrides:
            lines.append("overrides:")
            lines += (
                f"  {given.replace('+', ', ') or 'none (baseline)'}: {_ids(ids)}"
                for given, ids in self.overrides.items()
            )
        older = f" {total('older_code')} done by older code," if total("older_code") else ""
        cells, runs = counted(total("cells"), "cell"), counted(total("runs"), "run")
        lines.append(f"{cells}, {runs}: {total('done')} done,{older} {total('to_do')} to do")
        if self.data_unchecked:
            lines.append(
                f"data unchecked: {counted(self.data_unchecked, 'record')}, the data set is not prepared here"
            )
        lines += [f"{count} × {reason}" for reason, count in self.reasons.items()]
        for name, how in self.missing_data.items():
            lacking = sum(column.counts["to_do"] for column in self.columns if column.dataset == name)
            lines.append(f"{lacking} {'run lacks its' if lacking == 1 else 'runs lack their'} data: {how}")
        if total("to_do"):
            lines += _time_lines(self)
            lines.append(f"disk: about {self.disk}")
        if self.budget:
            lines += self.budget.lines()
        if self.seeds:
            lines.append("what the planned seeds can decide, by the spread that the paper reports:")
            names: dict[str, list[str]] = {}
            for name, advice in self.seeds.items():
                names.setdefault(advice["sentence"], []).append(name)
            lines += [f"  {', '.join(alike)}: {sentence}" for sentence, alike in names.items()]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Indented JSON: the totals first, then every column; durations are {low, high} in seconds."""
        content: dict[str, Any] = {"preset": self.preset, "results": self.results, "supplied": self.supplied}
        content |= {count: self.total(count) for count in COUNTS}
        busy = {"unit": f"{self.busy_unit}-seconds", **asdict(self.busy)} if self.busy else None
        content |= {"duration": self.duration, "busy": busy, "disk_bytes": self.disk}
        for name in ("budget", "devices", "reasons", "data_unchecked", "missing_data", "seeds", "overrides"):
            content[name] = getattr(self, name)
        content["columns"] = [column.fields() for column in self.columns]
        return json.dumps(content, indent=1, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """A run as its id, any other dataclass by its fields."""
    return value.id if isinstance(value, Run) else vars(value)


def make_plan(
    survey: Survey,
    registry: Registry,
    preset: Preset,
    project: Project,
    devices: Sequence[Device],
    stale: StalePolicy = "keep",
    begun: Mapping[str, float] | None = None,
    budget: float | None = None,
    missing_data: Mapping[str, str] | None = None,
    seeds: Mapping[str, Mapping[str, Any]] | None = None,
    grid: bool = False,
) -> Plan:
    """The plan for the runs of `survey` on `devices`.

    `begun` has the share of a run that a checkpoint holds, `budget` the seconds to spend; data sets in
    `missing_data`, name → how to get it, get nothing of them. `seeds` is shown as it is
    (`repro.analysis.seeds.planned_seeds`). With `grid` the runs are also listed by their overrides.
    """
    estimator = Estimator(registry, preset, devices, survey, begun or {})
    columns: dict[tuple[TableName, str, str], list[RunState]] = {}
    reasons: dict[str, int] = {}
    overrides: dict[str, list[str]] = {}
    for state in survey.states:
        cell = state.run.cell
        columns.setdefault((cell.table, cell.dataset, cell.network), []).append(state)
        if state.record_state not in (RecordState.DONE, RecordState.MISSING):
            reasons[state.reason] = reasons.get(state.reason, 0) + 1
        overrides.setdefault(cell.id.partition("+")[2], []).append(state.run.id)
    plans = [_column(key, column, registry, estimator, stale) for key, column in columns.items()]
    waiting = [plan.estimate for plan in plans if plan.counts["to_do"]]
    to_do = survey.to_do(stale)
    spent = None
    if budget is not None:
        can = [run for run in to_do if run.cell.dataset not in (missing_data or {})]
        spent = spend(budget, can, estimator.estimate)
    return Plan(
        preset=preset.name,
        description=preset.description,
        results=str(project.preset_results(preset.name)),
        supplied=project.supplied_results,
        devices=Counter(device.name for device in devices),
        columns=tuple(plans),
        reasons=reasons,
        data_unchecked=sum(state.data_unchecked for state in survey.states),
        duration=_sum(each.duration for each in waiting),
        busy=_sum(each.busy for each in waiting),
        busy_unit="GPU" if devices[0].kind == "cuda" else "core",
        disk=footprint([estimator.config(run) for run in to_do], len(devices)),
        budget=spent,
        missing_data=missing_data or {},
        seeds=seeds or {},
        overrides=overrides if grid else {},
    )


def _ids(ids: Sequence[str]) -> str:
    return f"1 run, {ids[0]}" if len(ids) == 1 else f"{len(ids)} runs, {ids[0]} to {ids[-1]}"


def _column(
    key: tuple[TableName, str, str],
    states: Sequence[RunState],
    registry: Registry,
    estimator: Estimator,
    stale: StalePolicy,
) -> ColumnPlan:
    table, dataset, network = key
    to_do = [state.run for state in states if is_to_do(state, stale)]
    states_of = Counter(state.record_state for state in states)
    counts = {
        "cells": len({state.run.cell.id for state in states}),
        "runs": len(states),
        "done": states_of[RecordState.DONE],
        "older_code": states_of[RecordState.OLDER_CODE],
        "stale": states_of[RecordState.OTHER_RECIPE],
        "damaged": sum(state.is_damaged for state in states),
        "to_do": len(to_do),
    }
    label = registry.table(table).networks.get(network, network)
    return ColumnPlan(table, dataset, network, label, counts, estimator.estimate(to_do))


def _sum(durations: Iterable[Duration | None]) -> Duration | None:
    """Of those that are known; None where none is."""
    known = [duration for duration in durations if duration]
    return Duration.sum(known) if known else None


def _time_lines(plan: Plan) -> list[str]:
    unknown = any(column.is_unknown for column in plan.columns)
    lines = []
    if plan.duration:
        part = ", not counting columns marked ?" if unknown else ""
        busy = f" ({_hours(plan.busy)} {plan.busy_unit}-hours)" if plan.busy else ""
        lines.append(f"time to do: {plan.duration} on these devices{busy}{part}")
    waiting = [column for column in plan.columns if column.counts["to_do"]]
    lines += (f"  {source}" for source in dict.fromkeys(column.estimate.source for column in waiting))
    if unknown:
        lines.append("  the first finished runs tell the rest; `repro bench` measures images per second now")
    return lines


def _hours(busy: Duration) -> str:
    low, high = (
        f"{seconds / 3600:.2g}" if seconds < 36000 else f"{seconds / 3600:,.0f}"
        for seconds in (busy.low, busy.high)
    )
    return low if low == high else f"{low} – {high}"
