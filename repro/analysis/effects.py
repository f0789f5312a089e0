"""One side of losses against another, column by column and seed by seed: the size of an effect.

A column is a data set with a network of the paper's tables, among those at which the verdict is given. Within
it the sides are compared at the seeds that all their rows share: seed k gives every loss the same initial
weights, order and augmentation. A diverged run has a value only where the claim counts it at chance accuracy.

    accuracy, error:     x = of − over             in points
    every other measure: x = ln(of) − ln(over)     shown as the factor of / over
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repro.analysis.inference import bootstrap_interval
from repro.analysis.rules import Claim, Combination, Measure, Rules, TestRules, Unit
from repro.analysis.text import network_label, signed
from repro.config import Preset
from repro.errors import RegistryError, counted
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
    def columns(self) -> list[tuple[Table, str]]:
        """The columns at which the verdict is given."""
        return verdict_columns(self.registry, self.rules.tests)

    def runs(self, table: Table, network: str, row: str) -> Sequence[RunState]:
        """The states of a row's cell in a column."""
        return self.states.get(f"{table.dataset}/{network}/{row}", ())


@dataclass(frozen=True, kw_only=True)
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
    value: float | None = None
    of_value: float | None = None
    over_value: float | None = None
    of_rows: tuple[str, ...]
    over_rows: tuple[str, ...]
    reported: float | None
    by_seed: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Data set and network."""
        return self.dataset, self.network


@dataclass(frozen=True)
class Effect:
    """The mean of the columns' effects (of factors the geometric one) with its bootstrap interval.

    Columns without a value are in neither. The interval is over seeds, for these columns; None where a column
    has one seed alone. `reported` is the same of the paper's means over all its columns.
    """

    unit: Unit
    value: float | None
    low: float | None
    high: float | None
    reported: float | None
    columns: tuple[ColumnEffect, ...]


def paper_columns(registry: Registry) -> list[tuple[Table, str]]:
    """Every column of the paper's tables, as (table, network)."""
    return [(table, network) for table in registry.tables if table.of_paper for network in table.networks]


def verdict_columns(registry: Registry, tests: TestRules) -> list[tuple[Table, str]]:
    """Those at which the verdict is given."""
    wanted, columns = tests.verdict_columns, paper_columns(registry)
    return [place for place in columns if not wanted or f"{place[0].dataset}/{place[1]}" in wanted]


def measure_effect(contrast: Claim, evidence: Evidence) -> Effect:
    """The effect over every column of the verdict that has a seed that all rows share, a diverged run, or
    every run though none can be compared.

    A column whose records come from different data is left out. Raises RegistryError where a side takes the
    row that the paper reports the best of, and it reports none.
    """
    found = (_column(contrast, table, network, evidence) for table, network in evidence.columns)
    columns = tuple(filter(None, found))
    tests, factor = evidence.rules.tests, contrast.unit == "factor"
    strata = [np.log(c.by_seed) if factor else np.array(c.by_seed) for c in columns if c.by_seed]
    value = low = high = None
    if strata:
        value = float(np.mean([of_column.mean() for of_column in strata]))
        low, high = bootstrap_interval(strata, tests.level, tests.resamples, tests.seed) or (None, None)
    if factor:
        value, low, high = (None if number is None else math.exp(number) for number in (value, low, high))
    reported = reported_effects(contrast, evidence.registry)
    mean = float(np.mean(reported)) if reported else None
    return Effect(contrast.unit, value, low, high, mean, columns)


def measured(record: RunRecord, measure: Measure, late: str) -> float | None:
    """A record's value of a measure; None in a run that diverged or did not record it.

    accuracy and error in percent; logit-bulk: half the width of the central 95 % of the logits; weight-norm:
    the mean of ‖w_k‖₂ over all classes; late-…: the mean of that number of an epoch over the late epochs
    (`late`: from the recipe's last drop of the learning rate on, or the last epoch alone).
    """
    if record.result.accuracy is None or measure == "accuracy":
        return record.result.accuracy
    if measure == "error":
        return 100 - record.result.accuracy
    if measure == "logit-bulk":
        logits = record.probes.logits
        return None if logits is None else (logits.quantiles["97.5"] - logits.quantiles["2.5"]) / 2
    values: Sequence[float | None] = record.probes.weight_norms or ()
    if measure != "weight-norm":
        drops = record.config.recipe.lr_drops
        first = drops[-1] if late == "last-lr-drop" and drops else record.curve[-1].epoch
        field = measure.removeprefix("late-").replace("-", "_")
        values = [getattr(epoch, field) for epoch in record.curve if epoch.epoch >= first]
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present and len(present) == len(values) else None


def _column(contrast: Claim, table: Table, network: str, evidence: Evidence) -> ColumnEffect | None:
    """The column's effect; None where there is nothing to say of it."""
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
                    chance = 100 / state.record.data.classes
                    value = chance if contrast.measure == "accuracy" else 100 - chance
            # A factor of nothing has no logarithm: a norm of exactly 0 cannot be compared so.
            if value is not None and (value > 0 or contrast.unit == "points"):
                values[row][state.run.seed] = value
                data.add(state.record.signature.data)
    seeds = sorted(set.intersection(*map(set, values.values())))
    whole = recorded >= set(itertools.product(contrast.rows, evidence.preset.seeds))
    if len(data) > 1 or not (seeds or diverged or whole):
        return None
    reported = reported_means(table, network)
    column: dict[str, Any] = {
        "label": f"{network_label(table, network)} on {table.title}",
        "dataset": table.dataset,
        "network": network,
        "seeds": tuple(seeds),
        "whole": whole,
        "runs": len(recorded),
        "diverged": diverged.total(),
        "over_diverged": sum(diverged[row] for row in contrast.over),
        "reported": _reported_in(contrast, reported, evidence.registry),
    }
    if not seeds:
        return ColumnEffect(**column, of_rows=contrast.of, over_rows=contrast.over)
    shared = {row: np.array([of_row[seed] for seed in seeds]) for row, of_row in values.items()}
    ours = {row: float(of_row.mean()) for row, of_row in shared.items()}
    best = min if contrast.measure == "error" else max
    chosen = [_chosen(rows, how, ours, reported, best) for rows, how in contrast.sides]
    of, over = (np.mean([shared[row] for row in rows], axis=0) for rows in chosen)
    points = contrast.unit == "points"
    by_seed = of - over if points else of / over
    return ColumnEffect(
        **column,
        value=float(by_seed.mean()) if points else math.exp(np.log(by_seed).mean()),
        of_value=float(of.mean()),
        over_value=float(over.mean()),
        of_rows=chosen[0],
        over_rows=chosen[1],
        by_seed=tuple(by_seed.tolist()),
    )


def _chosen(
    rows: tuple[str, ...],
    how: Combination,
    ours: Mapping[str, float],
    reported: Mapping[str, float],
    best: Callable[..., str],
) -> tuple[str, ...]:
    """The rows that a side's value is the mean of: all, or the best one by our means or by the paper's."""
    if how == "mean":
        return rows
    means = ours if how == "best" else reported
    if unknown := [row for row in rows if row not in means]:
        raise RegistryError(f"the paper reports no mean of {', '.join(unknown)}, which best-reported needs")
    return (best(rows, key=means.__getitem__),)


def reported_means(table: Table, network: str) -> dict[str, float]:
    """The paper's means of a column by row."""
    return {row.name: row.reported[network].mean for row in table.rows if network in row.reported}


def reported_effects(contrast: Claim, registry: Registry) -> tuple[float, ...]:
    """The same contrast of the paper's means in each of its columns; empty where it lacks one of the rows."""
    columns = [_reported_in(contrast, reported_means(*place), registry) for place in paper_columns(registry)]
    known = tuple(value for value in columns if value is not None)
    return known if len(known) == len(columns) else ()


def _reported_in(contrast: Claim, reported: Mapping[str, float], registry: Registry) -> float | None:
    measure = registry.paper.metric.measure
    if contrast.measure != measure or any(row not in reported for row in contrast.rows):
        return None
    of, over = combined_means(contrast, reported, reported)
    return float(of - over)


def combined_means(
    contrast: Claim, means: Mapping[str, Any], reported: Mapping[str, Any]
) -> tuple[np.ndarray, ...]:
    """Both sides' values from a mean per row, or an array of them whose last axis is that of `reported`."""
    sides = []
    for rows, how in contrast.sides:
        values, papers = (np.array([of[row] for row in rows]) for of in (means, reported))
        best = {"best": values, "best-reported": papers}.get(how)
        if best is None:
            sides.append(values.mean(axis=0))
        else:
            place = best.argmin(axis=0) if contrast.measure == "error" else best.argmax(axis=0)
            sides.append(np.choose(place, values))
    return tuple(sides)


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
    digits = ".2f" if effect.unit == "points" else ".3g"
    text = f"{column.label}: {_number(column.value, effect)} ({column.of_value:{digits}} against "
    text += f"{column.over_value:{digits}}, n = {len(column.seeds)})"
    if column.reported is not None:
        text += f"; the paper {signed(column.reported)}"
    return f"{text}; {diverged}" if column.diverged else text
