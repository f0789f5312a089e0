"""A small data set called "set", written with what a test asks for; light, for processes that die."""

from pathlib import Path

import numpy as np

from repro.data.arrays import membership, write_prepared
from repro.data.prepared import Arrays
from repro.manifest import Manifest


def arrays(count: int, seed: int, size: int = 8) -> Arrays:
    """Random images (count, 3, size, size) of four classes."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return Arrays(images, np.arange(count, dtype=np.int64) % 4)


def write(data_dir: Path, seed: int = 1, **changes) -> Manifest:
    """20 training and 8 test images; `changes` replace arguments of `write_prepared`."""
    given = {
        "title": "Set",
        "train": arrays(20, seed),
        "test": arrays(8, seed + 1),
        "class_names": ["a", "b", "c", "d"],
        "sources": {"archive": "0" * 64},
        "train_membership": membership(["1", "2"]),
        "test_membership": membership(["3"]),
    }
    return write_prepared(data_dir, "set", **{**given, **changes})
