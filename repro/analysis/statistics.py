"""Mean and spread of a cell's runs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Accuracies of n runs, in percent points: `mean` is None at n = 0, `std` at n = 0 and 1."""

    n: int
    mean: float | None
    std: float | None


def spread(accuracies: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (ddof = 1) of accuracies in percent points.

        mean = Σ a_i / n        std = √(Σ (a_i − mean)² / (n − 1))

    Computed in exact rational arithmetic and rounded once, so equal runs have a std of exactly 0. Raises
    ValueError if an accuracy is NaN or infinite: a diverged run has none and never gets here.
    """
    for accuracy in accuracies:
        if not math.isfinite(accuracy):
            raise ValueError(f"expected finite accuracies, got {accuracy}; leave diverged runs out")
    return Spread(
        n=len(accuracies),
        mean=statistics.mean(accuracies) if accuracies else None,
        std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    )
