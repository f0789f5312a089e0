"""Whether a run fits a device's memory: the batch size is the recipe's, so that one that does not is refused.

Estimated from below, so that nothing is refused that would fit: what the forward pass keeps for the backward
one, weights with gradient and momentum, the data set, and CUDA's own part. What a probe measured counts more.
"""

from collections.abc import Mapping

from repro.config import Recipe
from repro.scheduling.footprint import PARAMETERS, format_bytes
from repro.scheduling.probes import Work
from repro.scheduling.slots import Slot

KEPT: Mapping[str, float] = {
    "vgg16": 2.60e6,
    "vgg13": 2.38e6,
    "vgg16-4096": 2.68e6,
    "vgg-lsoftmax": 9.97e6,
    "resnet18": 4.70e6,
    "resnet50": 25.5e6,
}
"""Bytes in float32 that the forward pass of a network keeps for the backward pass, an image of 32 px at full
width; they go with the width and with the number of pixels."""

CONTEXT = 0.4e9
"""Bytes that CUDA takes of a GPU for a process before anything is trained."""

HALF_PRECISION_FROM = (7, 0)
"""The compute capability from which training is in half precision by itself."""

# Bytes a pixel of the image that a ResNet's stem keeps: two maps of 64 channels; before a max-pool a quarter
# of a map more, and its 8-byte indices.
_STEM, _POOLED_STEM = 64 * 8, 64 * 11
_BYTES_OF_A_PARAMETER = 12  # weight, gradient and momentum, float32


def least_bytes(work: Work, recipe: Recipe, images: int, half: bool) -> float | None:
    """What a run takes of a device at least; None for a network of the user's own.

    `images` are those of its data set that lie on the device, `half` whether maps are in half precision.
    """
    if work.network not in KEPT:
        return None
    pixels = work.image_size**2
    pooled = work.network.startswith("resnet") and (
        work.stem_pool == "always" or (work.stem_pool == "auto" and work.image_size >= 64)
    )
    maps = KEPT[work.network] * work.width * pixels / 32**2
    if pooled:
        maps += work.width * pixels * (_POOLED_STEM - _STEM) - 0.75 * (maps - work.width * pixels * _STEM)
    weights = PARAMETERS[work.network] * work.width**2 * _BYTES_OF_A_PARAMETER
    return maps * recipe.batch_size * (0.5 if half else 1.0) + weights + 3 * pixels * images


def why_unfit(
    slot: Slot, work: Work, recipe: Recipe, images: int, precision: str | None = None
) -> str | None:
    """A sentence where so many runs as share the slot's device cannot all be in its memory; else None."""
    if not slot.memory_bytes:
        return None  # a cluster's machine, not known before the job starts
    if precision is not None:
        half = precision != "fp32"
    else:
        # Where it is not known how new a GPU is, or whether a CPU has bf16, the lesser need is believed.
        half = slot.capability is None or slot.capability >= HALF_PRECISION_FROM
    least = least_bytes(work, recipe, images, half)
    if least is None:
        return None
    if slot.device == "cuda":
        least += CONTEXT
    runs = slot.co_tenants + 1
    if runs * least <= slot.memory_bytes:
        return None
    each = "" if runs == 1 else f", and {runs} are to share it"
    return (
        f"{work.network} on images of {work.image_size} px in batches of {recipe.batch_size} needs at least "
        f"{format_bytes(least)} of memory in {'half precision' if half else 'float32'}, {slot.name} has "
        f"{format_bytes(slot.memory_bytes)}{each}; the batch size is the recipe's and is never changed"
    )
