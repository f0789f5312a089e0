"""One side of losses against another, column by column and seed by seed: the size of an effect.

A column is a data set with a network of the paper's tables. Within it the sides are compared at the seeds
that all their rows share: seed k gives every loss the same initial weights, order and augmentation.

    accuracy:            x = of − over             in points
    every other measure: x = ln(of) − ln(over)     shown as the factor of / over
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from repro.analysis.inference import bootstrap_interval, paired_correlation
from repro.analysis.layout import network_label
from repro.analysis.rules import Combination, Measure, TestRules
from repro.experiments import Table
from repro.recipes import Preset
from repro.records import RunRecord
from repro.registry import Registry
from repro.standings import RunState

Unit = Literal["points", "factor"]


@dataclass(frozen=True)
class Contrast:
    """What is compared with what: rows of either side, how they combine, and the measure."""

    measure: Measure
    of: tuple[str, ...]
    of_combined: Combination
    over: tuple[str, ...]
    over_combined: Combination

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
    """A column's effect at its shared seeds, in the effect's unit.

    `of_value` and `over_value` are the sides' means in the measure's own unit, `of_rows` and `over_rows` what
    they are made of (one row where the best was taken). `whole`: every run of the preset's seeds is there, be
    it that it diverged (`diverged` counts those). `reported` is the paper's effect in this column.
    """

    label: str
    dataset: str
    network: str
    seeds: tuple[int, ...]
    whole: bool
    diverged: int
    value: float
    of_value: float
    over_value: float
    of_rows: tuple[str, ...]
    over_rows: tuple[str, ...]
    reported: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Effect:
    """The mean of the columns' effects (of factors the geometric one) with its bootstrap interval.

    The interval is over seeds, for these columns; None where a column has one seed alone. `reported` is the
    same of the paper's means over all its columns; `correlation` is of the sides over seeds within columns.
    """

    unit: Unit
    value: float | None
    low: float | None
    high: float | None
    reported: float | None
    correlation: float | None
    columns: tuple[ColumnEffect, ...]

    @property
    def whole_columns(self) -> int:
        """Columns in which no run is still to come."""
        return sum(column.whole for column in self.columns)


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
    """The effect over every column of the paper's tables that has a seed which all rows share.

    `states` are the runs' states by cell id. A column whose records come from different data is left out.
    """
    found = [
        column
        for table in registry.tables
        if table.of_paper
        for network in table.networks
        if (column := _column(contrast, states, table, network, preset, rules)) is not None
    ]
    if not found:
        return Effect(contrast.unit, None, None, None, _reported(contrast, registry), None, ())
    columns = [column for column, _ in found]
    log = contrast.unit == "factor"
    strata = [[math.log(x) if log else x for x in column.by_seed] for column in columns]
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
        columns=tuple(columns),
    )


def measured(record: RunRecord, measure: Measure, late: str) -> float | None:
    """A record's value of a measure; None in a run that diverged or did not record it.

    accuracy in percent; logit-bulk: half the width of the central 95 % of the logits; weight-norm: the mean
    of ‖w_k‖₂ over all classes; late-gradient-…: the mean of that gradient norm over the late epochs (`late`:
    from the recipe's last drop of the learning rate on, or the last epoch alone).
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
    norms_by_epoch = [
        epoch.gradient_at_logits if measure == "late-gradient-at-logits" else epoch.gradient_at_features
        for epoch in epochs
    ]
    present = [norm for norm in norms_by_epoch if norm is not None]
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
    diverged = 0
    for row in contrast.rows:
        values[row] = {}
        for state in states.get(cell_id(table, network, row), ()):
            if not state.counts or state.record is None:
                continue
            recorded.add((row, state.run.seed))
            value = measured(state.record, contrast.measure, rules.late)
            diverged += state.record.result.accuracy is None
            # A factor of nothing has no logarithm: a norm of exactly 0 cannot be compared so.
            if value is not None and (value > 0 or contrast.unit == "points"):
                values[row][state.run.seed] = value
                data.add(state.record.signature.data)
    seeds = sorted(set.intersection(*(set(of_row) for of_row in values.values())))
    if not seeds or len(data) > 1:
        return None
    of_rows, of = _combined(contrast.of, contrast.of_combined, values, seeds)
    over_rows, over = _combined(contrast.over, contrast.over_combined, values, seeds)
    by_seed = [a - b if contrast.unit == "points" else a / b for a, b in zip(of, over, strict=True)]
    column = ColumnEffect(
        label=f"{network_label(table, network)} on {table.title}",
        dataset=table.dataset,
        network=network,
        seeds=tuple(seeds),
        whole=all((row, seed) in recorded for row in contrast.rows for seed in preset.seeds),
        diverged=diverged,
        value=_mean(by_seed) if contrast.unit == "points" else math.exp(_mean([*map(math.log, by_seed)])),
        of_value=_mean(of),
        over_value=_mean(over),
        of_rows=of_rows,
        over_rows=over_rows,
        reported=_reported_in(contrast, table, network),
        by_seed=tuple(by_seed),
    )
    return column, list(zip(of, over, strict=True))


def _combined(
    rows: Sequence[str], how: Combination, values: Mapping[str, Mapping[int, float]], seeds: Sequence[int]
) -> tuple[tuple[str, ...], list[float]]:
    """A side's rows and its value at each seed."""
    if how == "best":
        rows = [max(rows, key=lambda row: _mean([values[row][seed] for seed in seeds]))]
    return tuple(rows), [_mean([values[row][seed] for row in rows]) for seed in seeds]


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
    reported = {row.name: row.reported[network].mean for row in table.rows if network in row.reported}
    if any(row not in reported for row in contrast.rows):
        return None
    sides = [
        (max if how == "best" else _mean)([reported[row] for row in rows])
        for rows, how in ((contrast.of, contrast.of_combined), (contrast.over, contrast.over_combined))
    ]
    return sides[0] - sides[1]


def _reported(contrast: Contrast, registry: Registry) -> float | None:
    columns = reported_effects(contrast, registry)
    return _mean(columns) if columns else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
