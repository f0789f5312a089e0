"""What is measured: one network, image size and loss under a recipe, on a data set."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from repro.config import RunConfig
from repro.data import synthetic
from repro.data.arrays import open_prepared
from repro.data.prepared import PreparedData
from repro.errors import DataMissingError

_ENDLESS = 10**9
SETS = {32: ("cifar100", 100), 64: ("tiny-imagenet", 200)}
_GENERATED = 10_000


@dataclass(frozen=True)
class Subject:
    """A run without an end on `data`, like the run of that id; `generated` says whether the data are."""

    run_id: str
    config: RunConfig
    data: PreparedData
    generated: bool

    @property
    def name(self) -> str:
        """As in `resnet18, 32 px, scaled-bn`."""
        return f"{self.config.network}, {self.data.manifest.image_size} px, {self.config.loss}"


def make_subject(run_id: str, config: RunConfig, image_size: int, data_dir: Path) -> Subject:
    """`config` trained for ever, never evaluated, at an lr that does not diverge.

    On all images of the prepared set of that size where it is there, CIFAR-100 or TinyImageNet, else, or
    where the recipe wants generated ones, on 10,000 generated images.
    """
    changes = {"epochs": _ENDLESS, "lr_drops": (), "lr": 1e-4, "evaluate_every": _ENDLESS}
    changes |= {"images_per_class": None, "test_images_per_class": None}
    recipe = config.recipe.model_copy(update=changes)
    name, classes = SETS[image_size]
    config = config.model_copy(update={"dataset": name, "recipe": recipe})
    if recipe.data == "real":
        with contextlib.suppress(DataMissingError):
            return Subject(run_id, config, open_prepared(data_dir, name), generated=False)
    made = synthetic.generate(name, image_size, classes, _GENERATED // classes, 1)
    return Subject(run_id, config, made, generated=True)
