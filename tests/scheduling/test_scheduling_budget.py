"""What a time budget buys."""

import pytest
from sweep_bench import Bench

from repro.errors import UsageError
from repro.scheduling.durations import format_seconds, parse_duration
from repro.scheduling.estimate import Duration, Estimate
from repro.scheduling.plan import START_UP, spend


def test_a_time_is_read_as_people_write_it():
    texts = ("30m", "20h", "1d2h", "45s", "1h1m1s")
    assert [parse_duration(text) for text in texts] == [1800, 72_000, 93_600, 45, 3661]
    for text in ("", "30", "m", "2h1d", "-5m", "0m", "1.5h", "tomorrow"):
        with pytest.raises(UsageError, match="expected one such as 30m, 20h or 1d2h"):
            parse_duration(text)


def test_durations_read_naturally():
    seconds = (0, 9.94, 9.96, 59.6, 492, 3599.7, 11_100, 16.2 * 86_400)
    texts = ("0.0s", "9.9s", "10s", "1m 00s", "8m 12s", "1h 00m", "3h 05m", "16d 5h")
    assert tuple(map(format_seconds, seconds)) == texts


def estimate_by(seconds: dict[str, float]):
    """Each run of a network takes so long; a network that is not named has no estimate."""

    def estimate(runs):
        each = seconds.get(runs[0].cell.network)
        wall = None if each is None else Duration(len(runs) * each / 2, len(runs) * each)
        return Estimate(wall, wall, "told")

    return estimate


def sweep_of(bench: Bench):
    """Three columns, two seeds each, dearest first."""
    return [
        run
        for network in ("resnet50", "vgg16", "resnet18")
        for run in bench.runs(16, network=network, seeds=(0, 1))
    ]


def names(parts):
    return [(part.network, part.seed) for part in parts]


def test_the_cheapest_columns_come_first_whole_and_seed_by_seed(bench):
    cost = {"resnet50": 1000, "vgg16": 10, "resnet18": 100}
    bought = spend(8 * (10 + 10 + 100) + 3 * START_UP, sweep_of(bench), estimate_by(cost))
    assert names(bought.fits) == [("vgg16", 0), ("vgg16", 1), ("resnet18", 0)]
    assert names(bought.rest) == [("resnet18", 1), ("resnet50", 0), ("resnet50", 1)]
    assert [run.id for run in bought.runs[:8]] == [run.id for run in bench.runs(8, network="vgg16")]
    assert len(bought.runs) == 48
    assert bought.lines()[0].startswith("budget 16m 30s: 3 of 6 column seeds fit, in ")
    assert bought.lines()[-1].startswith("  the remaining time starts cifar100/resnet18 seed 1 (8 runs, ")


def test_a_column_that_is_nearly_done_is_cheap(bench):
    runs = [*bench.runs(8, network="vgg16"), *bench.runs(1, network="resnet50")]
    bought = spend(60, runs, estimate_by({"vgg16": 10, "resnet50": 30}))
    assert (names(bought.fits), names(bought.rest)) == ([("resnet50", 0)], [("vgg16", 0)])


def test_where_nothing_fits_the_cheapest_is_begun_and_it_says_so(bench):
    bought = spend(60, sweep_of(bench), estimate_by({"resnet50": 1000, "vgg16": 10, "resnet18": 100}))
    assert bought.fits == ()
    (line,) = bought.lines()
    assert "no column's seed fits completely; training starts with cifar100/vgg16 seed 0" in line


def test_a_column_of_unknown_speed_comes_last(bench):
    bought = spend(10_000, sweep_of(bench), estimate_by({"vgg16": 10}))
    assert names(bought.fits) == [("vgg16", 0), ("vgg16", 1)]
    assert names(bought.rest) == [("resnet50", 0), ("resnet50", 1), ("resnet18", 0), ("resnet18", 1)]
