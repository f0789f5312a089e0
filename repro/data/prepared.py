"""Prepared data sets: memory-mapped arrays with a manifest beside them, and the part that a preset uses.

    <data>/<name>/prepared/manifest.json
                           train-images.npy  (N, 3, S, S) uint8      train-labels.npy  (N,) int64
                           test-images.npy   (M, 3, S, S) uint8      test-labels.npy   (M,) int64

Nothing in it depends on when or where it was made: the same input gives the same bytes. `repro.data.writer`
writes it, this module opens and verifies it.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repro.data.files import file_hash
from repro.errors import DataCorruptError, SetupError, UsageError
from repro.manifest import ArrayFile, Manifest, prepared_folder, read_manifest

CHUNK = 1024  # images looked at together: bounds the memory, not the result

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


Channels = tuple[float, float, float]


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


def open_prepared(data_dir: Path, name: str) -> PreparedData:
    """The prepared set `name`, its images memory-mapped read-only.

    Shapes, types, file sizes and the labels' range are checked against the manifest; bytes are not hashed:
    `verify_prepared` does that, and every worker before it trains.

    Raises DataMissingError, or DataCorruptError naming the file.
    """
    manifest, folder, opened = read_manifest(data_dir, name), prepared_folder(data_dir, name), []
    try:
        if manifest.name != name:
            raise ValueError(f"manifest.json is of the data set {manifest.name}, expected {name}")
        for split in (manifest.train, manifest.test):
            images, labels = _open_array(folder, split.images), np.array(_open_array(folder, split.labels))
            expected = (split.count, 3, manifest.image_size, manifest.image_size)
            if images.shape != expected or images.dtype != np.uint8:
                raise ValueError(f"expected images {expected} of uint8, got {images.shape} of {images.dtype}")
            check_labels(labels, split.count, manifest.classes)
            opened.append(Arrays(images, labels))
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise SetupError(f"cannot read {error.filename}: {error.strerror or error}") from error
        raise DataCorruptError(
            f"{error.filename} is missing, the manifest lists it; {_remedy(name)}"
        ) from None
    except ValueError as error:
        raise DataCorruptError(f"{folder}: {error}; {_remedy(name)}") from error
    return PreparedData(manifest, *opened)


def verify_prepared(data_dir: Path, name: str) -> Manifest:
    """Read every array of the prepared set `name` and compare its sha256 with the manifest's.

    Raises DataMissingError, or DataCorruptError naming each file that differs, by a single bit or more.
    """
    manifest = open_prepared(data_dir, name).manifest
    folder = prepared_folder(data_dir, name)
    files = [file for split in (manifest.train, manifest.test) for file in (split.images, split.labels)]
    damaged = [
        f"{folder / file.file} has sha256 {actual}, expected {file.sha256}"
        for file in files
        if (actual := file_hash(folder / file.file, "sha256")) != file.sha256
    ]
    if damaged:
        raise DataCorruptError(f"{'; '.join(damaged)}; {_remedy(name)}")
    return manifest


def membership(source_images: Iterable[str]) -> str:
    """The sha256 that says which source images, by name, make up a split, in which order."""
    digest = hashlib.sha256()
    for image in source_images:
        digest.update(image.encode() + b"\0")
    return digest.hexdigest()


def check_labels(labels: Labels, count: int, classes: int | None = None) -> None:
    """Raises ValueError unless `labels` are (count,) int64, in 0, …, `classes` − 1 where that is given."""
    if labels.dtype != np.int64 or labels.shape != (count,) or not count:
        raise ValueError(f"expected labels ({count},) of int64, got {labels.shape} of {labels.dtype}")
    if classes is not None and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")


def _open_array(folder: Path, file: ArrayFile) -> np.memmap:
    if Path(file.file).name != file.file:
        raise ValueError(f"{file.file!r} is not a file's name")
    try:
        array = np.load(folder / file.file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:  # of a torn header, too
        raise ValueError(f"{file.file}: {error}") from error
    if array.shape != file.shape or str(array.dtype) != file.dtype:
        found = f"{array.shape} of {array.dtype}"
        raise ValueError(f"{file.file} holds {found}, the manifest says {file.shape} of {file.dtype}")
    return array


def _remedy(name: str) -> str:
    return f"run `repro data prepare {name}` to make it again"


def statistics(images: Images) -> tuple[Channels, Channels]:
    """Mean and standard deviation of images (N, 3, H, W) uint8, channel by channel, in 0..1.

    Summed in integers: exact whatever the order and the machine.
    """
    counts = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), CHUNK):
        for channel in range(3):
            values = images[start : start + CHUNK, channel].ravel()
            counts[channel] += np.bincount(values, minlength=256)
    n = images.size // 3
    levels = np.arange(256, dtype=object)  # Python's integers: exact at any size
    totals, squares = counts @ levels, counts @ levels**2
    stds = [
        math.sqrt(n * square - total * total) / (255 * n)
        for total, square in zip(totals, squares, strict=True)
    ]
    means = [total / (255 * n) for total in totals]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


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
