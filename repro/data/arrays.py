"""Prepared data sets: memory-mapped arrays with a manifest beside them.

    <data>/<name>/prepared/manifest.json
                           train-images.npy  (N, 3, S, S) uint8      train-labels.npy  (N,) int64
                           test-images.npy   (M, 3, S, S) uint8      test-labels.npy   (M,) int64

Nothing in it depends on when or where it was made: the same input gives the same bytes. `repro.data.writer`
writes it, this module opens and verifies it.
"""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from repro.data.files import file_hash
from repro.data.prepared import Arrays, Images, Labels, PreparedData
from repro.errors import DataCorruptError, SetupError
from repro.manifest import ArrayFile, Manifest, prepared_folder, read_manifest

CHUNK = 1024  # images looked at together: bounds the memory, not the result

Channels = tuple[float, float, float]


def open_prepared(data_dir: Path, name: str) -> PreparedData:
    """The prepared set `name`, its images memory-mapped read-only.

    Shapes, types, file sizes and the labels' range are checked against the manifest; bytes are not hashed:
    `verify_prepared` does that, and every worker before it trains.

    Raises DataMissingError, or DataCorruptError naming the file.
    """
    manifest = read_manifest(data_dir, name)
    folder = prepared_folder(data_dir, name)
    path = folder / "manifest.json"
    try:
        if manifest.name != name:
            raise ValueError(f"it is of the data set {manifest.name}, expected {name}")
        opened = []
        for split in (manifest.train, manifest.test):
            path = folder / split.labels.file
            labels = np.array(_open_array(folder, split.labels))
            check_labels(labels, split.count, manifest.classes)
            path = folder / split.images.file
            images = _open_array(folder, split.images)
            expected = (split.count, 3, manifest.image_size, manifest.image_size)
            if images.shape != expected or images.dtype != np.uint8:
                raise ValueError(f"expected images {expected} of uint8, got {images.shape} of {images.dtype}")
            opened.append(Arrays(images, labels))
    except FileNotFoundError:
        raise DataCorruptError(f"{path} is missing, the manifest lists it; {_remedy(name)}") from None
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, SyntaxError) as error:  # of a torn header, too
        raise DataCorruptError(f"{path}: {error}; {_remedy(name)}") from error
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
    path = folder / file.file
    if path.name != file.file:
        raise ValueError(f"{file.file!r} is not a file's name")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != file.shape or str(array.dtype) != file.dtype:
        found = f"{array.shape} of {array.dtype}"
        raise ValueError(f"holds {found}, the manifest says {file.shape} of {file.dtype}")
    if (actual := path.stat().st_size) != (expected := array.offset + array.nbytes):
        raise ValueError(f"has {actual:,} bytes, expected {expected:,}")
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
