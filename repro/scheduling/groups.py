"""Which runs share a worker: those of one column and seed, spread over the slots."""

import math
from collections.abc import Iterable

from repro.config import Scalar
from repro.registry import Run

_Key = tuple[str, str, int, tuple[tuple[str, Scalar], ...]]


def group_runs(runs: Iterable[Run], slots: int) -> list[tuple[Run, ...]]:
    """The runs as groups for one worker each, in the order in which they came.

    The runs of a group share data set, network, seed and axes, so that imports, data and compilation are
    paid once; a column of 8 losses on 3 slots gives groups of 3, 3 and 2, so that no slot waits.
    """
    columns: dict[_Key, list[Run]] = {}
    for run in runs:
        key = (run.cell.dataset, run.cell.network, run.seed, run.cell.axes)
        columns.setdefault(key, []).append(run)
    groups: list[tuple[Run, ...]] = []
    for column in columns.values():
        size = math.ceil(len(column) / slots)
        groups += [tuple(column[start : start + size]) for start in range(0, len(column), size)]
    return groups
