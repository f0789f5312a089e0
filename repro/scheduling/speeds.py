"""How fast a device trains: what records or probes measured on it, else a share of its roofline."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from repro.network_facts import NETWORK_FACTS, has_stem_pool
from repro.records import RunRecord
from repro.scheduling.probes import ProbeResult, Work
from repro.scheduling.slots import Slot

ROOFLINE_SHARE = (0.3, 0.7)
"""What the harness reaches of the roofline, from the slowest network to the best."""

# A card with one of these words behind its model is another card: the RTX 4090 Laptop has 57 % of an RTX
# 4090's bandwidth, the H100 PCIe two thirds of that of the H100 above (SXM).
_VARIANTS = "Ti|SUPER|D|Laptop|PCIe|NVL"

_SPREAD = 0.1


@dataclass(frozen=True)
class Speed:
    """Training images a second, from `low` to `high`, and where that is from.

    Of a GPU it is what all runs on it reach together, of a CPU what one run reaches.
    """

    low: float
    high: float
    source: str


class Measured:
    """The speeds that finished runs have recorded and probes have measured, by device name and work."""

    def __init__(self, image_sizes: Mapping[str, int], probes: Iterable[ProbeResult] = ()) -> None:
        self._image_sizes = image_sizes
        self._recorded: dict[tuple[str, Work], list[tuple[float, int]]] = {}
        self._probed: dict[tuple[str, Work], list[tuple[float, int]]] = {}
        self.take_probes(probes)

    def take_probes(self, probes: Iterable[ProbeResult]) -> None:
        """What probes measured, in place of earlier ones."""
        self._probed.clear()
        for probe in probes:
            each = probe.images_per_second / probe.copies
            self._probed.setdefault((probe.device, probe.work), []).append((each, probe.copies))

    def add(self, record: RunRecord) -> None:
        """Takes note of a record's speed, and of how many runs shared its device."""
        provenance = record.provenance
        size = self._image_sizes.get(record.config.dataset)
        if size is not None and provenance.images_per_second > 0:
            work = Work.of(record.config.network, size, record.config.recipe)
            made = self._recorded.setdefault((provenance.device, work), [])
            made.append((provenance.images_per_second, provenance.runs_on_device))

    def speed(self, slot: Slot, work: Work) -> Speed | None:
        """What was measured for this work on a device of the slot's name: by records, else by probes.

        The median, ± 10 % at least. Those that shared the device with as many as the slot does are asked
        first.
        """
        for made, singular, plural in (
            (self._recorded, "1 record", "{} records"),
            (self._probed, "a probe", "{} probes"),
        ):
            speeds = _as_on(slot, made.get((slot.name, work), []))
            if speeds:
                middle = statistics.median(speeds)
                low, high = min(middle * (1 - _SPREAD), *speeds), max(middle * (1 + _SPREAD), *speeds)
                count = singular if len(speeds) == 1 else plural.format(len(speeds))
                return Speed(low, high, f"measured by {count}")
        return None


def _as_on(slot: Slot, measured: Sequence[tuple[float, int]]) -> list[float]:
    """Images a second: of all runs on a GPU together, of one run on a CPU."""
    alike = [entry for entry in measured if entry[1] == slot.co_tenants + 1]
    # Runs on one GPU share its speed; runs on one CPU have cores of their own.
    return [each * (together if slot.device == "cuda" else 1) for each, together in alike or measured]


def roofline_speed(slot: Slot, work: Work) -> Speed | None:
    """A share of the device's roofline, at full width; None for an unknown device or network.

    Quarter-width networks are bound by launches, of which a roofline says nothing.
    """
    facts = NETWORK_FACTS.get(work.network)
    for (model, image_size), base in facts.images_per_second.items() if facts and work.width == 1 else ():
        if not _is_model(model, slot.name):
            continue
        if image_size == 32 and work.network.startswith("resnet"):
            # Everything behind the stem shrinks with the image's area, and by four where the stem pools.
            pooled = has_stem_pool(work.network, work.image_size, work.stem_pool)
            rate = base * (32 / work.image_size) ** 2 * (4 if pooled else 1)
        elif image_size == work.image_size:
            rate = base
        else:
            continue
        low, high = (share * rate for share in ROOFLINE_SHARE)
        return Speed(low, high, f"{ROOFLINE_SHARE[0]} to {ROOFLINE_SHARE[1]} of the {model}'s roofline")
    return None


def _is_model(model: str, name: str) -> bool:
    """Whether a device's name, as the driver gives it, is of exactly this model: a GH200 is no H200."""
    return re.search(rf"(?<!\w){re.escape(model)}(?!\w)(?! (?:{_VARIANTS})\b)", name) is not None
