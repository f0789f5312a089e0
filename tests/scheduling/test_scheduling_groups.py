"""Groups: which runs share a worker."""

from collections import Counter

from repro.scheduling.groups import group_runs


def sizes(groups):
    return [len(group) for group in groups]


def test_a_column_is_spread_over_the_slots(bench):
    runs = bench.runs(8)
    assert sizes(group_runs(runs, 1)) == [8]
    assert sizes(group_runs(runs, 2)) == [4, 4]
    assert sizes(group_runs(runs, 3)) == [3, 3, 2]
    assert sizes(group_runs(runs, 100)) == [1] * 8


def test_the_order_of_the_runs_is_kept(bench):
    runs = bench.runs(48, network="*", seeds=(0, 1))
    groups = group_runs(runs, 2)
    assert [run for group in groups for run in group] == runs
    assert {run.seed for run in groups[0] + groups[1]} == {0}


def test_a_group_shares_data_set_network_and_seed(bench):
    runs = bench.runs(1000, dataset="*", network="*", seeds=(0, 1, 2))
    for group in group_runs(runs, 4):
        assert len({(run.cell.dataset, run.cell.network, run.seed) for run in group}) == 1


def test_many_runs_are_grouped_without_losing_one(bench):
    runs = bench.runs(10_000, dataset="*", network="*", seeds=tuple(range(140)))
    grouped = Counter(run.id for group in group_runs(runs, 7) for run in group)
    assert len(runs) == 10_000
    assert grouped == Counter(run.id for run in runs)


def test_nothing_gives_no_groups():
    assert group_runs([], 3) == []
