"""The statistics behind verdicts and claims, as plain functions of numbers (docs/statistics.md).

Everything is computed in float64; the distributions are scipy.special's.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


@dataclass(frozen=True)
class PooledSpread:
    """A within-cell standard deviation pooled over cells, in points, with its degrees of freedom.

        std² = Σ (n_i − 1) s_i² / Σ (n_i − 1)        degrees = Σ (n_i − 1)

    `std` is None where no cell has two runs.
    """

    std: float | None
    degrees: int


@dataclass(frozen=True)
class Estimate:
    """A difference with its standard error and (Welch–Satterthwaite) degrees of freedom."""

    difference: float
    standard_error: float
    degrees: float

    def interval(self, level: float) -> tuple[float, float]:
        """difference ∓ t_{(1 + level)/2, degrees} · standard error."""
        half = float(special.stdtrit(self.degrees, (1 + level) / 2)) * self.standard_error
        return self.difference - half, self.difference + half

    def p_equivalence(self, tolerance: float) -> float:
        """Twice the p of two one-sided tests of "the true difference is ± `tolerance` or beyond".

        It is the α whose 1 − α interval just fits within ± tolerance; 1 where the difference itself does not.
        """
        return min(1.0, 2 * self._tail(tolerance - abs(self.difference)))

    def p_beyond(self, tolerance: float) -> float:
        """Twice the one-sided p of "the true difference is within ± `tolerance`"; with 0 the two-sided p.

        It is the α whose 1 − α interval just lies beyond ± tolerance; 1 where the difference itself does not.
        """
        return min(1.0, 2 * self._tail(abs(self.difference) - tolerance))

    def _tail(self, distance: float) -> float:
        if self.standard_error == 0:
            return 0.0 if distance > 0 else 0.5
        return float(special.stdtr(self.degrees, -distance / self.standard_error))


def paired(differences: Sequence[float]) -> Estimate | None:
    """The mean of paired differences with its standard error, s/√n; None of fewer than two."""
    n = len(differences)
    return Estimate(fmean(differences), stdev(differences) / math.sqrt(n), n - 1) if n > 1 else None


def pool(spreads: Sequence[tuple[float | None, int]]) -> PooledSpread:
    """The pooled spread of cells, each (sample std with ddof = 1, n); those of one run add nothing."""
    terms = [(std, n - 1) for std, n in spreads if std is not None and n > 1]
    degrees = sum(weight for _, weight in terms)
    if not degrees:
        return PooledSpread(None, 0)
    return PooledSpread(math.sqrt(math.fsum(w * s * s for s, w in terms) / degrees), degrees)


def welch(
    difference: float, first: tuple[float, float, float], second: tuple[float, float, float]
) -> Estimate:
    """The difference of two means, each side (std, runs in the mean, degrees of freedom of the std).

    SE² = v₁ + v₂,  v_i = std_i² / n_i        degrees = SE⁴ / (v₁²/ν₁ + v₂²/ν₂)
    """
    (s1, n1, nu1), (s2, n2, nu2) = first, second
    v1, v2 = s1 * s1 / n1, s2 * s2 / n2
    if v1 + v2 == 0:
        return Estimate(difference, 0.0, nu1 + nu2)
    # In shares of the sum, so that tiny variances do not underflow when squared.
    share = v1 / (v1 + v2)
    degrees = 1 / (share**2 / nu1 + (1 - share) ** 2 / nu2)
    return Estimate(difference, math.sqrt(v1 + v2), degrees)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p, over the last axis: the familywise error rate at which each is rejected."""
    return _step(np.asarray(p_values, dtype=np.float64), lambda rank, count: count + 1 - rank, np.maximum)


def benjamini_hochberg(p_values: ArrayLike) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p, over the last axis: the false discovery rate of rejecting it."""
    return _step(np.asarray(p_values, dtype=np.float64), lambda rank, count: count / rank, np.minimum)


def _step(p: np.ndarray, weight: Callable[[np.ndarray, int], np.ndarray], bound: np.ufunc) -> np.ndarray:
    """p · weight(rank, count), made monotone from the smallest p up (maximum) or from the largest down."""
    count = p.shape[-1]
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.minimum(np.take_along_axis(p, order, -1) * weight(np.arange(1, count + 1), count), 1.0)
    way = slice(None, None, 1 if bound is np.maximum else -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, bound.accumulate(steps[..., way], axis=-1)[..., way], -1)
    return adjusted


def signed_rank_p(values: Iterable[float]) -> float:
    """Wilcoxon's exact one-sided p of "symmetric around 0" against "greater": P(W⁺ ≥ observed).

    Zeros are left out and equal sizes share their mean rank; every choice of signs is equally likely. 1 where
    nothing is left.
    """
    sizes = sorted((float(abs(value)), bool(value > 0)) for value in values if value != 0)
    # Twice the rank is whole, also where sizes tie.
    doubled: list[int] = []
    for _, group in itertools.groupby(sizes, key=lambda item: item[0]):
        count = len(list(group))
        doubled += [2 * len(doubled) + count + 1] * count
    observed = sum(rank for rank, (_, positive) in zip(doubled, sizes, strict=True) if positive)
    return sum(_rank_sums(doubled)[observed:]) / 2 ** len(doubled)


def signed_rank_ps(values: np.ndarray) -> np.ndarray:
    """`signed_rank_p` over the last axis of many samples without zeros or ties, for simulations."""
    count = values.shape[-1]
    ranks = 1 + np.abs(values).argsort(axis=-1).argsort(axis=-1)
    tails = np.cumsum(_rank_sums(range(1, count + 1))[::-1])[::-1] / 2**count
    return np.asarray(tails[(ranks * (values > 0)).sum(axis=-1)])


def _rank_sums(ranks: Iterable[int]) -> list[int]:
    """How many choices of signs give each W⁺, from 0 on."""
    ways = [1]
    for rank in ranks:
        without, with_it = [*ways, *[0] * rank], [*[0] * rank, *ways]
        ways = [a + b for a, b in zip(without, with_it, strict=True)]
    return ways


def bootstrap_interval(
    strata: Sequence[Sequence[float] | np.ndarray], level: float, resamples: int, seed: int
) -> tuple[float, float] | None:
    """An interval of the mean of the strata's means, from resampling within each; None if one has one value.

    The n_c values of a stratum are drawn with replacement. A bootstrap's variance is (n − 1)/n of the
    unbiased one, so a stratum's deviations are multiplied by √(n_c/(n_c − 1)): √(3/2) at n = 3. Its normal
    shape is too narrow for few values, so all are then multiplied by t/z at ν = Σ(n_c − 1) degrees of freedom
    (Hesterberg 2015, the expanded percentile interval).
    """
    if not strata or any(len(values) < 2 for values in strata):
        return None
    generator = np.random.default_rng(seed)
    deviations = np.zeros(resamples)
    for values in strata:
        of_stratum, count = np.asarray(values, dtype=np.float64), len(values)
        drawn = of_stratum[generator.integers(0, count, size=(resamples, count))].mean(axis=1)
        deviations += (drawn - of_stratum.mean()) * math.sqrt(count / (count - 1)) / len(strata)
    upper = (1 + level) / 2
    degrees = sum(len(values) - 1 for values in strata)
    deviations *= special.stdtrit(degrees, upper) / special.ndtri(upper)
    effect = math.fsum(math.fsum(values) / len(values) for values in strata) / len(strata)
    low, high = np.quantile(deviations, (1 - upper, upper))
    return effect + float(low), effect + float(high)


def bartlett(stds: Sequence[float], n: int) -> tuple[float, float]:
    """Bartlett's statistic and p of "all cells have one variance", each std from `n` runs (ddof = 1).

    χ² = [N ln s_p² − Σ ν ln s_i²] / [1 + (k/ν − 1/N) / (3 (k − 1))],  ν = n − 1, N = k ν, k − 1 d.f.
    """
    count, degrees = len(stds), n - 1
    pooled = math.fsum(std * std for std in stds) / count
    total = count * degrees
    spread = total * math.log(pooled) - degrees * math.fsum(math.log(std * std) for std in stds)
    statistic = spread / (1 + (count / degrees - 1 / total) / (3 * (count - 1)))
    return statistic, float(special.chdtrc(count - 1, statistic))
