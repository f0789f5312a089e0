"""How long runs take on the slots at hand, and what they keep busy meanwhile, as ranges."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from repro.config import Preset, Recipe
from repro.registry import Registry, Run
from repro.scheduling.device_memory import why_unfit
from repro.scheduling.durations import format_seconds
from repro.scheduling.probes import Work
from repro.scheduling.slots import Slot
from repro.scheduling.speeds import Measured, Speed, roofline_speed

EVALUATION_COST = 1 / 3
"""What a test image costs of a training image: the forward pass of three equal parts."""


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
    """Turns runs into time on the slots at hand.

    `recorded` has the training and test images of data sets as records found them; `begun` the share, 0 to
    1, that a checkpoint holds of a run; `precision` is None where the device decides.
    """

    registry: Registry
    preset: Preset
    slots: Sequence[Slot]
    sizes: Mapping[str, DataSize]
    measured: Measured
    recorded: Mapping[str, tuple[int, int]]
    begun: Mapping[str, float] = field(default_factory=dict)
    precision: str | None = None

    def estimate(self, runs: Sequence[Run]) -> Estimate:
        """How long `runs`, of one data set and network, take on all slots."""
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
        # However many slots there are, a run is trained on one.
        wall = Duration(max(low, longest["low"]), max(high, longest["high"]))
        busy = devices if self.slots[0].device == "cuda" else devices * self.preset.threads
        return Estimate(wall, Duration(low * busy, high * busy), "; ".join(dict.fromkeys(sources)))

    def why_unfit(self, run: Run) -> str | None:
        """A sentence where the run fits the memory of no slot; None where it does, or who knows."""
        if run.cell.dataset not in self.sizes:
            return None
        recipe = self.registry.config(run, self.preset).recipe
        work = Work.of(run.cell.network, self.sizes[run.cell.dataset].image_size, recipe)
        images = sum(self._counts(run, recipe))
        reasons = [why_unfit(slot, work, recipe, images, self.precision) for slot in self.slots]
        return reasons[0] if all(reasons) else None

    def _speeds(self, run: Run, recipe: Recipe) -> list[Speed] | str:
        """The speed of each GPU or CPU slot; a sentence where one is not known."""
        network = self.registry.networks[run.cell.network]
        work = Work.of(network, self.sizes[run.cell.dataset].image_size, recipe)
        speeds = []
        for slot in self.slots:
            if slot.device == "cuda" and slot.share > 0:
                continue
            speed = self.measured.speed(slot, work) or roofline_speed(slot, work)
            if speed is None:
                return f"no estimate: no speed measured on {slot.name} yet"
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
