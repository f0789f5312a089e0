"""What is measured: one network, image size and loss under a recipe, on a data set."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from repro.config import RunConfig
from repro.data.prepared import Arrays, PreparedData, open_prepared, statistics
from repro.errors import DataMissingError
from repro.losses.base import ClassificationLoss
from repro.manifest import PREPARATION_VERSION, ArrayFile, Manifest, Split
from repro.training.loop import build

DATA_SETS = {32: ("cifar100", 100), 64: ("tiny-imagenet", 200)}  # pixels per side → name, classes
_ENDLESS = 10**9
_GENERATED = 10_000  # images


@dataclass(frozen=True)
class Case:
    """A run without an end on `data`, prepared or noise."""

    config: RunConfig
    data: PreparedData

    @property
    def name(self) -> str:
        """As in `resnet18, 32 px, cross-entropy`."""
        return f"{self.config.network}, {self.data.manifest.image_size} px, {self.config.loss}"

    def build(self) -> tuple[nn.Module, ClassificationLoss]:
        """A new network and loss."""
        return build(self.config, self.data.manifest.image_size, self.data.manifest.classes)


def open_case(config: RunConfig, image_size: int, data_dir: Path) -> Case:
    """`config` trained for ever, never evaluated, at an lr that does not diverge.

    On all images of the prepared set of that size where it is there, CIFAR-100 or TinyImageNet, else, or
    where the recipe wants handwritten digits, on 10,000 images of noise: pixels do not change the speed.
    """
    changes = {"epochs": _ENDLESS, "lr_drops": (), "lr": 1e-4, "evaluate_every": _ENDLESS}
    changes |= {"images_per_class": None, "test_images_per_class": None}
    recipe = config.recipe.model_copy(update=changes)
    name, classes = DATA_SETS[image_size]
    config = config.model_copy(update={"dataset": name, "recipe": recipe})
    if recipe.data == "real":
        with contextlib.suppress(DataMissingError):
            return Case(config, open_prepared(data_dir, name))
    return Case(config, noise(image_size, classes, _GENERATED))


def noise(image_size: int, classes: int, count: int) -> PreparedData:
    """`count` training images of noise and a test image per class, (N, 3, image_size, image_size) uint8."""
    random, made = np.random.Generator(np.random.PCG64(0)), []
    for images in (count, classes):
        pixels = random.integers(0, 256, (images, 3, image_size, image_size), dtype=np.uint8)
        made.append(Arrays(pixels, np.arange(images, dtype=np.int64) % classes))
    mean, std = statistics(made[0].images)
    manifest = Manifest(
        preparation_version=PREPARATION_VERSION,
        name="noise",
        title="generated",
        generated=True,
        sources={},
        image_size=image_size,
        class_names=tuple(map(str, range(classes))),
        train=_split(made[0]),
        test=_split(made[1]),
        mean=mean,
        std=std,
    )
    return PreparedData(manifest, *made)


def _split(arrays: Arrays) -> Split:
    images, labels = (
        ArrayFile(file="", sha256="", shape=array.shape, dtype=str(array.dtype))
        for array in (arrays.images, arrays.labels)
    )
    return Split(images=images, labels=labels, membership="")
