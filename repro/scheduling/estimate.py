"""How long runs take on the devices at hand, as ranges: by the speeds of records, else by a roofline."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from repro.config import Preset, Recipe
from repro.network_facts import NETWORK_FACTS, has_stem_pool
from repro.record_state import RecordState, RunState
from repro.records import RunRecord
from repro.registry import Registry, Run
from repro.scheduling.capacity import Work, why_unfit
from repro.scheduling.devices import Device
from repro.scheduling.durations import format_seconds

StalePolicy = Literal["keep", "rerun"]
"""What becomes of a run whose record was made by older training code: it counts, or it is trained again."""

EVALUATION_COST = 1 / 3  # of a test image, in training images: the forward pass of three equal parts
ROOFLINE_SHARE = (0.3, 0.7)  # what the harness reaches of the roofline, slowest network to fastest

# A card with one of these words behind its model is another card: the RTX 4090 Laptop has 57 % of an RTX
# 4090's bandwidth, the H100 PCIe two thirds of that of the H100 above (SXM).
_VARIANTS = "Ti|SUPER|D|Laptop|PCIe|NVL"

_SPREAD = 0.1  # at least, of a measured speed


@dataclass(frozen=True)
class Speed:
    """Training images a second, from `low` to `high`, and where that is from.

    Of a GPU it is what all runs on it reach together, of a CPU what one run reaches.
    """

    low: float
    high: float
    source: str


class Measured:
    """The speeds that finished runs have recorded, by device name and work."""

    def __init__(self, image_sizes: Mapping[str, int]) -> None:
        self._image_sizes = image_sizes
        self._speeds: dict[tuple[str, Work], list[tuple[float, int]]] = {}

    def add(self, record: RunRecord) -> None:
        """Takes note of a record's speed, and of how many runs shared its device."""
        provenance = record.provenance
        size = self._image_sizes.get(record.config.dataset)
        if size is not None and provenance.images_per_second > 0:
            work = Work.of(record.config.network, size, record.config.recipe)
            made = self._speeds.setdefault((provenance.device, work), [])
            made.append((provenance.images_per_second, provenance.runs_on_device))

    def speed(self, device: Device, work: Work) -> Speed | None:
        """What was measured for this work on a device of that name: the median, ± 10 % at least.

        Records of as many runs at once as the device is to have are asked first.
        """
        made = self._speeds.get((device.name, work), [])
        alike = [entry for entry in made if entry[1] == device.runs_at_once]
        # Runs on one GPU share its speed; runs on one CPU have cores of their own.
        speeds = [each * (together if device.kind == "cuda" else 1) for each, together in alike or made]
        if not speeds:
            return None
        middle = statistics.median(speeds)
        low, high = min(middle * (1 - _SPREAD), *speeds), max(middle * (1 + _SPREAD), *speeds)
        return Speed(low, high, f"measured by {len(speeds)} record{'s' if len(speeds) > 1 else ''}")


def roofline_speed(device: Device, work: Work) -> Speed | None:
    """A share of the device's roofline, at full width; None for an unknown device or network.

    Quarter-width networks are bound by launches, of which a roofline says nothing.
    """
    facts = NETWORK_FACTS.get(work.network)
    for (model, image_size), base in facts.images_per_second.items() if facts and work.width == 1 else ():
        if not _is_model(model, device.name):
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


@dataclass(frozen=True)
class DataSize:
    """How many images a data set has, from its manifest or as registered; `image_size` in px."""

    train: int
    test: int
    classes: int
    image_size: int


@dataclass(frozen=True)
class Duration:
    """Seconds, from `low` to `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = format_seconds(self.low), format_seconds(self.high)
        return low if low == high else f"{low} – {high}"

    @classmethod
    def sum(cls, durations: Iterable["Duration"]) -> "Duration":
        """One after another."""
        durations = tuple(durations)
        return cls(sum(each.low for each in durations), sum(each.high for each in durations))


@dataclass(frozen=True)
class Estimate:
    """`wall` is until the last run has ended, `busy` the GPU-seconds or core-seconds that all of them take.

    Both are None where no speed is known; `source` says where it is from, or what is missing.
    """

    wall: Duration | None
    busy: Duration | None
    source: str


@dataclass(frozen=True)
class Estimator:
    """Turns runs into time on the devices at hand.

    `recorded` has the training and test images of data sets as records found them; `begun` the share, 0 to
    1, that a checkpoint holds of a run; `precision` is None where the device decides.
    """

    registry: Registry
    preset: Preset
    devices: Sequence[Device]
    sizes: Mapping[str, DataSize]
    measured: Measured
    recorded: Mapping[str, tuple[int, int]]
    begun: Mapping[str, float] = field(default_factory=dict)
    precision: str | None = None

    def estimate(self, runs: Sequence[Run]) -> Estimate:
        """How long `runs`, of one data set and network, take on all devices."""
        devices = 0
        low = high = 0.0
        longest: dict[str, float] = {"low": 0.0, "high": 0.0}
        sources: list[str] = []
        recipes: dict[str, Recipe] = {}
        for run in runs:
            # Seeds of a cell cost the same: its recipe is resolved once.
            if run.cell.id not in recipes:
                recipes[run.cell.id] = self.registry.config(run, self.preset).recipe
            recipe = recipes[run.cell.id]
            if run.cell.dataset not in self.sizes:
                return Estimate(None, None, f"no estimate: the size of {run.cell.dataset} is not known")
            if unfit := self.why_unfit(run):
                return Estimate(None, None, f"refused: {unfit}")
            speeds = self._speeds(run, recipe)
            if isinstance(speeds, str):
                return Estimate(None, None, speeds)
            images = self._images(run, recipe) * (1 - self.begun.get(run.id, 0.0))
            devices = len(speeds)
            together_low, together_high = sum(s.low for s in speeds), sum(s.high for s in speeds)
            low += images / together_high
            high += images / together_low
            longest["low"] = max(longest["low"], images / max(s.high for s in speeds))
            longest["high"] = max(longest["high"], images / max(s.low for s in speeds))
            sources += [speed.source for speed in speeds]
        # However many devices there are, a run is trained on one.
        wall = Duration(max(low, longest["low"]), max(high, longest["high"]))
        busy = devices if self.devices[0].kind == "cuda" else devices * self.preset.threads
        return Estimate(wall, Duration(low * busy, high * busy), "; ".join(dict.fromkeys(sources)))

    def why_unfit(self, run: Run) -> str | None:
        """A sentence where the run fits the memory of no device; None where it does, or who knows."""
        if run.cell.dataset not in self.sizes:
            return None
        recipe = self.registry.config(run, self.preset).recipe
        work = Work.of(run.cell.network, self.sizes[run.cell.dataset].image_size, recipe)
        images = sum(self._counts(run, recipe))
        reasons = [why_unfit(device, work, recipe, images, self.precision) for device in self.devices]
        return reasons[0] if all(reasons) else None

    def _speeds(self, run: Run, recipe: Recipe) -> list[Speed] | str:
        """The speed of each device; a sentence where one is not known."""
        network = self.registry.networks[run.cell.network]
        work = Work.of(network, self.sizes[run.cell.dataset].image_size, recipe)
        speeds = []
        for device in self.devices:
            speed = self.measured.speed(device, work) or roofline_speed(device, work)
            if speed is None:
                return f"no estimate: no run has been recorded on {device.name} yet"
            speeds.append(speed)
        return speeds

    def _images(self, run: Run, recipe: Recipe) -> float:
        """Training images of the whole run, with the test images at what they cost."""
        train, test = self._counts(run, recipe)
        evaluations = sum(
            (epoch + 1) % recipe.evaluate_every == 0 or epoch + 1 == recipe.epochs
            for epoch in range(recipe.epochs)
        )
        return train * recipe.epochs + test * evaluations * EVALUATION_COST

    def _counts(self, run: Run, recipe: Recipe) -> tuple[int, int]:
        if not run.cell.axes and run.cell.dataset in self.recorded:
            return self.recorded[run.cell.dataset]
        size = self.sizes[run.cell.dataset]
        classes = recipe.classes or size.classes
        train, test = recipe.images_per_class, recipe.test_images_per_class
        if recipe.data == "generated":
            return classes * (train or 0), classes * (test or 0)
        return (
            min(size.train, classes * train) if train else size.train,
            min(size.test, classes * test) if test else size.test,
        )


@dataclass(frozen=True)
class Survey:
    """Where every run stands, without its record, and what all records together tell of speeds and sizes.

    Taken in one pass that keeps no record in memory. `sizes` has every data set's size before a preset's
    subset, `recorded` the training and test images that records found.
    """

    states: tuple[RunState, ...]
    sizes: Mapping[str, DataSize]
    measured: Measured
    recorded: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, states: Iterable[RunState], sizes: Mapping[str, DataSize]) -> "Survey":
        """Reads `states` to the end."""
        measured = Measured({name: size.image_size for name, size in sizes.items()})
        recorded: dict[str, tuple[int, int]] = {}
        light: list[RunState] = []
        for state in states:
            if record := state.record:
                measured.add(record)
                if state.counts and not state.run.cell.axes:
                    recorded[state.run.cell.dataset] = (record.data.train_images, record.data.test_images)
                state = replace(state, record=None)
            light.append(state)
        return cls(tuple(light), sizes, measured, recorded)

    def to_do(self, stale: StalePolicy) -> list[Run]:
        """The runs that would be trained: all without a record that counts."""
        return [state.run for state in self.states if is_to_do(state, stale)]


def is_to_do(state: RunState, stale: StalePolicy) -> bool:
    """Whether the run is trained: its record does not count, or older code made it and such are redone."""
    return not state.counts or (stale == "rerun" and state.record_state is RecordState.OLDER_CODE)
