"""Batches from data that live on the device: no worker processes, no copies inside an epoch.

The random numbers of an epoch (order, crops, flips, rotations, and those of the user's own augmentation) are
drawn in advance on the CPU, each kind from a generator of its own, and moved to the device together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repro.config import Recipe
from repro.data.prepared import Arrays, PreparedData, first_of_each_class
from repro.plugins import find, load
from repro.trial import try_augmentation

CIFAR100_MEAN = (0.507, 0.487, 0.441)
CIFAR100_STD = (0.267, 0.256, 0.276)

MakeGenerator = Callable[[str], torch.Generator]  # purpose → generator


@dataclass(frozen=True)
class DeviceSplit:
    """One split on the device: images (N, 3, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        """The number of images."""
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
class EpochRandomness:
    """The random numbers of one epoch over N images; row i belongs to the i-th image of the epoch.

    `order` (N,) int64 are image indices, `offsets` (N, 2) int64 crop corners, `flips` (N,) bool, `degrees`
    (N,) float32 angles, None without rotation, and `own` (N, …) what an augmentation of the user's own drew.
    """

    order: Tensor
    offsets: Tensor
    flips: Tensor
    degrees: Tensor | None
    own: Tensor | None = None

    def to(self, device: torch.device) -> "EpochRandomness":
        """A copy on another device."""
        tensors: dict[str, Any] = {
            name: each if each is None else each.to(device, non_blocking=True)
            for name, each in vars(self).items()
        }
        return EpochRandomness(**tensors)

    def copy_(self, other: "EpochRandomness") -> None:
        """Takes over the values of another epoch over as many images, in place."""
        for name, tensor in vars(self).items():
            if tensor is not None:
                tensor.copy_(getattr(other, name), non_blocking=True)


class Augmentation(Protocol):
    """An augmentation of the user's own: it gets images after crop, flip, rotation and normalisation.

    `draw` alone is random, and ahead of the epoch: so a resumed run sees the same images, every loss too, and
    `apply` can be captured in a CUDA graph.
    """

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of an epoch of `count` images: (count, …) of any dtype on the CPU."""
        ...

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """(B, 3, S, S) float32 images → as many augmented ones, given their (B, …) rows of what was drawn.

        Both are on the device that trains.
        """
        ...


def build_augmentation(
    name: str, image_size: int, device: torch.device, folder: Path | None
) -> Augmentation | None:
    """The augmentation that a recipe calls `name`, None for "none".

    `folder` is what a file is relative to. OwnCodeError if it does not do what an augmentation must.
    """
    if name == "none":
        return None
    made = load(find("augmentations", name, folder))
    augmentation: Augmentation = try_augmentation(name, lambda: made(image_size), image_size, device)
    return augmentation


def subset(data: PreparedData, recipe: Recipe) -> tuple[Arrays, Arrays]:
    """The training and test arrays that the recipe uses: all images, or the first k of each class."""

    def first(arrays: Arrays, per_class: int | None) -> Arrays:
        if per_class is None:
            return arrays
        index = first_of_each_class(arrays.labels, per_class)
        return Arrays(arrays.images[index], arrays.labels[index])

    return first(data.train, recipe.images_per_class), first(data.test, recipe.test_images_per_class)


def to_device(arrays: Arrays, device: torch.device) -> DeviceSplit:
    """Copies a whole split to the device."""
    # A memory map is read-only, and from_numpy warns about arrays that cannot be written.
    images = torch.from_numpy(np.array(arrays.images))
    labels = torch.from_numpy(np.array(arrays.labels, dtype=np.int64))
    return DeviceSplit(images.to(device), labels.to(device))


def normalisation(
    data: PreparedData, recipe: Recipe, device: torch.device, memory_format: torch.memory_format
) -> Normalisation:
    """The recipe's normalisation: by the training statistics of the data set itself, or by CIFAR-100's."""
    own = recipe.normalization == "dataset" and data.manifest.name != "cifar100"
    mean, std = (data.manifest.mean, data.manifest.std) if own else (CIFAR100_MEAN, CIFAR100_STD)
    return Normalisation(
        torch.tensor(mean, dtype=torch.float32, device=device),
        torch.tensor(std, dtype=torch.float32, device=device),
        memory_format,
    )


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Half-open ranges of the batches of an epoch; the short last batch is kept.

    A last batch of a single image is merged into the one before, because batch norm needs at least two.
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def draw_epoch(
    count: int, recipe: Recipe, make: MakeGenerator, augmentation: Augmentation | None = None
) -> EpochRandomness:
    """Draws the randomness of an epoch over `count` images on the CPU; `make(purpose)` makes its generators.

    Each purpose has a generator of its own, so switching flips off does not change order and crops.
    """
    span = 2 * recipe.crop_padding + 1
    flips = torch.zeros(count, dtype=torch.bool)
    if recipe.flip:
        flips = torch.rand(count, generator=make("flip")) < 0.5
    degrees = None
    if recipe.rotation:
        degrees = (2 * torch.rand(count, generator=make("rotation")) - 1) * recipe.rotation
    return EpochRandomness(
        order=torch.randperm(count, generator=make("order")),
        offsets=torch.randint(0, span, (count, 2), generator=make("crop")),
        flips=flips,
        degrees=degrees,
        own=augmentation.draw(count, make("augmentation")) if augmentation else None,
    )


class BatchStream:
    """The batches of the epoch in progress; `position` () int64 on the device is the first image of the next.

    The randomness is kept in buffers whose addresses never change, and making a batch advances `position`. A
    step thus needs nothing from the host, so that it can be captured once and replayed.
    """

    def __init__(
        self,
        split: DeviceSplit,
        padding: int,
        normalised: Normalisation,
        augmentation: Augmentation | None = None,
    ) -> None:
        device = split.labels.device
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self._split, self._padding, self._normalised = split, padding, normalised
        self._augmentation = augmentation
        self._randomness: EpochRandomness | None = None
        self._steps = torch.arange(split.count, device=device)

    def begin(self, randomness: EpochRandomness, position: int = 0) -> None:
        """Starts an epoch with `randomness` (on any device), skipping the first `position` images."""
        if self._randomness is None:
            self._randomness = randomness.to(self.position.device)
        else:
            self._randomness.copy_(randomness)
        self.position.fill_(position)

    def in_format(self, memory_format: torch.memory_format) -> "BatchStream":
        """A stream of the same epoch, from its first image, in another memory format."""
        normalised = replace(self._normalised, memory_format=memory_format)
        other = BatchStream(self._split, self._padding, normalised, self._augmentation)
        assert self._randomness is not None
        other.begin(self._randomness)
        return other

    def next_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """The next `size` images, augmented and normalised (B, 3, H, W) float32, and their labels (B,)."""
        drawn, split = self._randomness, self._split
        assert drawn is not None
        part = self.position + self._steps[:size]
        index = drawn.order[part]
        images = crop_and_flip(split.images, index, drawn.offsets[part], drawn.flips[part], self._padding)
        if drawn.degrees is not None:
            images = rotate(images.to(torch.float32) / 255.0, drawn.degrees[part])
        images = self._normalised(images)
        if self._augmentation is not None:
            assert drawn.own is not None
            images = self._augmentation.apply(images, drawn.own[part])
            images = images.contiguous(memory_format=self._normalised.memory_format)
        self.position += size
        return images, split.labels[index]


def evaluation_batches(
    split: DeviceSplit, batch_size: int, normalised: Normalisation
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields every image once, in order, without augmentation; the last batch may be short."""
    for start in range(0, split.count, batch_size):
        part = slice(start, start + batch_size)
        yield normalised(split.images[part]), split.labels[part]


def crop_and_flip(images: Tensor, index: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Picks images, pads them with black, crops and flips: (N, 3, H, W) uint8 → (B, 3, H, W) uint8.

    `index` (B,) int64 picks the images; `offsets` (B, 2) int64 in 0..2·padding is the crop's upper left
    corner (row, column) in the padded image; `flips` (B,) bool mirrors left and right.
    """
    # A single gather does all of it: no padded copy of the data set, no loop over images.
    height, width = images.shape[-2:]
    rows = offsets[:, :1] - padding + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    columns = offsets[:, 1:] - padding + torch.where(flips[:, None], width - 1 - across, across)
    inside = (
        ((rows >= 0) & (rows < height))[:, None, :, None]
        & ((columns >= 0) & (columns < width))[:, None, None, :]
    )  # fmt: skip
    channels = torch.arange(images.shape[1], device=images.device)
    crops = images[
        index[:, None, None, None],
        channels[None, :, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]
    return crops * inside


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotates (B, 3, H, W) float images counter-clockwise by `degrees` (B,); bilinear, black outside."""
    radians = torch.deg2rad(degrees)
    cosine, sine = torch.cos(radians), torch.sin(radians)
    zero = torch.zeros_like(cosine)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def normalise(images: Tensor, mean: Tensor, std: Tensor, memory_format: torch.memory_format) -> Tensor:
    """uint8 in 0..255 (or float already scaled to 0..1) → float32 (x − mean) / std per channel.

    `mean` and `std` are (3,) float32 in units of 0..1.
    """
    scaled = images.to(torch.float32, memory_format=memory_format)
    if not images.is_floating_point():
        scaled = scaled / 255.0
    return (scaled - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
