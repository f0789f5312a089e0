"""Each statistic against another implementation, a published fact, or a simulation with a fixed seed."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from repro.analysis.inference import (
    Estimate,
    PooledSpread,
    benjamini_hochberg,
    bootstrap_interval,
    holm,
    pool,
    signed_rank_p,
    signed_rank_ps,
    welch,
)

RANDOM = np.random.default_rng(7)


def test_the_pooled_spread_is_that_of_all_residuals_together():
    cells = [RANDOM.normal(70 + k, 0.3, size=n) for k, n in enumerate((3, 3, 2, 5))]
    residuals = np.concatenate([cell - cell.mean() for cell in cells])
    pooled = pool([(cell.std(ddof=1), len(cell)) for cell in cells] + [(None, 1), (None, 0)])
    assert pooled.degrees == 9
    assert pooled.std == pytest.approx(math.sqrt((residuals**2).sum() / 9), rel=1e-12)

    assert pool([(None, 1), (None, 1)]) == PooledSpread(None, 0)


def test_welchs_p_and_interval_are_scipys():
    a, b = RANDOM.normal(0, 1, 4), RANDOM.normal(0.4, 3, 6)
    estimate = welch(a.mean() - b.mean(), (a.std(ddof=1), 4, 3), (b.std(ddof=1), 6, 5))
    reference = stats.ttest_ind(a, b, equal_var=False)
    assert estimate.p_beyond(0) == pytest.approx(reference.pvalue, rel=1e-9)
    assert estimate.interval(0.9) == pytest.approx(tuple(reference.confidence_interval(0.9)), rel=1e-9)


@pytest.mark.parametrize(
    ("difference", "p", "edge"),
    [
        (0.31, "p_equivalence", 1.0),
        (-0.62, "p_equivalence", -1.0),
        (1.31, "p_beyond", 1.0),
        (-0.5, "p_beyond", 0.0),
    ],
)
def test_a_p_is_the_level_whose_interval_just_reaches_the_tolerance(difference, p, edge):
    estimate = Estimate(difference, 0.2, 60)
    level = getattr(estimate, p)(abs(edge))
    assert min(abs(end - edge) for end in estimate.interval(1 - level)) < 1e-9
    assert Estimate(0.9, 0.001, 60).p_beyond(1.0) == Estimate(1.2, 0.001, 60).p_equivalence(1.0) == 1.0


def test_equal_runs_on_both_sides_leave_no_doubt():
    same = welch(0.5, (0.0, 3, 48), (0.0, 3, 48))
    assert same.interval(0.95) == (0.5, 0.5)
    assert (same.p_beyond(0), same.p_equivalence(1.0)) == (0.0, 0.0)


def test_holm_is_the_closed_test_of_bonferroni():
    """By definition: a hypothesis falls when every set that holds it falls, each set by Bonferroni."""
    for p_values in RANDOM.uniform(0, 0.3, size=(20, 5)):
        subsets = [s for r in range(1, 6) for s in itertools.combinations(range(5), r)]
        expected = [
            max(min(1.0, len(s) * min(p_values[k] for k in s)) for s in subsets if index in s)
            for index in range(5)
        ]
        assert holm(list(p_values)) == pytest.approx(expected, rel=1e-12)


def test_benjamini_hochberg_is_scipys_false_discovery_control():
    for p_values in RANDOM.uniform(0, 1, size=(20, 9)) ** 3:
        assert benjamini_hochberg(list(p_values)) == pytest.approx(
            stats.false_discovery_control(p_values), rel=1e-12
        )


@pytest.mark.parametrize("n", [1, 9])
def test_wilcoxon_is_scipys_exact_test_alone_and_for_many_samples(n):
    samples = RANDOM.normal(0.3, 1, size=(20, n))
    assert list(signed_rank_ps(samples)) == [signed_rank_p(values) for values in samples]
    for values in samples:
        reference = stats.wilcoxon(values, alternative="greater", method="exact").pvalue
        assert signed_rank_p(list(values)) == pytest.approx(reference, rel=1e-12)


def test_wilcoxon_with_ties_and_zeros_is_the_share_of_all_signs():
    values = [0.5, 0.5, -0.5, 1.0, -2.0, 0.0, 2.0]
    kept = [value for value in values if value]
    ranks = stats.rankdata(np.abs(kept))
    observed = sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0)
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(kept))]
    assert signed_rank_p(values) == np.mean(np.array(sums) >= observed)
    assert signed_rank_p([]) == signed_rank_p([0.0, 0.0]) == 1.0


def test_the_bootstrap_is_that_of_all_resamples_scaled_and_expanded():
    strata = [[1.0, 2.0, 4.0], [0.0, 0.5, 0.1]]
    means = [[np.mean(drawn) for drawn in itertools.product(s, repeat=3)] for s in strata]
    effect = np.mean([np.mean(s) for s in strata])
    every = np.array([(a + b) / 2 - effect for a in means[0] for b in means[1]])
    scaled = every * math.sqrt(3 / 2) * stats.t.ppf(0.975, 4) / stats.norm.ppf(0.975)
    found = bootstrap_interval(strata, 0.95, 400_000, 3)
    assert found == pytest.approx(effect + np.quantile(scaled, (0.025, 0.975)), abs=0.02)


def test_a_column_of_one_seed_has_no_bootstrap_interval():
    assert bootstrap_interval([[1.0, 2.0], [3.0]], 0.95, 100, 0) is None
    assert bootstrap_interval([], 0.95, 100, 0) is None
    strata = [[1.0, 2.0, 4.0]] * 3
    assert bootstrap_interval(strata, 0.95, 1000, 5) == bootstrap_interval(strata, 0.95, 1000, 5)
