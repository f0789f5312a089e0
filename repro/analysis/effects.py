"""One side of losses against another, column by column and seed by seed: the size of an effect.

A column is a data set with a network of the paper's tables, among those at which the verdict is given. Within
it the sides are compared at the seeds that all their rows share: seed k gives every loss the same initial
weights, order and augmentation. A diverged run has a value only where the claim counts it at chance accuracy.

    accuracy:            x = of − over             in points
    every other measure: x = ln(of) − ln(over)     shown as the factor of / over
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from repro.analysis.inference import bootstrap_interval, paired_correlation
from repro.analysis.layout import network_label
from repro.analysis.rules import Combination, Divergence, Measure, TestRules
from repro.config import Preset
from repro.errors import RegistryError
from repro.experiments import Table
from repro.record_state import RunState
from repro.records import RunRecord
from repro.registry import Registry

Unit = Literal["points", "factor"]

_BY_EPOCH: dict[Measure, str] = {
    "late-gradient-times-feature": "gradient_times_feature",
    "late-gradient-at-features": "gradient_at_features",
    "late-feature-norm": "feature_norm",
    "late-gradient-at-logits": "gradient_at_logits",
}
"""The field of an epoch that a measure averages over the late epochs."""


@dataclass(frozen=True)
class Contrast:
    """What is compared with what: rows of either side, how they combine, the measure, and divergence."""

    measure: Measure
    of: tuple[str, ...]
    of_combined: Combination
    over: tuple[str, ...]
    over_combined: Combination
    diverged: Divergence

    @property
    def unit(self) -> Unit:
        """How the effect is expressed."""
        return "points" if self.measure == "accuracy" else "factor"

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row that either side needs."""
        return tuple(dict.fromkeys((*self.of, *self.over)))


@dataclass(frozen=True)
class ColumnEffect:
    """A column's effect at its shared seeds, in the effect's unit; None where no seed has all its values.

    `of_value` and `over_value` are the sides' means in the measure's own unit, `of_rows` and `over_rows` what
    they are made of (one row where the best was taken). `whole`: every run of the preset's seeds is there.
    `diverged` of the `runs` with a record did so, `over_diverged` of those on the second side. `reported` is
    the paper's effect in this column.
    """

    label: str
    dataset: str
    network: str
    seeds: tuple[int, ...]
    whole: bool
    runs: int
    diverged: int
    over_diverged: int
    value: float | None
    of_value: float | None
    over_value: float | None
    of_rows: tuple[str, ...]
    over_rows: tuple[str, ...]
    reported: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Effect:
    """The mean of the columns' effects (of factors the geometric one) with its bootstrap interval.

    Columns without a value are in neither. The interval is over seeds, for these columns; None where a column
    has one seed alone. `reported` is the same of the paper's means over all its columns; `correlation` is of
    the sides over seeds within columns.
    """

    unit: Unit
    value: float | None
    low: float | None
    high: float | None
    reported: float | None
    correlation: float | None
    columns: tuple[ColumnEffect, ...]


def cell_id(table: Table, network: str, row: str) -> str:
    """The id of a row's cell in a column, as `repro.registry.Cell.id`."""
    return f"{table.dataset}/{network}/{row}"


def measure_effect(
    contrast: Contrast,
    states: Mapping[str, Sequence[RunState]],
    registry: Registry,
    preset: Preset,
    rules: TestRules,
) -> Effect:
    """The effect over every column of the verdict that has a seed that all rows share, a diverged run, or
    every run though none can be compared.

    `states` are the runs' states by cell id. A column whose records come from different data is left out.
    Raises RegistryError where a side takes the row that the paper reports the best of, and it reports none.
    """
    found = [
        column
        for table, network in verdict_columns(registry, rules)
        if (column := _column(contrast, states, table, network, preset, rules)) is not None
    ]
    columns = tuple(column for column, _ in found)
    log = contrast.unit == "factor"
    strata = [[math.log(x) if log else x for x in column.by_seed] for column in columns if column.by_seed]
    if not strata:
        return Effect(contrast.unit, None, None, None, _reported(contrast, registry), None, columns)
    value = math.fsum(math.fsum(values) / len(values) for values in strata) / len(strata)
    bounds = bootstrap_interval(strata, rules.level, rules.resamples, rules.seed)
    low, high = bounds or (None, None)
    pairs = [of_column for column, of_column in found if len(column.seeds) > 1]
    return Effect(
        unit=contrast.unit,
        value=math.exp(value) if log else value,
        low=math.exp(low) if log and low is not None else low,
        high=math.exp(high) if log and high is not None else high,
        reported=_reported(contrast, registry),
        correlation=paired_correlation(pairs),
        columns=columns,
    )


def verdict_columns(registry: Registry, rules: TestRules) -> tuple[tuple[Table, str], ...]:
    """The columns at which the verdict is given, as (table, network), in the order of the paper's tables."""
    return tuple(
        (table, network)
        for table in registry.tables
        if table.of_paper
        for network in table.networks
        if f"{table.dataset}/{network}" in rules.verdict_columns
    )


def measured(record: RunRecord, measure: Measure, late: str) -> float | None:
    """A record's value of a measure; None in a run that diverged or did not record it.

    accuracy in percent; logit-bulk: half the width of the central 95 % of the logits; weight-norm: the mean
    of ‖w_k‖₂ over all classes; late-…: the mean of that number of an epoch over the late epochs (`late`: from
    the recipe's last drop of the learning rate on, or the last epoch alone).
    """
    if record.result.accuracy is None:
        return None
    if measure == "accuracy":
        return record.result.accuracy
    if measure == "logit-bulk":
        if record.probes.logits is None:
            return None
        quantiles = record.probes.logits.quantiles
        return (quantiles["97.5"] - quantiles["2.5"]) / 2
    if measure == "weight-norm":
        norms = record.probes.weight_norms
        return math.fsum(norms) / len(norms) if norms else None
    drops = record.config.recipe.lr_drops
    first = drops[-1] if late == "last-lr-drop" and drops else record.curve[-1].epoch
    epochs = [epoch for epoch in record.curve if epoch.epoch >= first]
    values: list[float | None] = [getattr(epoch, _BY_EPOCH[measure]) for epoch in epochs]
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present and len(present) == len(epochs) else None


def _column(
    contrast: Contrast,
    states: Mapping[str, Sequence[RunState]],
    table: Table,
    network: str,
    preset: Preset,
    rules: TestRules,
) -> tuple[ColumnEffect, list[tuple[float, float]]] | None:
    values: dict[str, dict[int, float]] = {}
    data: set[str] = set()
    recorded: set[tuple[str, int]] = set()
    diverged: Counter[str] = Counter()
    for row in contrast.rows:
        values[row] = {}
        for state in states.get(cell_id(table, network, row), ()):
            if not state.counts or state.record is None:
                continue
            recorded.add((row, state.run.seed))
            value = measured(state.record, contrast.measure, rules.late)
            if state.record.result.accuracy is None:
                diverged[row] += 1
                if contrast.diverged == "chance-accuracy":
                    value = 100 / state.record.data.classes
            # A factor of nothing has no logarithm: a norm of exactly 0 cannot be compared so.
            if value is not None and (value > 0 or contrast.unit == "points"):
                values[row][state.run.seed] = value
                data.add(state.record.signature.data)
    seeds = sorted(set.intersection(*(set(of_row) for of_row in values.values())))
    whole = all((row, seed) in recorded for row in contrast.rows for seed in preset.seeds)
    if len(data) > 1 or not (seeds or diverged or whole):
        return None
    of_rows = _chosen(contrast.of, contrast.of_combined, values, seeds, table, network)
    over_rows = _chosen(contrast.over, contrast.over_combined, values, seeds, table, network)
    of, over = (
        [_mean([values[row][seed] for row in rows]) for seed in seeds] for rows in (of_rows, over_rows)
    )
    by_seed = [a - b if contrast.unit == "points" else a / b for a, b in zip(of, over, strict=True)]
    column = ColumnEffect(
        label=f"{network_label(table, network)} on {table.title}",
        dataset=table.dataset,
        network=network,
        seeds=tuple(seeds),
        whole=whole,
        runs=len(recorded),
        diverged=diverged.total(),
        over_diverged=sum(diverged[row] for row in contrast.over),
        value=_average(by_seed, contrast.unit) if seeds else None,
        of_value=_mean(of) if seeds else None,
        over_value=_mean(over) if seeds else None,
        of_rows=of_rows,
        over_rows=over_rows,
        reported=_reported_in(contrast, table, network),
        by_seed=tuple(by_seed),
    )
    return column, list(zip(of, over, strict=True))


def _chosen(
    rows: Sequence[str],
    how: Combination,
    values: Mapping[str, Mapping[int, float]],
    seeds: Sequence[int],
    table: Table,
    network: str,
) -> tuple[str, ...]:
    """The rows that a side's value is the mean of: all, or the best one by our means or by the paper's."""
    if how == "mean" or not seeds:
        return tuple(rows)
    if how == "best":
        return (max(rows, key=lambda row: _mean([values[row][seed] for seed in seeds])),)
    reported = _reported_means(table, network)
    if unknown := [row for row in rows if row not in reported]:
        raise RegistryError(
            f"{table.file}: reports no mean of {', '.join(unknown)} on {network}; "
            "best-reported needs one of every row"
        )
    return (max(rows, key=lambda row: reported[row]),)


def _average(by_seed: Sequence[float], unit: Unit) -> float:
    """The mean over seeds; of factors the geometric one."""
    return _mean(by_seed) if unit == "points" else math.exp(_mean([*map(math.log, by_seed)]))


def reported_effects(contrast: Contrast, registry: Registry) -> tuple[float, ...]:
    """The same contrast of the paper's means in each of its columns; empty where it lacks one of the rows."""
    columns = [
        _reported_in(contrast, table, network)
        for table in registry.tables
        if table.of_paper
        for network in table.networks
    ]
    known = tuple(value for value in columns if value is not None)
    return known if len(known) == len(columns) else ()


def _reported_in(contrast: Contrast, table: Table, network: str) -> float | None:
    if contrast.measure != "accuracy":
        return None
    reported = _reported_means(table, network)
    if any(row not in reported for row in contrast.rows):
        return None
    sides = [
        (_mean if how == "mean" else max)([reported[row] for row in rows])
        for rows, how in ((contrast.of, contrast.of_combined), (contrast.over, contrast.over_combined))
    ]
    return sides[0] - sides[1]


def _reported_means(table: Table, network: str) -> dict[str, float]:
    """The paper's means of a column by row."""
    return {row.name: row.reported[network].mean for row in table.rows if network in row.reported}


def _reported(contrast: Contrast, registry: Registry) -> float | None:
    columns = reported_effects(contrast, registry)
    return _mean(columns) if columns else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
