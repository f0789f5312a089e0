"""How fast a device trains: what records measured on it, else a share of its per-kernel roofline."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from repro.recipes import Recipe
from repro.records import Provenance, RunRecord
from repro.scheduling.slots import Slot

ROOFLINE_SHARE = (0.3, 0.7)
"""What the harness reaches of the roofline, from the slowest network to the best."""

_ROOFLINES: dict[str, dict[tuple[str, int], float]] = {
    "H200": {("vgg16", 32): 225e3, ("resnet18", 32): 127e3, ("resnet50", 32): 32e3, ("vgg16", 64): 66e3},
    "A100": {("vgg16", 32): 96e3, ("resnet18", 32): 54e3, ("resnet50", 32): 14e3, ("vgg16", 64): 28e3},
    "RTX 3090": {("vgg16", 32): 28e3, ("resnet18", 32): 16e3, ("resnet50", 32): 5.1e3, ("vgg16", 64): 7.6e3},
    "GTX 1080 Ti": {
        ("vgg16", 32): 5.2e3,
        ("resnet18", 32): 2.9e3,
        ("resnet50", 32): 1.0e3,
        ("vgg16", 64): 1.3e3,
    },
}
"""Training images/s if every kernel took only what its arithmetic or its memory traffic must take
(see docs on performance), by a part of the device's name, network and image size in px; full width."""

_SPREAD = 0.1


@dataclass(frozen=True)
class Speed:
    """Training images a second, from `low` to `high`, and where that is from.

    Of a GPU it is what all runs on it reach together, of a CPU what one run reaches.
    """

    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Work:
    """What decides how fast a run trains on a device, its loss and seed apart."""

    network: str
    image_size: int
    width: float
    stem_pool: str

    @classmethod
    def of(cls, network: str, image_size: int, recipe: Recipe) -> "Work":
        """The work of a network under a recipe, on square images of `image_size` px."""
        return cls(network, image_size, recipe.width, recipe.stem_pool)


class Measured:
    """The speeds that finished runs have recorded, by device name and work."""

    def __init__(self, records: Iterable[RunRecord], image_sizes: Mapping[str, int]) -> None:
        self._made: dict[tuple[str, Work], list[Provenance]] = {}
        for record in records:
            size = image_sizes.get(record.config.dataset)
            if size is not None and record.provenance.images_per_second > 0:
                work = Work.of(record.config.network, size, record.config.recipe)
                self._made.setdefault((record.provenance.device, work), []).append(record.provenance)

    def speed(self, slot: Slot, work: Work) -> Speed | None:
        """The median of what was measured for this work on a device of the slot's name, ± 10 % at least."""
        made = self._made.get((slot.name, work))
        if not made:
            return None
        # Runs on one GPU share its speed; runs on one CPU have cores of their own.
        shared = slot.device == "cuda"
        speeds = [each.images_per_second * (each.co_tenants + 1 if shared else 1) for each in made]
        middle = statistics.median(speeds)
        low, high = middle * (1 - _SPREAD), middle * (1 + _SPREAD)
        count = "1 record" if len(speeds) == 1 else f"{len(speeds)} records"
        return Speed(min(low, *speeds), max(high, *speeds), f"measured by {count}")


def roofline_speed(slot: Slot, work: Work) -> Speed | None:
    """A share of the device's roofline, at full width; None for an unknown device or network.

    Quarter-width networks are bound by launches, of which a roofline says nothing.
    """
    for part, speeds in _ROOFLINES.items():
        if part in slot.name and work.width == 1:
            rate = _rate(speeds, work)
            if rate is not None:
                low, high = (share * rate for share in ROOFLINE_SHARE)
                return Speed(
                    low, high, f"{ROOFLINE_SHARE[0]} to {ROOFLINE_SHARE[1]} of the {part}'s roofline"
                )
    return None


def _rate(speeds: Mapping[tuple[str, int], float], work: Work) -> float | None:
    if (work.network, work.image_size) in speeds and not work.network.startswith("resnet"):
        return speeds[work.network, work.image_size]
    base = speeds.get((work.network, 32))
    if base is None or not work.network.startswith("resnet"):
        return None
    pooled = work.stem_pool == "always" or (work.stem_pool == "auto" and work.image_size >= 64)
    # Everything behind the stem shrinks with the image's area, and by four where the stem pools.
    return base * (32 / work.image_size) ** 2 * (4 if pooled else 1)
