import math

import pytest

from repro.analysis.statistics import Spread, spread


def test_no_accuracies_have_neither_mean_nor_std():
    assert spread([]) == Spread(n=0, mean=None, std=None)


def test_one_accuracy_is_its_own_mean_and_has_no_std():
    assert spread([75.12]) == Spread(n=1, mean=75.12, std=None)


@pytest.mark.parametrize("accuracies", [[74.0, 75.0], [75.12, 74.9, 75.43], [0.0, 100.0, 33.3, 12.5]])
def test_plus_minus_is_the_sample_standard_deviation(accuracies: list[float]):
    n = len(accuracies)
    mean = math.fsum(accuracies) / n
    # Independently: half the mean squared difference of all pairs is the variance with ddof = 1.
    pairs = [(a - b) ** 2 for i, a in enumerate(accuracies) for b in accuracies[:i]]
    measured = spread(accuracies)
    assert measured.n == n
    assert measured.mean == pytest.approx(mean, abs=1e-12)
    assert measured.std == pytest.approx(math.sqrt(sum(pairs) / (n * (n - 1))), abs=1e-12)


def test_equal_accuracies_have_a_std_of_exactly_zero():
    assert spread([75.1, 75.1, 75.1]) == Spread(n=3, mean=75.1, std=0.0)


def test_an_accuracy_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="diverged"):
        spread([75.0, math.nan])
