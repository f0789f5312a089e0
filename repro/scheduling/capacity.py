"""What runs need of a disk and of a device's memory, estimated before they start.

The batch size is the recipe's, so a run that does not fit a device is refused. Its need is estimated from
below, so that nothing is refused that would fit: what the forward pass keeps for the backward pass, weights
with gradient and momentum, the data set, and CUDA's own part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from repro.config import Recipe
from repro.network_facts import NETWORK_FACTS, has_stem_pool
from repro.registry import Run
from repro.scheduling.devices import Device


@dataclass(frozen=True)
class Work:
    """What decides how fast a run trains on a device and what memory it takes, its loss and seed apart."""

    network: str
    image_size: int
    width: float
    stem_pool: str

    @classmethod
    def of(cls, network: str, image_size: int, recipe: Recipe) -> "Work":
        """The work of a network under a recipe, on square images of `image_size` px."""
        return cls(network, image_size, recipe.width, recipe.stem_pool)


CHECKPOINTS = 3
"""Checkpoints of a run under way that can be there at once: two are kept while a third is written."""

_SAVED_PER_PARAMETER = 8  # bytes: the weight and its momentum, float32
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


def footprint(runs: Sequence[Run], recipe: Recipe, at_once: int) -> Footprint:
    """What training `runs` adds to the disk, `at_once` of them at a time."""
    parameters = {name: facts.parameters for name, facts in NETWORK_FACTS.items()}
    largest = max((parameters.get(run.cell.network, max(parameters.values())) for run in runs), default=0.0)
    checkpoint = largest * recipe.width**2 * _SAVED_PER_PARAMETER
    return Footprint(
        records=len(runs) * (_BYTES_OF_A_RECORD + _BYTES_OF_AN_EPOCH * recipe.epochs),
        checkpoints=round(min(at_once, len(runs)) * CHECKPOINTS * checkpoint),
        logs=len(runs) * _BYTES_OF_LOGS,
    )


def format_bytes(count: float) -> str:
    """`640 kB`, `12 MB`, `3.1 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            scaled = count / unit
            return f"{scaled:.1f} {name}" if scaled < 10 else f"{scaled:,.0f} {name}"
    return f"{count / 1e3:,.0f} kB"


CONTEXT = 0.4e9
"""Bytes that CUDA takes of a GPU for a process before anything is trained."""

HALF_PRECISION_FROM = (7, 0)
"""The compute capability from which training is in half precision by itself."""

# Bytes a pixel of the image that a ResNet's stem keeps: two maps of 64 channels; before a max-pool a quarter
# of a map more, and its 8-byte indices.
_STEM, _POOLED_STEM = 64 * 8, 64 * 11
_HELD_PER_PARAMETER = 12  # bytes: weight, gradient and momentum, float32


def least_bytes(work: Work, recipe: Recipe, images: int, half: bool) -> float | None:
    """What a run takes of a device at least; None for a network of the user's own.

    `images` are those of its data set that lie on the device, `half` whether maps are in half precision.
    """
    facts = NETWORK_FACTS.get(work.network)
    if facts is None:
        return None
    pixels = work.image_size**2
    maps = facts.kept_bytes * work.width * pixels / 32**2
    if has_stem_pool(work.network, work.image_size, work.stem_pool):
        maps += work.width * pixels * (_POOLED_STEM - _STEM) - 0.75 * (maps - work.width * pixels * _STEM)
    weights = facts.parameters * work.width**2 * _HELD_PER_PARAMETER
    return maps * recipe.batch_size * (0.5 if half else 1.0) + weights + 3 * pixels * images


def why_unfit(
    device: Device, work: Work, recipe: Recipe, images: int, precision: str | None = None
) -> str | None:
    """A sentence where the runs that share the device cannot all be in its memory; else None."""
    if not device.memory_bytes:
        return None  # a cluster's machine, not known before the job starts
    if precision is not None:
        half = precision != "fp32"
    else:
        # Where it is not known how new a GPU is, or whether a CPU has bf16, assume what needs less.
        half = device.capability is None or device.capability >= HALF_PRECISION_FROM
    least = least_bytes(work, recipe, images, half)
    if least is None:
        return None
    if device.kind == "cuda":
        least += CONTEXT
    runs = device.runs_at_once or 1
    if runs * least <= device.memory_bytes:
        return None
    each = "" if runs == 1 else f", and {runs} are to share it"
    return (
        f"{work.network} on images of {work.image_size} px in batches of {recipe.batch_size} needs at least "
        f"{format_bytes(least)} of memory in {'half precision' if half else 'float32'}, {device.name} has "
        f"{format_bytes(device.memory_bytes)}{each}; the batch size is the recipe's and is never changed"
    )
