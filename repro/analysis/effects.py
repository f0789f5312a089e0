"""One side of losses against another, column by column and seed by seed: the size of an effect.

A column is a data set with a network of the paper's tables, among those at which the verdict is given. Within
it the sides are compared at the seeds that all their rows share: seed k gives every loss the same initial
weights, order and augmentation. A diverged run has a value only where the claim counts it at chance accuracy.

    accuracy:            x = of − over             in points
    every other measure: x = ln(of) − ln(over)     shown as the factor of / over
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from repro.analysis.inference import bootstrap_interval, paired_correlation
from repro.analysis.rules import Claim, Combination, Measure, Rules, Unit
from repro.analysis.text import counted, network_label, signed
from repro.config import Preset
from repro.errors import RegistryError
from repro.experiments import Table
from repro.record_state import RunState
from repro.records import RunRecord
from repro.registry import Registry


@dataclass(frozen=True)
class Evidence:
    """What claims are judged by: the runs' states by cell id, and the rules fixed beforehand."""

    states: Mapping[str, Sequence[RunState]]
    registry: Registry
    preset: Preset
    rules: Rules

    @property
    def columns(self) -> tuple[tuple[Table, str], ...]:
        """The columns at which the verdict is given, as (table, network), in order."""
        wanted = self.rules.tests.verdict_columns
        every = paper_columns(self.registry)
        return tuple((table, network) for table, network in every if f"{table.dataset}/{network}" in wanted)

    def runs(self, table: Table, network: str, row: str) -> Sequence[RunState]:
        """The states of a row's cell in a column."""
        return self.states.get(f"{table.dataset}/{network}/{row}", ())


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


def paper_columns(registry: Registry) -> list[tuple[Table, str]]:
    """Every column of the paper's tables."""
    return [(table, network) for table in registry.tables if table.of_paper for network in table.networks]


def measure_effect(contrast: Claim, evidence: Evidence) -> Effect:
    """The effect over every column of the verdict that has a seed that all rows share, a diverged run, or
    every run though none can be compared.

    A column whose records come from different data is left out. Raises RegistryError where a side takes the
    row that the paper reports the best of, and it reports none.
    """
    found = [_column(contrast, table, network, evidence) for table, network in evidence.columns]
    columns = tuple(column for column, _ in filter(None, found))
    sides = [of_column for column, of_column in filter(None, found) if len(column.seeds) > 1]
    tests = evidence.rules.tests
    factor = contrast.unit == "factor"
    strata = [np.log(c.by_seed) if factor else np.array(c.by_seed) for c in columns if c.by_seed]
    value = low = high = correlation = None
    if strata:
        value = float(np.mean([of_column.mean() for of_column in strata]))
        low, high = bootstrap_interval(strata, tests.level, tests.resamples, tests.seed) or (None, None)
        correlation = paired_correlation(sides)
    if factor:
        value, low, high = (None if number is None else math.exp(number) for number in (value, low, high))
    reported = reported_effects(contrast, evidence.registry)
    mean = float(np.mean(reported)) if reported else None
    return Effect(contrast.unit, value, low, high, mean, correlation, columns)


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
    field = measure.removeprefix("late-").replace("-", "_")
    values: list[float | None] = [getattr(epoch, field) for epoch in epochs]
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present and len(present) == len(epochs) else None


def _column(
    contrast: Claim, table: Table, network: str, evidence: Evidence
) -> tuple[ColumnEffect, np.ndarray] | None:
    """The column's effect, and both sides' values, float64 of (seeds, 2); None where there is nothing."""
    values: dict[str, dict[int, float]] = {row: {} for row in contrast.rows}
    recorded, data, diverged = set(), set(), Counter[str]()
    for row in contrast.rows:
        for state in evidence.runs(table, network, row):
            if not state.counts or state.record is None:
                continue
            recorded.add((row, state.run.seed))
            value = measured(state.record, contrast.measure, evidence.rules.tests.late)
            if state.record.result.accuracy is None:
                diverged[row] += 1
                if contrast.diverged == "chance-accuracy":
                    value = 100 / state.record.data.classes
            # A factor of nothing has no logarithm: a norm of exactly 0 cannot be compared so.
            if value is not None and (value > 0 or contrast.unit == "points"):
                values[row][state.run.seed] = value
                data.add(state.record.signature.data)
    seeds = sorted(set.intersection(*map(set, values.values())))
    whole = recorded >= set(itertools.product(contrast.rows, evidence.preset.seeds))
    if len(data) > 1 or not (seeds or diverged or whole):
        return None
    shared = {row: np.array([of_row[seed] for seed in seeds]) for row, of_row in values.items()}
    of_rows = _chosen(contrast.of, contrast.of_combined, shared, table, network)
    over_rows = _chosen(contrast.over, contrast.over_combined, shared, table, network)
    of, over = (np.mean([shared[row] for row in rows], axis=0) for rows in (of_rows, over_rows))
    by_seed = of - over if contrast.unit == "points" else of / over
    column = ColumnEffect(
        label=f"{network_label(table, network)} on {table.title}",
        dataset=table.dataset,
        network=network,
        seeds=tuple(seeds),
        whole=whole,
        runs=len(recorded),
        diverged=diverged.total(),
        over_diverged=sum(diverged[row] for row in contrast.over),
        value=_mean(by_seed) if contrast.unit == "points" else _geometric_mean(by_seed),
        of_value=_mean(of),
        over_value=_mean(over),
        of_rows=of_rows,
        over_rows=over_rows,
        reported=_reported_in(contrast, table, network),
        by_seed=tuple(by_seed.tolist()),
    )
    return column, np.column_stack([of, over])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _geometric_mean(values: np.ndarray) -> float | None:
    return math.exp(np.log(values).mean()) if len(values) else None


def _chosen(
    rows: tuple[str, ...],
    how: Combination,
    values: Mapping[str, np.ndarray],
    table: Table,
    network: str,
) -> tuple[str, ...]:
    """The rows that a side's value is the mean of: all, or the best one by our means or by the paper's."""
    if how == "mean" or not len(values[rows[0]]):
        return rows
    if how == "best":
        return (max(rows, key=lambda row: values[row].mean()),)
    reported = _reported_means(table, network)
    if unknown := [row for row in rows if row not in reported]:
        raise RegistryError(
            f"{table.file}: reports no mean of {', '.join(unknown)} on {network}; "
            "best-reported needs one of every row"
        )
    return (max(rows, key=lambda row: reported[row]),)


def reported_effects(contrast: Claim, registry: Registry) -> tuple[float, ...]:
    """The same contrast of the paper's means in each of its columns; empty where it lacks one of the rows."""
    columns = [_reported_in(contrast, table, network) for table, network in paper_columns(registry)]
    known = tuple(value for value in columns if value is not None)
    return known if len(known) == len(columns) else ()


def _reported_in(contrast: Claim, table: Table, network: str) -> float | None:
    reported = _reported_means(table, network)
    if contrast.measure != "accuracy" or any(row not in reported for row in contrast.rows):
        return None
    of, over = (
        (np.mean if how == "mean" else max)([reported[row] for row in rows])
        for rows, how in ((contrast.of, contrast.of_combined), (contrast.over, contrast.over_combined))
    )
    return float(of - over)


def _reported_means(table: Table, network: str) -> dict[str, float]:
    """The paper's means of a column by row."""
    return {row.name: row.reported[network].mean for row in table.rows if network in row.reported}


def effect_text(effect: Effect, level: float) -> str:
    """`+0.62 points (95 % interval +0.21 to +1.03)`, `factor 0.41 (no interval: …)`."""
    if effect.value is None:
        return "no effect can be computed yet"
    number = _number(effect.value, effect)
    text = f"{number} points" if effect.unit == "points" else f"a factor of {number}"
    if effect.low is None or effect.high is None:
        return f"{text} (no interval: a column has one seed)"
    low, high = _number(effect.low, effect), _number(effect.high, effect)
    return f"{text} ({100 * level:g} % interval {low} to {high})"


def _number(value: float, effect: Effect) -> str:
    return signed(value) if effect.unit == "points" else f"{value:.3g}"


def column_text(column: ColumnEffect, effect: Effect) -> str:
    """A column's effect, both sides' values, and its n."""
    diverged = f"{counted(column.diverged, 'run')} diverged"
    if column.value is None:
        return f"{column.label}: {diverged if column.diverged else 'nothing to compare'}"
    number = signed(column.value) if effect.unit == "points" else f"{column.value:.3g}"
    digits = ".2f" if effect.unit == "points" else ".3g"
    text = f"{column.label}: {number} ({column.of_value:{digits}} against {column.over_value:{digits}}, "
    text += f"n = {len(column.seeds)})"
    if column.reported is not None:
        text += f"; the paper {signed(column.reported)}"
    if column.diverged:
        text += f"; {diverged}"
    return text
