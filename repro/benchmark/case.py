"""What is measured: one network, image size and loss under a recipe, on a data set."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from repro.config import RunConfig
from repro.data import synthetic
from repro.data.prepared import PreparedData, open_prepared
from repro.errors import DataMissingError
from repro.losses.base import ClassificationLoss
from repro.training.loop import build

DATA_SETS = {32: ("cifar100", 100), 64: ("tiny-imagenet", 200)}  # pixels per side → name, classes
_ENDLESS = 10**9
_GENERATED = 10_000  # images


@dataclass(frozen=True)
class Case:
    """A run without an end on `data`, prepared or generated."""

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
    where the recipe wants generated ones, on 10,000 generated images.
    """
    changes = {"epochs": _ENDLESS, "lr_drops": (), "lr": 1e-4, "evaluate_every": _ENDLESS}
    changes |= {"images_per_class": None, "test_images_per_class": None}
    recipe = config.recipe.model_copy(update=changes)
    name, classes = DATA_SETS[image_size]
    config = config.model_copy(update={"dataset": name, "recipe": recipe})
    if recipe.data == "real":
        with contextlib.suppress(DataMissingError):
            return Case(config, open_prepared(data_dir, name))
    return Case(config, synthetic.generate(name, image_size, classes, _GENERATED // classes, 1))
