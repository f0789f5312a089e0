"""A small data set called "set", written with what a test asks for; light, for processes that die."""

from pathlib import Path

import numpy as np

from repro.data.prepared import Arrays, membership
from repro.data.writer import PreparedWriter, prepare_once
from repro.manifest import Manifest


def arrays(count: int, seed: int, size: int = 8) -> Arrays:
    """Random images (count, 3, size, size) of four classes."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return Arrays(images, np.arange(count, dtype=np.int64) % 4)


def write(data_dir: Path, seed: int = 1, piece: int = 7, **changes) -> Manifest:
    """20 training and 8 test images, `piece` at a time, in place of what is there; `changes` replace parts."""
    given = {
        "train": arrays(20, seed),
        "test": arrays(8, seed + 1),
        "class_names": ["a", "b", "c", "d"],
        "sources": {"archive": "0" * 64},
        "train_membership": membership(["1", "2"]),
        "test_membership": membership(["3"]),
        **changes,
    }

    def make(writer: PreparedWriter) -> Manifest:
        for which in ("train", "test"):
            split, members = given.pop(which), given.pop(f"{which}_membership")
            pieces = (split.images[at : at + piece] for at in range(0, len(split.images), piece))
            writer.split(which, split.labels, members, pieces, split.images.shape[-1])
        return writer.finish(**given)

    return prepare_once(data_dir, "set", "Set", make, wanted=lambda there: False)
