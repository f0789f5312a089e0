"""The data that a run's configuration asks for: a prepared set, or generated data where it says so.

Needs no torch; `fingerprint` needs no array either, so that planning can tell whether a record's data are
the ones at hand.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from repro.config import RunConfig
from repro.data import described, synthetic
from repro.errors import DataMissingError
from repro.manifest import read_manifest

if TYPE_CHECKING:
    from repro.data.prepared import PreparedData


def open_for_training(config: RunConfig, data_dir: Path) -> "PreparedData":
    """The arrays to train `config` on; DataMissingError or DataCorruptError say what to do.

    Prepared arrays are hashed: what is trained on is what the manifest says, to the bit.
    """
    if config.recipe.data == "generated":
        return synthetic.generate(*_generated(config))
    from repro.data.arrays import open_prepared, verify_prepared  # numpy is not for planning

    verify_prepared(data_dir, config.dataset)
    return open_prepared(data_dir, config.dataset)


def fingerprint(config: RunConfig, data_dir: Path) -> str | None:
    """The fingerprint of the data that `config` would be trained on; None where they are not at hand."""
    if config.recipe.data == "generated":
        return synthetic.fingerprint(*_generated(config))
    try:
        return read_manifest(data_dir, config.dataset).fingerprint()
    except DataMissingError:
        return None


def _generated(config: RunConfig) -> tuple[str, int, int, int, int]:
    recipe = config.recipe
    sizes = (recipe.classes, recipe.images_per_class, recipe.test_images_per_class)
    classes, train, test = (size for size in sizes if size is not None)
    return config.dataset, described(config.dataset).image_size, classes, train, test
