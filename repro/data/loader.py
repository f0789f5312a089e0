"""Batches from data that live on the device: no worker process, no copy inside an epoch.

An epoch's order, crops, flips and rotations are drawn ahead on the CPU, each from the generator handed in
for it, and moved to the device together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from repro.config import Recipe
from repro.data.augment import crop_and_flip, normalise, rotate
from repro.data.prepared import Arrays, PreparedData, first_of_each_class

CIFAR100_MEAN = (0.507, 0.487, 0.441)
CIFAR100_STD = (0.267, 0.256, 0.276)

MakeGenerator = Callable[[str], torch.Generator]


@dataclass(frozen=True)
class DeviceSplit:
    """Images (N, 3, H, W) uint8 and labels (N,) int64 on the device."""

    images: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        """How many images."""
        return self.labels.shape[0]


@dataclass(frozen=True)
class Normalisation:
    """Mean and std (3,) float32 on the device, in units of 0..1, and the memory format of the batches."""

    mean: Tensor
    std: Tensor
    memory_format: torch.memory_format

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 or 0..1 float images → normalised float32 images."""
        return normalise(images, self.mean, self.std, self.memory_format)


@dataclass(frozen=True)
class EpochDraws:
    """What is random in one epoch: order (N,), crop offsets (N, 2), flips (N,), degrees (N,) or None."""

    order: Tensor
    offsets: Tensor
    flips: Tensor
    degrees: Tensor | None

    def to(self, device: torch.device) -> "EpochDraws":
        """The same draws on another device."""
        degrees = None if self.degrees is None else self.degrees.to(device, non_blocking=True)
        return EpochDraws(
            self.order.to(device, non_blocking=True),
            self.offsets.to(device, non_blocking=True),
            self.flips.to(device, non_blocking=True),
            degrees,
        )

    def copy_(self, other: "EpochDraws") -> None:
        """Takes over another epoch's draws, of as many images, in place."""
        self.order.copy_(other.order, non_blocking=True)
        self.offsets.copy_(other.offsets, non_blocking=True)
        self.flips.copy_(other.flips, non_blocking=True)
        if self.degrees is not None and other.degrees is not None:
            self.degrees.copy_(other.degrees, non_blocking=True)


def subset(data: PreparedData, recipe: Recipe) -> tuple[Arrays, Arrays]:
    """The training and test arrays that the recipe uses: all, or the first k images of each class."""
    return _first(data.train, recipe.images_per_class), _first(data.test, recipe.test_images_per_class)


def to_device(arrays: Arrays, device: torch.device) -> DeviceSplit:
    """Copies a split to the device whole."""
    # A memory map is read-only; torch wants to own what it wraps.
    images = torch.from_numpy(np.array(arrays.images))
    labels = torch.from_numpy(np.array(arrays.labels, dtype=np.int64))
    return DeviceSplit(images.to(device), labels.to(device))


def normalisation(
    data: PreparedData, recipe: Recipe, device: torch.device, memory_format: torch.memory_format
) -> Normalisation:
    """The recipe's normalisation: the data set's own training statistics, or CIFAR-100's for all."""
    own = recipe.normalization == "dataset" and data.manifest.name != "cifar100"
    mean, std = (data.manifest.mean, data.manifest.std) if own else (CIFAR100_MEAN, CIFAR100_STD)
    return Normalisation(
        torch.tensor(mean, dtype=torch.float32, device=device),
        torch.tensor(std, dtype=torch.float32, device=device),
        memory_format,
    )


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Half-open ranges of the batches of an epoch: the short last batch is kept.

    A tail of a single image joins the batch before it, because batch norm needs two.
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def draw_epoch(count: int, recipe: Recipe, make: MakeGenerator) -> EpochDraws:
    """Draws an epoch over `count` images on the CPU; `make(purpose)` gives each purpose's generator.

    What a recipe switches off is not drawn from another's generator, so switching flips off leaves order
    and crops as they were.
    """
    span = 2 * recipe.crop_padding + 1
    flips = torch.zeros(count, dtype=torch.bool)
    if recipe.flip:
        flips = torch.rand(count, generator=make("flip")) < 0.5
    degrees = None
    if recipe.rotation:
        degrees = (2 * torch.rand(count, generator=make("rotation")) - 1) * recipe.rotation
    return EpochDraws(
        order=torch.randperm(count, generator=make("order")),
        offsets=torch.randint(0, span, (count, 2), generator=make("crop")),
        flips=flips,
        degrees=degrees,
    )


def training_batch(
    split: DeviceSplit, draws: EpochDraws, bounds: tuple[int, int], padding: int, normalised: Normalisation
) -> tuple[Tensor, Tensor]:
    """One augmented, normalised batch (B, 3, H, W) float32 and its labels (B,) int64, made on the device."""
    return _augmented(split, draws, slice(*bounds), padding, normalised)


class Feed:
    """Batches of the epoch in progress, from a place that is a number on the device.

    The draws lie in buffers that stay where they are, and a batch moves the place on: a step needs nothing
    from the host, so that it can be recorded once and done again and again.
    """

    def __init__(self, split: DeviceSplit, padding: int, normalised: Normalisation) -> None:
        device = split.labels.device
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self._split, self._padding, self._normalised = split, padding, normalised
        self._draws: EpochDraws | None = None
        self._steps = torch.arange(split.count, device=device)

    def begin(self, draws: EpochDraws, position: int = 0) -> None:
        """From now on batches are those of `draws` (on any device), the first `position` images left out."""
        if self._draws is None:
            self._draws = draws.to(self.position.device)
        else:
            self._draws.copy_(draws)
        self.position.fill_(position)

    def in_format(self, memory_format: torch.memory_format) -> "Feed":
        """A feed of the same batches, from the first on, in another memory format."""
        other = Feed(self._split, self._padding, replace(self._normalised, memory_format=memory_format))
        assert self._draws is not None
        other.begin(self._draws)
        return other

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """The next `size` images, augmented and normalised (B, 3, H, W) float32, and their labels (B,)."""
        assert self._draws is not None
        part = self.position + self._steps[:size]
        images, labels = _augmented(self._split, self._draws, part, self._padding, self._normalised)
        self.position += size
        return images, labels


def _augmented(
    split: DeviceSplit, draws: EpochDraws, part: slice | Tensor, padding: int, normalised: Normalisation
) -> tuple[Tensor, Tensor]:
    index = draws.order[part]
    images = crop_and_flip(split.images, index, draws.offsets[part], draws.flips[part], padding)
    if draws.degrees is not None:
        images = rotate(images.to(torch.float32) / 255.0, draws.degrees[part])
    return normalised(images), split.labels[index]


def evaluation_batches(
    split: DeviceSplit, batch_size: int, normalised: Normalisation
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, without augmentation; the last batch is as short as it comes."""
    for start in range(0, split.count, batch_size):
        part = slice(start, start + batch_size)
        yield normalised(split.images[part]), split.labels[part]


def _first(arrays: Arrays, per_class: int | None) -> Arrays:
    if per_class is None:
        return arrays
    index = first_of_each_class(arrays.labels, per_class)
    return Arrays(images=arrays.images[index], labels=arrays.labels[index])
