"""How many seeds would decide a cell or a claim: advice on planned seeds, which changes no verdict.

Power is the chance of a verdict under a truth that is fixed beforehand, never under the observed effect:

reproduced  the true difference is 0
off         the true difference is OFF points
supported   the paper's own means are the true ones

The spread is ours pooled over the table, the paper's where we have none; the paper's own mean is of the runs
that it says, and no number of our seeds makes it more precise. Needs neither pandas nor records.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from repro.analysis.effects import combined_means, reported_means, verdict_columns
from repro.analysis.inference import Estimate, PooledSpread, pool, signed_rank_ps, welch
from repro.analysis.rules import CellRules, Claim, Rules
from repro.analysis.text import points
from repro.config import Preset
from repro.errors import counted
from repro.experiments import Table, TableName
from repro.paper import Paper
from repro.registry import Registry

POWER = 0.8  # that seeds are planned for
OFF = 2.0  # points, the true difference at which "off" should be found
MOST_SEEDS = 100  # that advice is given for
DRAWS = 4000  # simulated sets of columns behind a claim's power: a standard error of at most .008

_UNKNOWN = "Unknown: the paper prints no spread, and no cell of ours has two runs yet."


@dataclass(frozen=True)
class Seeds:
    """Advice for a cell or a claim with `planned` seeds.

    `power` and `more` are by verdict: its chance with the planned seeds, and how many more give it POWER,
    None where no number up to MOST_SEEDS does. Both are empty where seeds are not the question.
    """

    planned: int
    power: Mapping[str, float]
    more: Mapping[str, int | None]
    sentence: str


def sample_std(std: float | None, ddof: int, runs: int) -> float | None:
    """A printed std of `runs` runs as a sample std (ddof = 1): √(runs / (runs − 1)) times one with ddof = 0.

    None where there is none.
    """
    return None if std is None or runs < 2 else std * math.sqrt((runs - ddof) / (runs - 1))


def reported_spread(table: Table, paper: Paper, ddof: int) -> PooledSpread:
    """The paper's within-cell spread, pooled over a table, under one reading of its stds.

    Its `std` is None where the paper prints none, or does not say over how many runs.
    """
    runs = paper.reported.runs or 1
    stds = [value.std for row in table.rows for value in row.reported.values()]
    return pool([(sample_std(std, ddof, runs), runs) for std in stds])


def cell_seeds(table: Table, paper: Paper, ours: PooledSpread, rules: CellRules, planned: int) -> Seeds:
    """Advice for a cell of `table` that is not decided. `ours` is our spread of the table so far.

    With SE² = s²/n + s_paper²/n_paper and the noncentral t, for a margin of 1 point:

        off         P(T > t),  T with noncentrality (OFF − 1)/SE
        reproduced  2 P(T > t) − 1,  T with noncentrality 1/SE       (a lower bound, close where it is high)

    The paper's ± is read the wider way that a verdict must hold under; where it prints none, ours is taken. t
    is at POWER times the false discovery rate: the threshold of Benjamini and Hochberg where all cells are as
    assumed and POWER of them are found.
    """
    theirs, runs = reported_spread(table, paper, paper.reported.readings[-1]), paper.reported.runs or 1
    std = theirs.std if ours.std is None else ours.std
    if std is None:
        return Seeds(planned, {}, {}, _UNKNOWN)
    whole = max(1, ours.degrees, len(table.rows) * len(table.networks) * (planned - 1))

    def chance(n: float, distance: float) -> float:
        estimate = compare(0.0, (std, n, whole + n - planned), theirs, runs)
        if estimate.standard_error == 0:
            return 1.0
        t = special.stdtrit(estimate.degrees, 1 - POWER * rules.false_discovery_rate / 2)
        return 1 - float(special.nctdtr(estimate.degrees, distance / estimate.standard_error, t))

    powers: dict[str, Callable[[float], float]] = {
        "reproduced": lambda n: max(0.0, 2 * chance(n, rules.tolerance) - 1),
        "off": lambda n: chance(n, OFF - rules.tolerance),
    }
    truths = {"reproduced": "if the true difference is 0", "off": f"if it is {points(OFF)}"}
    return _advice(powers, truths, planned, f"the paper's own mean of {counted(runs, 'run')} is the limit")


def compare(difference: float, ours: tuple[float, float, float], paper: PooledSpread, runs: int) -> Estimate:
    """Our mean against the paper's: ours is (std, runs in the mean, degrees of freedom), the paper's is of
    `runs`.

    Where the paper prints no spread, ours stands for both: one estimate, whose degrees count once.
    """
    if paper.std is not None:
        return welch(difference, ours, (paper.std, runs, paper.degrees))
    std, n, degrees = ours
    return Estimate(difference, std * math.sqrt(1 / n + 1 / runs), degrees)


def claim_seeds(
    claim: Claim, registry: Registry, rules: Rules, spreads: Mapping[TableName, PooledSpread], planned: int
) -> Seeds:
    """Advice for a claim that is not decided; `spreads` are ours by table.

    The claim's own test on DRAWS sets of the verdict's columns, drawn around the paper's means with the
    spread of n seeds, against α / (claims of the family), Holm's strictest step.
    """
    columns = verdict_columns(registry, rules.tests)
    reported = [reported_means(table, network) for table, network in columns]
    metric = registry.paper.metric.measure
    if claim.measure != metric or any(row not in means for means in reported for row in claim.rows):
        return Seeds(planned, {}, {}, "The paper reports no effect to plan seeds with.")
    known = [_planning_std(table, registry.paper, spreads) for table, _ in columns]
    if None in known:
        return Seeds(planned, {}, {}, _UNKNOWN)
    stds = np.array(known)
    means = {row: np.array([of_column[row] for of_column in reported]) for row in claim.rows}
    alpha = rules.tests.alpha / rules.family_size(claim)

    def chance(n: float) -> float:
        noise = np.random.default_rng(rules.tests.seed)
        drawn = {
            row: mean + noise.standard_normal((DRAWS, len(columns))) * stds / math.sqrt(n)
            for row, mean in means.items()
        }
        of, over = combined_means(claim, drawn, means)
        return float((signed_rank_ps(claim.beyond(of - over)) <= alpha).mean())

    why = f"the test of {counted(len(columns), 'column')} is the limit"
    return _advice({"supported": chance}, {"supported": "if the paper's means are true"}, planned, why)


def _planning_std(table: Table, paper: Paper, spreads: Mapping[TableName, PooledSpread]) -> float | None:
    ours = spreads.get(table.name, PooledSpread(None, 0)).std
    return ours if ours is not None else reported_spread(table, paper, paper.reported.readings[-1]).std


def _advice(
    powers: Mapping[str, Callable[[float], float]], truths: Mapping[str, str], planned: int, limit: str
) -> Seeds:
    power = {word: of_word(planned) for word, of_word in powers.items()}
    counts = range(planned, MOST_SEEDS + 1)  # the chance grows with them
    added = {word: bisect_left(counts, POWER, key=of_word) for word, of_word in powers.items()}
    more = {word: count if count < len(counts) else None for word, count in added.items()}

    def chances(n: float) -> str:
        shares = {word: of_word(n) for word, of_word in powers.items()}
        texts = {word: f"{100 * p:.0f} %" if p < 0.995 else "over 99 %" for word, p in shares.items()}
        return ", ".join(f"{text} for {word!r} {truths[word]}" for word, text in texts.items())

    needed = [count for count in more.values() if count is not None]
    if len(needed) < len(powers):
        sentence = f"More seeds cannot decide, {limit}: even {MOST_SEEDS} give {chances(MOST_SEEDS)}."
    elif count := max(needed):
        enough = f"{counted(count, 'more seed')} would decide with {100 * POWER:g} % power"
        sentence = f"{enough}: {chances(planned + count)}."
    else:
        sentence = f"{counted(planned, 'seed')} can decide: {chances(planned)}."
    return Seeds(planned, power, more, sentence)


def planned_seeds(
    registry: Registry, preset: Preset, rules: Rules, tables: Collection[TableName]
) -> dict[str, Seeds]:
    """Advice before the first record, for each of `tables` that reports numbers, and for each claim."""
    planned, unknown = len(preset.seeds), PooledSpread(None, 0)
    reporting = [table for table in registry.tables if table.reports and table.name in tables]
    cells = {
        f"Table {table.name}": cell_seeds(table, registry.paper, unknown, rules.cells, planned)
        for table in reporting
    }
    return cells | {claim.name: claim_seeds(claim, registry, rules, {}, planned) for claim in rules.claims}
