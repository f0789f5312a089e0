"""A prepared data set as training sees it, and the subset of its images that a reduced preset uses.

Separate from `repro.data.arrays`, which reads and writes files: how bytes are stored does not change what a
run learns from them, so only this module is part of the code hash in a record's signature.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repro.errors import UsageError
from repro.manifest import Manifest

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Arrays:
    """One split: images (N, 3, S, S) uint8 and labels (N,) int64.

    Opened from disk, the images are a read-only memory map.
    """

    images: Images
    labels: Labels


@dataclass(frozen=True)
class PreparedData:
    """A data set ready for training."""

    manifest: Manifest
    train: Arrays
    test: Arrays


def first_of_each_class(labels: Labels, k: int) -> NDArray[np.int64]:
    """Positions (M,) of the first `k` images of each class, ascending: the reduced presets' training set.

    `labels` is (N,) int64. Classes with fewer than `k` images contribute all of theirs; face sets have
    classes of different sizes. Raises UsageError for k below 1.
    """
    if k < 1:
        raise UsageError(f"images per class: expected 1 or more, got {k}")
    counts = np.bincount(labels)
    by_class = np.argsort(labels, kind="stable")
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank < k])
