"""Prepared data sets: memory-mapped arrays with a manifest beside them.

    <data>/<name>/prepared/manifest.json
                           train-images.npy  (N, 3, S, S) uint8      train-labels.npy  (N,) int64
                           test-images.npy   (M, 3, S, S) uint8      test-labels.npy   (M,) int64

Nothing in it depends on when or where it was made: the same input gives the same bytes. `repro.data.writer`
writes it, this module opens and verifies it.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from repro.data.download import Progress
from repro.data.prepared import Arrays, Images, Labels, PreparedData
from repro.errors import DataCorruptError, SetupError
from repro.manifest import ArrayFile, Manifest, prepared_folder, read_manifest


def open_prepared(data_dir: Path, name: str) -> PreparedData:
    """The prepared set `name`, its images memory-mapped read-only.

    Shapes, types, file sizes and the labels' range are checked against the manifest; bytes are not hashed:
    `verify_prepared` does that, and every worker before it trains.

    Raises DataMissingError, or DataCorruptError naming the file.
    """
    manifest = read_manifest(data_dir, name)
    folder = prepared_folder(data_dir, name)
    if manifest.name != name:
        raise DataCorruptError(
            f"{folder / 'manifest.json'} is of the data set {manifest.name}, expected {name}; {_remedy(name)}"
        )
    size = manifest.image_size
    opened = []
    for split in (manifest.train, manifest.test):
        images = _open_array(folder, split.images, name)
        labels = np.array(_open_array(folder, split.labels, name))
        try:
            check_images(images)
            check_labels(labels, len(images), manifest.classes)
            if images.shape[1:] != (3, size, size):
                raise ValueError(f"images are {images.shape[1:]}, the manifest says (3, {size}, {size})")
        except ValueError as error:
            raise DataCorruptError(f"{folder / split.images.file}: {error}; {_remedy(name)}") from error
        opened.append(Arrays(images, labels))
    return PreparedData(manifest, *opened)


def verify_prepared(data_dir: Path, name: str, progress: Progress | None = None) -> Manifest:
    """Read every array of the prepared set `name` and compare its sha256 with the manifest's.

    Raises DataMissingError, or DataCorruptError naming each file that differs, by a single bit or more.
    """
    manifest = open_prepared(data_dir, name).manifest
    folder = prepared_folder(data_dir, name)
    files = [file for split in (manifest.train, manifest.test) for file in (split.images, split.labels)]
    total = sum((folder / file.file).stat().st_size for file in files)
    done, damaged = 0, []
    for file in files:
        path = folder / file.file
        if (actual := _sha256(path)) != file.sha256:
            damaged.append(f"{path} has sha256 {actual}, expected {file.sha256}")
        done += path.stat().st_size
        if progress is not None:
            progress(done, total)
    if damaged:
        raise DataCorruptError(f"{'; '.join(damaged)}; {_remedy(name)}")
    return manifest


def membership(source_images: Iterable[str]) -> str:
    """The sha256 that says which source images, by name, make up a split, in which order."""
    digest = hashlib.sha256()
    for image in source_images:
        digest.update(image.encode() + b"\0")
    return digest.hexdigest()


def check_images(images: Images) -> None:
    """Raises ValueError unless `images` are (N, 3, S, S) uint8, at least one."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"expected images (N, 3, S, S) of uint8, got {images.shape} of {images.dtype}")
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square images, got {images.shape[2]} × {images.shape[3]}")


def check_labels(labels: Labels, count: int, classes: int | None = None) -> None:
    """Raises ValueError unless `labels` are (count,) int64, in 0, …, `classes` − 1 where that is given."""
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise ValueError(
            f"expected labels ({count},) of int64, one an image, got {labels.shape} of {labels.dtype}"
        )
    if classes is not None and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")


def _open_array(folder: Path, file: ArrayFile, name: str) -> np.memmap:
    path = folder / file.file
    if path.name != file.file:
        raise DataCorruptError(
            f"{folder / 'manifest.json'}: {file.file!r} is not a file's name; {_remedy(name)}"
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataCorruptError(
            f"{path} is missing, the manifest beside it lists it; {_remedy(name)}"
        ) from None
    except (ValueError, EOFError, SyntaxError) as error:
        raise DataCorruptError(f"{path} is torn or not an array ({error}); {_remedy(name)}") from error
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror or error}") from error
    found = f"{array.shape} of {array.dtype}"
    if array.shape != file.shape or str(array.dtype) != file.dtype:
        raise DataCorruptError(
            f"{path} holds {found}, the manifest says {file.shape} of {file.dtype}; {_remedy(name)}"
        )
    actual, expected = path.stat().st_size, array.offset + array.nbytes
    if actual != expected:
        raise DataCorruptError(f"{path} has {actual:,} bytes, expected {expected:,}; {_remedy(name)}")
    return array


def _remedy(name: str) -> str:
    return f"run `repro data prepare {name}` to make it anew"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
