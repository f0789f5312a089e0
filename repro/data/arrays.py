"""Prepared data sets: memory-mapped arrays with a manifest beside them.

    <data>/<name>/prepared/manifest.json
                           train-images.npy  (N, 3, S, S) uint8      train-labels.npy  (N,) int64
                           test-images.npy   (M, 3, S, S) uint8      test-labels.npy   (M,) int64

The folder is written under another name and renamed whole, so that one which looks finished is finished.
Nothing in it depends on when or where it was made: the same input gives the same bytes.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from repro.commit import fsync_folder
from repro.data.download import Notify, Progress, explain_write_failure, one_at_a_time
from repro.data.prepared import Arrays, Images, Labels, PreparedData
from repro.errors import DataCorruptError, SetupError
from repro.manifest import (
    PREPARATION_VERSION,
    ArrayFile,
    Manifest,
    Split,
    prepared_folder,
    read_manifest,
)

CHUNK = 1024
"""Images looked at together when statistics are computed: bounds the memory, not the result."""


def write_prepared(
    data_dir: Path,
    name: str,
    *,
    title: str,
    train: Arrays,
    test: Arrays,
    class_names: Sequence[str],
    sources: Mapping[str, str],
    train_membership: str,
    test_membership: str,
    partial: str | None = None,
    notes: Sequence[str] = (),
    tools: Mapping[str, str] | None = None,
    notify: Notify | None = None,
) -> Manifest:
    """Write the arrays and their manifest to `<data_dir>/<name>/prepared`, replacing an older folder whole.

    `sources` maps each source file to its sha256, `*_membership` is what `membership` gives for a split's
    images. Mean and standard deviation (over all pixels, not a sample's) are exact to float precision.

    Raises ValueError for arrays of other shapes or types, SetupError where the folder cannot be written.
    """
    for split in (train, test):
        _check_arrays(split, len(class_names))
    mean, std = statistics(train.images)
    target = prepared_folder(data_dir, name)
    new, old = target.with_name(".prepared.writing"), target.with_name(".prepared.old")
    try:
        with one_at_a_time(target.with_name(".prepared.lock"), f"preparing {name}", notify):
            _tidy(target, new, old)  # what a killed process left; its lock is ours now
            try:
                new.mkdir(parents=True)
                manifest = Manifest(
                    preparation_version=PREPARATION_VERSION,
                    name=name,
                    title=title,
                    partial=partial,
                    notes=tuple(notes),
                    sources=dict(sources),
                    image_size=train.images.shape[-1],
                    class_names=tuple(class_names),
                    train=_write_split(new, "train", train, train_membership),
                    test=_write_split(new, "test", test, test_membership),
                    mean=mean,
                    std=std,
                    tools=dict(tools or {}),
                )
                _write_manifest(new / "manifest.json", manifest)
                fsync_folder(new)
                if target.exists():
                    target.rename(old)
                new.rename(target)
                fsync_folder(target.parent)
            finally:
                _tidy(target, new, old)
    except OSError as error:
        raise SetupError(explain_write_failure(target, error)) from error
    return manifest


def open_prepared(data_dir: Path, name: str) -> PreparedData:
    """The prepared set `name`, its images memory-mapped read-only.

    Shapes, types, file sizes and the labels' range are checked against the manifest; bytes are not hashed
    (`verify_prepared` does).

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
            _check_arrays(Arrays(images, labels), manifest.classes)
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


def statistics(images: Images) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of images (N, 3, H, W) uint8, channel by channel, in 0..1.

    Sums are integers, so the result depends neither on the order nor on the machine.
    """
    sums, squares = [0, 0, 0], [0, 0, 0]
    for start in range(0, len(images), CHUNK):
        chunk = np.asarray(images[start : start + CHUNK])
        for channel in range(3):
            counts = np.bincount(chunk[:, channel].ravel(), minlength=256).tolist()
            sums[channel] += sum(value * count for value, count in enumerate(counts))
            squares[channel] += sum(value * value * count for value, count in enumerate(counts))
    n = images.size // 3
    mean = tuple(total / (255 * n) for total in sums)
    std = tuple(
        math.sqrt(n * square - total * total) / (255 * n) for total, square in zip(sums, squares, strict=True)
    )
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _check_arrays(split: Arrays, classes: int) -> None:
    images, labels = split.images, split.labels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"expected images (N, 3, S, S) of uint8, got {images.shape} of {images.dtype}")
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square images, got {images.shape[2]} × {images.shape[3]}")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"expected labels ({len(images)},) of int64, one an image, got {labels.shape} of {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")


def _tidy(target: Path, new: Path, old: Path) -> None:
    """Remove what is half-written; an older folder goes only once the new one has its place."""
    shutil.rmtree(new, ignore_errors=True)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _write_split(folder: Path, name: str, split: Arrays, which: str) -> Split:
    return Split(
        images=_write_array(folder / f"{name}-images.npy", split.images),
        labels=_write_array(folder / f"{name}-labels.npy", split.labels),
        membership=which,
    )


def _write_array(path: Path, array: Images | Labels) -> ArrayFile:
    with path.open("wb") as stream:
        # What np.save writes, but a full disk raises an error that says so.
        whole = np.ascontiguousarray(array)
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(whole))
        stream.write(whole.data)
        stream.flush()
        os.fsync(stream.fileno())
    return ArrayFile(file=path.name, sha256=_sha256(path), shape=array.shape, dtype=str(array.dtype))


def _write_manifest(path: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    with path.open("wb") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


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
