"""How much disk a sweep takes: records and logs that stay, checkpoints while runs are under way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repro.config import Recipe
from repro.registry import Run

PARAMETERS: Mapping[str, float] = {
    "vgg16": 14.7e6,
    "vgg13": 9.4e6,
    "vgg16-4096": 33.6e6,
    "vgg-lsoftmax": 18.7e6,
    "resnet18": 11.2e6,
    "resnet50": 23.5e6,
}
"""Weights of a network at full width, on images of 64 px; they go with the square of the width."""

CHECKPOINTS = 3
"""Checkpoints of a run under way that can be there at once: two are kept while a third is written."""

_BYTES_OF_A_PARAMETER = 8  # the weight and its momentum, float32
_BYTES_OF_A_RECORD = 9_000
_BYTES_OF_AN_EPOCH = 300
_BYTES_OF_LOGS = 5_000


@dataclass(frozen=True)
class Footprint:
    """Bytes: `records` and `logs` stay, `checkpoints` are there at most while runs are under way."""

    records: int
    checkpoints: int
    logs: int

    @property
    def total(self) -> int:
        """All of it, at the worst moment."""
        return self.records + self.checkpoints + self.logs

    def __str__(self) -> str:
        return (
            f"{format_bytes(self.total)} (records {format_bytes(self.records)}, checkpoints while training "
            f"{format_bytes(self.checkpoints)}, logs and attempts {format_bytes(self.logs)})"
        )


def footprint(runs: Sequence[Run], recipe: Recipe, slots: int) -> Footprint:
    """What training `runs` adds to the disk, `slots` of them at a time."""
    largest = max((PARAMETERS.get(run.cell.network, max(PARAMETERS.values())) for run in runs), default=0.0)
    checkpoint = largest * recipe.width**2 * _BYTES_OF_A_PARAMETER
    return Footprint(
        records=len(runs) * (_BYTES_OF_A_RECORD + _BYTES_OF_AN_EPOCH * recipe.epochs),
        checkpoints=round(min(slots, len(runs)) * CHECKPOINTS * checkpoint),
        logs=len(runs) * _BYTES_OF_LOGS,
    )


def format_bytes(count: float) -> str:
    """`640 kB`, `12 MB`, `3.1 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            scaled = count / unit
            return f"{scaled:.1f} {name}" if scaled < 10 else f"{scaled:,.0f} {name}"
    return f"{count / 1e3:,.0f} kB"
