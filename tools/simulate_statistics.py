"""Error rates and power of the rules, simulated: docs/statistics.md quotes what this prints.

    python tools/simulate_statistics.py > docs/simulation.txt        # about ten seconds on one core

The claims, their tests, the corrections and the bootstrap are the package's own. A run's accuracy is normal
around the true mean of its cell, with SPREAD points of standard deviation where nothing else is said; a cell
has three seeds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import special

from repro.analysis.effects import combined_means, reported_means, verdict_columns
from repro.analysis.inference import (
    PooledSpread,
    benjamini_hochberg,
    bootstrap_interval,
    holm,
    signed_rank_ps,
)
from repro.analysis.rules import Claim, read_rules
from repro.analysis.seeds import cell_seeds, reported_spread
from repro.analysis.text import points
from repro.errors import counted
from repro.registry import Registry

ROOT = Path(__file__).parents[1]
RULES = read_rules(ROOT / "experiments" / "claims.toml")
REGISTRY = Registry.load(ROOT / "experiments")
PRIMARY, SECONDARY = (
    [claim for claim in RULES.claims if claim.family == family] for family in ("primary", "secondary")
)
COLUMNS = verdict_columns(REGISTRY, RULES.tests)
PAPER = REGISTRY.paper
REPORTED = [reported_means(*column) for column in COLUMNS]

REPEATS = 20_000
SPREAD = 0.3  # points
SEEDS = 3
random = np.random.default_rng(20200)

Means = Mapping[str, np.ndarray]


def draw(claims: Sequence[Claim], truth: Mapping[str, float], n: int, shared: float = 0.0) -> Means:
    """Each row's mean in n columns, float64 of (repeats, n); its true mean is that of its loss, else 0.

    `shared` is the standard deviation of an effect of scaled BN that the three networks of a data set share.
    """
    common = shared * np.repeat(random.standard_normal((REPEATS, 3)), 3, axis=1)[:, :n]
    noise = SPREAD / SEEDS**0.5
    return {
        row: truth.get(row.partition("-")[0], 0.0)
        + noise * random.standard_normal((REPEATS, n))
        + common * row.startswith("scaled")
        for row in dict.fromkeys(row for claim in claims for row in claim.rows)
    }


def effects(claim: Claim, drawn: Means) -> np.ndarray:
    """How far each column is on the claim's side, float64 of (repeats, columns)."""
    n = next(iter(drawn.values())).shape[1]
    papers = {row: np.array([means.get(row, 0.0) for means in REPORTED[:n]]) for row in claim.rows}
    of, over = combined_means(claim, drawn, papers)
    # Factors are drawn as logarithms: no effect is 0.
    return (1 if claim.direction == "greater" else -1) * (of - over - claim.margin * (claim.unit == "points"))


def decide(claims: Sequence[Claim], drawn: Sequence[Means]) -> tuple[np.ndarray, np.ndarray]:
    """Which claims are supported, and which contradicted, bool of (repeats, claims); `drawn` per claim."""
    pairs = list(zip(claims, drawn, strict=True))
    mirrors = [(claim.instead(claim.mirror) if claim.mirror else claim, means) for claim, means in pairs]
    p = np.stack([signed_rank_ps(effects(claim, means)) for claim, means in pairs], axis=-1)
    opposite = np.stack([signed_rank_ps(-effects(claim, means)) for claim, means in mirrors], axis=-1)
    return holm(p) <= RULES.tests.alpha, holm(opposite) <= RULES.tests.alpha


def primary(truth: Mapping[str, float], n: int, shared: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Claims 1 and 2 decided on the same runs."""
    return decide(PRIMARY, [draw(PRIMARY, truth, n, shared)] * 2)


def _say(what: str, *rates: tuple[str, np.ndarray]) -> None:
    print(f"{what}: " + ", ".join(f"{name} {100 * found.mean():.1f} %" for name, found in rates))


def _claim_errors() -> None:
    print("# Wrong verdicts on claims, per family")
    for n in (6, 7, 9):
        right, wrong = primary({}, n)
        _say(
            f"primary, {n} columns, all rows equal",
            ("supported", right.any(1)),
            ("contradicted", wrong.any(1)),
        )
    for n in (7, 9):
        # Scaling alone gains less than the margin: at its null both controls gain exactly that.
        gain = {"logit": SECONDARY[-1].margin}
        drawn = [draw([claim], gain if claim is SECONDARY[-1] else {}, n) for claim in SECONDARY]
        drawn[-1] |= {
            "cross-entropy+bias=false": drawn[-1]["cross-entropy+bias=false"] + SECONDARY[-1].margin
        }
        right, wrong = decide(SECONDARY, drawn)
        _say(f"secondary, {n} columns, every effect at its margin", ("supported", right.any(1)),
            ("contradicted", wrong.any(1)))  # fmt: skip
    for n in (6, 9):
        right, wrong = primary({"scaled": 1.0, "am": 1.0, "pedcc": 1.0}, n)
        _say(f"claim 1 true by 1 point, claim 2 exactly 0, {n} columns", ("claim 2 supported", right[:, 1]),
            ("claim 2 contradicted", wrong[:, 1]))  # fmt: skip
    for n in (6, 7, 9):
        ours = decide(
            [PRIMARY[0], PRIMARY[1].model_copy(update={"mirror": None})], [draw(PRIMARY, {}, n)] * 2
        )[1]
        _say(
            f"claim 2's mirror with the rival that is better in ours, {n} columns",
            ("contradicted", ours[:, 1]),
        )
    drawn = draw(PRIMARY, {}, 9)
    looks = [
        decide(PRIMARY, [{row: of[:, :n] for row, of in drawn.items()}] * 2)[0].any(1) for n in (7, 8, 9)
    ]
    _say(
        "primary, all rows equal",
        ("one look at 9", looks[-1]),
        ("looks at 7, 8 and 9", np.any(looks, axis=0)),
    )
    for n in (6, 9):
        drawn = draw(PRIMARY, {}, n, shared=0.3)
        alone = signed_rank_ps(effects(PRIMARY[0], drawn)) <= RULES.tests.alpha
        _say(f"claim 1, effect shared by a data set's networks (sd .3), {n} columns", ("its test", alone),
            ("supported", decide(PRIMARY, [drawn] * 2)[0][:, 0]))  # fmt: skip


def _claim_power() -> None:
    print("# Power of the primary claims: scaled BN ahead of every other loss")
    for gain in (0.25, 0.5, 1.0):
        for n in (6, 9):
            right, _ = primary({"scaled": gain}, n)
            _say(f"by {points(gain)}, {n} columns", ("claim 1", right[:, 0]), ("claim 2", right[:, 1]))


def called(truth: np.ndarray, seeds: int, repeats: int = 1500) -> dict[str, np.ndarray]:
    """Verdicts on all the paper's cells, bool of (repeats, cells), and whether the interval holds the truth.

    The spread of both sides is the paper's, pooled over a table and read as ddof = 0: that reading has the
    wider interval, so a verdict that holds under it holds under both.
    """
    tables = [table for table in REGISTRY.tables if table.of_paper]
    sizes = [len(table.rows) * len(table.networks) for table in tables]
    std = np.repeat([reported_spread(table, PAPER, 0).std or 0.0 for table in tables], sizes)
    means, variances, degrees = [], [], []
    for n in (seeds, PAPER.reported.runs or 1):
        runs = std[:, None] * random.standard_normal((repeats, len(std), n))
        of_table = np.split(runs.var(axis=2, ddof=1), np.cumsum(sizes)[:-1], axis=1)
        pooled = [
            np.repeat(each.mean(axis=1, keepdims=True), size, axis=1)
            for each, size in zip(of_table, sizes, strict=True)
        ]
        means.append(runs.mean(axis=2))
        variances.append(np.concatenate(pooled, axis=1) / n)
        degrees.append(np.repeat(sizes, sizes) * (n - 1))
    error = np.sqrt(sum(variances))
    nu = error**4 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    difference = truth + means[0] - means[1]
    rules = RULES.cells

    def p(distance: np.ndarray) -> np.ndarray:
        return np.minimum(1.0, 2 * special.stdtr(nu, -distance / error))

    half = special.stdtrit(nu, (1 + rules.level) / 2) * error
    return {
        "reproduced": benjamini_hochberg(p(rules.tolerance - abs(difference))) <= rules.false_discovery_rate,
        "off": benjamini_hochberg(p(abs(difference) - rules.tolerance)) <= rules.false_discovery_rate,
        "covered": abs(difference - truth) <= half,
    }


def _cells() -> None:
    print("# Cells")
    tenth = np.where(np.arange(72) % 10 == 0, 1.0, 0.0)
    found = called(tenth, SEEDS)
    wrong = (found["reproduced"] & (tenth == 1)).sum(1) / np.maximum(1, found["reproduced"].sum(1))
    _say("a tenth of the cells truly 1 point off, the others 0", ("of those called reproduced, wrong", wrong),
        ("interval holds the truth", found["covered"]))  # fmt: skip
    third = np.where(np.arange(72) % 3 == 0, 3.0, 1.0)
    found = called(third, SEEDS)["off"]
    _say("a third of the cells truly 3 points off, the others 1", ("of those called off, wrong",
        (found & (third == 1)).sum(1) / np.maximum(1, found.sum(1))))  # fmt: skip
    _say("all cells truly .95 points off", ("called off", called(np.full(72, 0.95), SEEDS)["off"]))
    for n in (3, 4, 5):
        same, far = called(np.zeros(72), n)["reproduced"], called(np.full(72, 2.0), n)["off"]
        for place, table in enumerate(table for table in REGISTRY.tables if table.of_paper):
            advice = cell_seeds(table, PAPER, PooledSpread(None, 0), RULES.cells, n).power
            of_table = slice(24 * place, 24 * place + 24)
            _say(f"{table.heading}, {n} seeds: planned {100 * advice['reproduced']:.1f} % and "
                f"{100 * advice['off']:.1f} %; simulated", ("reproduced at 0", same[:, of_table]),
                ("off at 2 points", far[:, of_table]))  # fmt: skip


def _intervals() -> None:
    print("# Coverage of 95 % bootstrap intervals over seeds")
    for columns, n in ((1, 3), (3, 3), (9, 3), (9, 2)):
        ours, percentile = [], []
        for repeat in range(2000):
            strata = list(SPREAD * random.standard_normal((columns, n)))
            low, high = bootstrap_interval(strata, 0.95, 1000, repeat) or (0.0, 0.0)
            ours.append(low <= 0 <= high)
            drawn = sum(of[random.integers(0, n, (1000, n))].mean(axis=1) for of in strata) / columns
            low, high = np.quantile(drawn, (0.025, 0.975))
            percentile.append(low <= 0 <= high)
        _say(f"{counted(columns, 'column')} of {n} seeds", ("ours", np.array(ours)),
             ("percentile, as rliable's", np.array(percentile)))  # fmt: skip


if __name__ == "__main__":
    _claim_errors()
    _claim_power()
    _cells()
    _intervals()
