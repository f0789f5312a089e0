"""What runs take on the available devices: time as a range, memory and disk.

Speeds are those of records, else a share of the device's roofline. The batch size is the recipe's, so a run
that does not fit a device's memory is refused; its need is estimated from below, so that nothing is refused
that would fit: what the forward pass keeps for the backward pass, weights with gradient and momentum, the
data set, and CUDA's own part.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from repro.config import Preset, Recipe, RunConfig
from repro.errors import counted
from repro.network_facts import NETWORK_FACTS, has_stem_pool
from repro.record_state import RecordState, RunState
from repro.registry import Registry, Run
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
class Work:
    """What decides how fast a run trains on a device and what memory it takes, its loss and seed apart.

    Images are square, of `image_size` px.
    """

    network: str
    image_size: int
    width: float
    stem_pool: str

    @classmethod
    def of(cls, config: RunConfig, sizes: "Mapping[str, DataSize]") -> "Work | None":
        """The work of a run; None where the size of its data set is not known."""
        if (size := sizes.get(config.dataset)) is None:
            return None
        return cls(config.network, size.image_size, config.recipe.width, config.recipe.stem_pool)


@dataclass(frozen=True)
class Speed:
    """Training images per second, from `low` to `high`, and where that is from.

    Of a GPU it is what all runs on it reach together, of a CPU what one run reaches.
    """

    low: float
    high: float
    source: str


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
    """`duration` is until the last run has ended, `busy` the GPU-seconds or core-seconds that all take.

    Both are None where no speed is known; `source` says where it is from, or what is missing.
    """

    duration: Duration | None
    busy: Duration | None
    source: str


@dataclass(frozen=True)
class Survey:
    """Where every run stands, without its record, and what all records together tell of speeds and sizes.

    Taken in one pass that keeps no record in memory. `sizes` has every data set's size before a preset's
    subset, `recorded` the training and test images that records found, `speeds` the images per second of
    records by device name and work, each with the number of runs that shared the device.
    """

    states: tuple[RunState, ...]
    sizes: Mapping[str, DataSize]
    speeds: Mapping[tuple[str, Work], Sequence[tuple[float, int]]]
    recorded: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, states: Iterable[RunState], sizes: Mapping[str, DataSize]) -> "Survey":
        """Reads `states` to the end."""
        speeds: dict[tuple[str, Work], list[tuple[float, int]]] = {}
        recorded: dict[str, tuple[int, int]] = {}
        light: list[RunState] = []
        for state in states:
            if record := state.record:
                made, work = record.provenance, Work.of(record.config, sizes)
                if work and made.images_per_second > 0:
                    measured = made.images_per_second, made.runs_on_device
                    speeds.setdefault((made.device, work), []).append(measured)
                if state.counts and not state.run.cell.axes:
                    recorded[state.run.cell.dataset] = (record.data.train_images, record.data.test_images)
                state = replace(state, record=None)
            light.append(state)
        return cls(tuple(light), sizes, speeds, recorded)

    def to_do(self, stale: StalePolicy) -> list[Run]:
        """The runs that would be trained: all without a record that counts."""
        return [state.run for state in self.states if is_to_do(state, stale)]

    def measured_speed(self, device: Device, work: Work) -> Speed | None:
        """What was measured for this work on a device of that name: the median, ± 10 % at least.

        Records of as many runs at once as the device is to have are asked first.
        """
        made = self.speeds.get((device.name, work), [])
        alike = [entry for entry in made if entry[1] == device.runs_at_once]
        # Runs on one GPU share its speed; runs on one CPU have cores of their own.
        speeds = [each * (together if device.kind == "cuda" else 1) for each, together in alike or made]
        if not speeds:
            return None
        middle = statistics.median(speeds)
        low, high = min(middle * (1 - _SPREAD), *speeds), max(middle * (1 + _SPREAD), *speeds)
        return Speed(low, high, f"measured by {counted(len(speeds), 'record')}")


@dataclass(frozen=True)
class Estimator:
    """Turns runs into time and memory on the available devices.

    `begun` has the share, 0 to 1, that a checkpoint holds of a run; `precision` is None where the device
    decides.
    """

    registry: Registry
    preset: Preset
    devices: Sequence[Device]
    survey: Survey
    begun: Mapping[str, float] = field(default_factory=dict)
    precision: str | None = None
    _configs: dict[str, RunConfig] = field(default_factory=dict, repr=False)

    def estimate(self, runs: Sequence[Run]) -> Estimate:
        """How long `runs`, of one data set and network, take on all devices."""
        shared: list[Duration] = []  # each run's, were it spread over all devices
        alone = [Duration(0.0, 0.0)]  # each run's on the fastest device
        sources: dict[str, None] = {}
        for run in runs:
            config = self.config(run)
            work = Work.of(config, self.survey.sizes)
            if work is None:
                return Estimate(None, None, f"no estimate: the size of {run.cell.dataset} is not known")
            if unfit := self.why_unfit(run):
                return Estimate(None, None, f"refused: {unfit}")
            speeds = []
            for device in self.devices:
                speed = self.survey.measured_speed(device, work) or roofline_speed(device, work)
                if speed is None:
                    why = f"no run of {config.network} at this size has been recorded on {device.name} yet"
                    return Estimate(None, None, f"no estimate: {why}")
                speeds.append(speed)
                sources[speed.source] = None
            images = self._images(run, config.recipe) * (1 - self.begun.get(run.id, 0.0))
            lows, highs = [speed.low for speed in speeds], [speed.high for speed in speeds]
            shared.append(Duration(images / sum(highs), images / sum(lows)))
            alone.append(Duration(images / max(highs), images / max(lows)))
        total = Duration.sum(shared)
        # However many devices there are, a run is trained on one.
        low, high = max(each.low for each in alone), max(each.high for each in alone)
        wall = Duration(max(total.low, low), max(total.high, high))
        units = len(self.devices) * (1 if self.devices[0].kind == "cuda" else self.preset.threads)
        return Estimate(wall, Duration(total.low * units, total.high * units), "; ".join(sources))

    def why_unfit(self, run: Run) -> str | None:
        """A sentence where the run fits the memory of no device; None where it does, or who knows."""
        config = self.config(run)
        work, recipe = Work.of(config, self.survey.sizes), config.recipe
        if work is None:
            return None
        images = sum(self._counts(run, recipe))
        reasons = [why_unfit(device, work, recipe, images, self.precision) for device in self.devices]
        return reasons[0] if all(reasons) else None

    def config(self, run: Run) -> RunConfig:
        """The run's configuration but for its seed: seeds of a cell cost the same."""
        if run.cell.id not in self._configs:
            self._configs[run.cell.id] = self.registry.config(run, self.preset)
        return self._configs[run.cell.id]

    def _images(self, run: Run, recipe: Recipe) -> float:
        """Training images of the whole run, with the test images at what they cost."""
        train, test = self._counts(run, recipe)
        evaluations = -(-recipe.epochs // recipe.evaluate_every)  # the last epoch is always evaluated
        return train * recipe.epochs + test * evaluations * EVALUATION_COST

    def _counts(self, run: Run, recipe: Recipe) -> tuple[int, int]:
        if not run.cell.axes and run.cell.dataset in self.survey.recorded:
            return self.survey.recorded[run.cell.dataset]
        size = self.survey.sizes[run.cell.dataset]
        classes = recipe.classes or size.classes
        train, test = recipe.images_per_class, recipe.test_images_per_class
        if recipe.data == "digits":
            return classes * (train or 0), classes * (test or 0)
        return (
            min(size.train, classes * train) if train else size.train,
            min(size.test, classes * test) if test else size.test,
        )


def is_to_do(state: RunState, stale: StalePolicy) -> bool:
    """Whether the run is trained: its record does not count, or older code made it and such are redone."""
    return not state.counts or (stale == "rerun" and state.record_state is RecordState.OLDER_CODE)


CHECKPOINTS = 3  # of a run in training that can be there at once: two are kept while a third is written

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


def footprint(configs: Sequence[RunConfig], at_once: int) -> Footprint:
    """What runs of these configurations add to the disk, `at_once` of them at a time."""
    parameters = {name: facts.parameters for name, facts in NETWORK_FACTS.items()}
    unknown = max(parameters.values())
    weights = (parameters.get(each.network, unknown) * each.recipe.width**2 for each in configs)
    saved = CHECKPOINTS * min(at_once, len(configs)) * _SAVED_PER_PARAMETER
    return Footprint(
        records=sum(_BYTES_OF_A_RECORD + _BYTES_OF_AN_EPOCH * each.recipe.epochs for each in configs),
        checkpoints=round(saved * max(weights, default=0.0)),
        logs=len(configs) * _BYTES_OF_LOGS,
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
    each = "" if runs == 1 else f", and {runs} are meant to share it"
    return (
        f"{work.network} on images of {work.image_size} px in batches of {recipe.batch_size} needs at least "
        f"{format_bytes(least)} of memory in {'half precision' if half else 'float32'}, {device.name} has "
        f"{format_bytes(device.memory_bytes)}{each}; the batch size is the recipe's and is never changed"
    )
