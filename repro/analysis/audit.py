"""An audit of the paper by its own printed numbers: what they show, and what they cannot.

Everything is computed from `experiments/table*.toml` and the printed sentences in `experiments/claims.toml`.
Each ± is read twice, as a std with ddof = 1 and with ddof = 0, since the paper does not say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from repro.analysis.claims import claim_p, contrast_of
from repro.analysis.effects import reported_effects
from repro.analysis.inference import Estimate, bartlett, chi_square_quantile, holm, welch
from repro.analysis.rules import Rules, WorkedExample
from repro.analysis.verdicts import PAPER_RUNS, reported_spread, sample_std
from repro.errors import RegistryError
from repro.experiments import Row, Table, TableName
from repro.registry import Registry

METHOD = "scaled-bn"
"""The loss that the paper proposes."""


@dataclass(frozen=True)
class WelchTest:
    """Welch's two-sided t test on two printed means and stds, three runs each.

    `p_pooled` is of the same difference with the spread pooled over the table (48 degrees of freedom in the
    paper's tables). Those with `holm` are adjusted over all wins.
    """

    ddof: int
    t: float
    degrees: float
    p: float
    p_holm: float
    p_pooled: float
    p_pooled_holm: float
    low: float
    high: float


@dataclass(frozen=True)
class Win:
    """A scaled-BN cell against the best other loss of its column, in points; `tests` are ddof = 1, then 0.

    `within_noise`: not significant at the rules' alpha under either reading, before any correction;
    `within_noise_holm`: after Holm's over all wins.
    """

    table: TableName
    dataset: str
    network: str
    row: str
    mean: float
    rival: str
    rival_mean: float
    difference: float
    tests: tuple[WelchTest, ...]
    within_noise: tuple[bool, bool]
    within_noise_holm: tuple[bool, bool]


@dataclass(frozen=True)
class DepthOrder:
    """In how many of a table's rows the first network is ahead of every other, and by how much (points)."""

    table: TableName
    title: str
    first: str
    others: tuple[str, ...]
    rows: int
    rows_ahead: int
    smallest_lead: float
    largest_lead: float


@dataclass(frozen=True)
class BestScale:
    """Which m of scaled BN is best in a column, and Welch's p against the worst m (ddof = 1, 0)."""

    table: TableName
    dataset: str
    network: str
    best: str
    means: tuple[tuple[str, float], ...]
    worst: str
    p_against_worst: tuple[float, float]


@dataclass(frozen=True)
class ExampleAudit:
    """The worked example recomputed: softmax's probability of the last class, printed and true."""

    logits: tuple[tuple[float, ...], ...]
    printed: tuple[float, float]
    computed: tuple[float, float]
    printed_gain: float
    computed_gain: float


@dataclass(frozen=True)
class SplitAudit:
    """A split that cannot be literal: the smallest class that is kept has too few images for it."""

    table: TableName
    title: str
    classes: int
    train_per_class: int
    test_per_class: int
    fewest_images: int
    train_of_smallest: int
    test_of_smallest: int

    @property
    def literal(self) -> bool:
        """Whether every class can have the printed counts."""
        return self.fewest_images >= self.train_per_class + self.test_per_class


@dataclass(frozen=True)
class StdSpread:
    """A table's stds against what chance alone would spread, if all its cells had one true std.

    `expected_low` … `expected_high` hold `level` of the stds of three runs at the pooled std; `outside` are
    beyond, `expected_outside` is how many chance puts there. Bartlett's test asks whether one std fits all.
    """

    table: TableName
    title: str
    cells: int
    pooled_ddof1: float
    pooled_ddof0: float
    degrees: int
    smallest: float
    largest: float
    level: float
    expected_low: float
    expected_high: float
    outside: int
    expected_outside: float
    bartlett: float
    p: float


@dataclass(frozen=True)
class ReportedClaim:
    """A claim of accuracy by the paper's means: the effect in each column and its exact one-sided p.

    The p is of the claim's own test alone, without Holm's correction: the other claims cannot be tested so.
    """

    name: str
    statement: str
    effects: tuple[float, ...]
    mean: float
    ahead: int
    p: float


@dataclass(frozen=True)
class PaperAudit:
    """Everything the audit found; `alpha` is the level of its tests."""

    alpha: float
    claims: tuple[ReportedClaim, ...]
    wins: tuple[Win, ...]
    depth: tuple[DepthOrder, ...]
    scales: tuple[BestScale, ...]
    example: ExampleAudit
    split: SplitAudit
    spreads: tuple[StdSpread, ...]
    rules_sha256: str


def audit_paper(registry: Registry, rules: Rules) -> PaperAudit:
    """The audit of every table of the paper that reports numbers."""
    tables = [table for table in registry.tables if table.of_paper and table.reports]
    split = registry.table(rules.printed.split.table)
    return PaperAudit(
        alpha=rules.tests.alpha,
        claims=_claims(registry, rules),
        wins=_wins(tables, rules.tests.alpha),
        depth=tuple(_depth(table) for table in tables),
        scales=tuple(_best_scale(table, network) for table in tables for network in table.networks),
        example=_example(rules.printed.worked_example),
        split=_split(split, rules),
        spreads=tuple(_spread(table, rules.tests.level) for table in tables),
        rules_sha256=rules.sha256,
    )


def _claims(registry: Registry, rules: Rules) -> tuple[ReportedClaim, ...]:
    """The claims whose rows the paper all reports."""
    found = []
    for claim in rules.claims:
        if effects := reported_effects(contrast_of(claim), registry):
            sign = 1 if claim.direction == "greater" else -1
            found.append(
                ReportedClaim(
                    name=claim.name,
                    statement=claim.statement,
                    effects=effects,
                    mean=math.fsum(effects) / len(effects),
                    ahead=sum(sign * (effect - claim.margin) > 0 for effect in effects),
                    p=claim_p(claim, effects),
                )
            )
    return tuple(found)


def _wins(tables: Sequence[Table], alpha: float) -> tuple[Win, ...]:
    found: list[Win] = []
    for table in tables:
        for network in table.networks:
            rivals = [row for row in table.rows if row.loss != METHOD]
            rival = max(rivals, key=lambda row: row.reported[network].mean)
            for row in table.rows:
                if row.loss == METHOD:
                    found.append(_win(table, network, row, rival))
    corrected = [holm([win.tests[place].p for win in found]) for place in (0, 1)]
    pooled = [holm([win.tests[place].p_pooled for win in found]) for place in (0, 1)]
    wins = []
    for index, win in enumerate(found):
        first, second = tests = tuple(
            replace(test, p_holm=corrected[place][index], p_pooled_holm=pooled[place][index])
            for place, test in enumerate(win.tests)
        )
        wins.append(
            replace(
                win,
                tests=tests,
                within_noise=(first.p > alpha, second.p > alpha),
                within_noise_holm=(first.p_holm > alpha, second.p_holm > alpha),
            )
        )
    return tuple(wins)


def _win(table: Table, network: str, row: Row, rival: Row) -> Win:
    ours, theirs = row.reported[network], rival.reported[network]
    return Win(
        table=table.name,
        dataset=table.dataset,
        network=network,
        row=row.name,
        mean=ours.mean,
        rival=rival.name,
        rival_mean=theirs.mean,
        difference=ours.mean - theirs.mean,
        tests=tuple(_welch_test(table, row, rival, network, ddof) for ddof in (1, 0)),
        within_noise=(False, False),
        within_noise_holm=(False, False),
    )


def _welch_test(table: Table, first: Row, second: Row, network: str, ddof: int) -> WelchTest:
    a, b = first.reported[network], second.reported[network]
    spread = reported_spread(table, ddof)
    assert spread.std is not None
    # One pooled std on both sides is one estimate: its degrees of freedom count once.
    pooled = Estimate(a.mean - b.mean, spread.std * math.sqrt(2 / PAPER_RUNS), spread.degrees)
    estimate = welch(
        a.mean - b.mean,
        (sample_std(a.std, ddof), PAPER_RUNS, PAPER_RUNS - 1),
        (sample_std(b.std, ddof), PAPER_RUNS, PAPER_RUNS - 1),
    )
    low, high = estimate.interval(0.95)
    return WelchTest(
        ddof=ddof,
        t=estimate.difference / estimate.standard_error,
        degrees=estimate.degrees,
        p=estimate.p_difference,
        p_holm=1.0,
        p_pooled=pooled.p_difference,
        p_pooled_holm=1.0,
        low=low,
        high=high,
    )


def _depth(table: Table) -> DepthOrder:
    first, *others = table.networks
    leads = [
        row.reported[first].mean - max(row.reported[other].mean for other in others) for row in table.rows
    ]
    behind = [
        row.reported[first].mean - min(row.reported[other].mean for other in others) for row in table.rows
    ]
    return DepthOrder(
        table=table.name,
        title=table.title,
        first=table.networks[first],
        others=tuple(table.networks[other] for other in others),
        rows=len(table.rows),
        rows_ahead=sum(lead > 0 for lead in leads),
        smallest_lead=min(leads),
        largest_lead=max(behind),
    )


def _best_scale(table: Table, network: str) -> BestScale:
    rows = [row for row in table.rows if row.loss == METHOD]
    best = max(rows, key=lambda row: row.reported[network].mean)
    worst = min(rows, key=lambda row: row.reported[network].mean)
    first, second = (_welch_test(table, best, worst, network, ddof) for ddof in (1, 0))
    return BestScale(
        table=table.name,
        dataset=table.dataset,
        network=network,
        best=best.name,
        means=tuple((row.name, row.reported[network].mean) for row in rows),
        worst=worst.name,
        p_against_worst=(first.p, second.p),
    )


def _example(printed: WorkedExample) -> ExampleAudit:
    first, second = (_last_probability(logits) for logits in printed.logits)
    return ExampleAudit(
        logits=printed.logits,
        printed=printed.probabilities,
        computed=(first, second),
        printed_gain=printed.gain_percent,
        computed_gain=100 * (second - first),
    )


def _last_probability(logits: Sequence[float]) -> float:
    return 1 / math.fsum(math.exp(logit - logits[-1]) for logit in logits)


def _split(table: Table, rules: Rules) -> SplitAudit:
    printed, data = rules.printed.split, table.reported_data
    if data is None:
        raise RegistryError(f"{table.file}: [reported_data] is missing; {rules.file} has its [printed.split]")
    test = round(printed.test_share * printed.fewest_images)
    return SplitAudit(
        table=table.name,
        title=table.title,
        classes=data.classes,
        train_per_class=data.train_per_class,
        test_per_class=data.test_per_class,
        fewest_images=printed.fewest_images,
        train_of_smallest=printed.fewest_images - test,
        test_of_smallest=test,
    )


def _spread(table: Table, level: float) -> StdSpread:
    stds = [reported.std for row in table.rows for reported in row.reported.values()]
    pooled = reported_spread(table, 1)
    assert pooled.std is not None
    tail = (1 - level) / 2
    low, high = (
        pooled.std * math.sqrt(chi_square_quantile(p, PAPER_RUNS - 1) / (PAPER_RUNS - 1))
        for p in (tail, 1 - tail)
    )
    statistic, p = bartlett(stds, PAPER_RUNS)
    return StdSpread(
        table=table.name,
        title=table.title,
        cells=len(stds),
        pooled_ddof1=pooled.std,
        pooled_ddof0=sample_std(pooled.std, 0),
        degrees=pooled.degrees,
        smallest=min(stds),
        largest=max(stds),
        level=level,
        expected_low=low,
        expected_high=high,
        outside=sum(not low <= std <= high for std in stds),
        expected_outside=(1 - level) * len(stds),
        bartlett=statistic,
        p=p,
    )
