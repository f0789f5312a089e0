"""Handwritten digits for the smoke preset: scikit-learn's `load_digits`, resized to a table's image size.

1,797 grey images of 8×8 pixels, 0 to 16 each, in ten classes; the file comes with the package, so nothing is
downloaded. All arithmetic is on integers: every machine makes the same pixels. Nothing is written to disk.

E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

import gzip
import hashlib
import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from repro.errors import DataCorruptError, DataMissingError, UsageError
from repro.manifest import PREPARATION_VERSION, ArrayFile, Manifest, Split, fingerprint_of

if TYPE_CHECKING:
    import numpy as np

    from repro.data.prepared import Arrays, Images, PreparedData

TITLE = "handwritten digits (scikit-learn)"
FILE = "sklearn/datasets/data/digits.csv.gz"  # a line per image: 64 pixels, row by row, and the digit
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
INSTALL = f"{shlex.quote(sys.executable)} -m pip install scikit-learn"
SIDE = 8  # pixels
WHITE = 16  # the brightest value in the file
TEST_EVERY = 4  # the 4th, 8th, 12th, … image of each class is for testing, the others are for training
MOST = {"classes": 10, "training images per class": 131, "test images per class": 43}
"""What there is: the rarest digit, 8, has 174 images."""


def load(image_size: int, classes: int, train_per_class: int, test_per_class: int) -> "PreparedData":
    """The first so many images of each class in either split, labels 0, 1, …, `classes` − 1, 0, 1, ….

    Images are (N, 3, image_size, image_size) uint8. Raises UsageError for more than there are,
    DataMissingError without scikit-learn, or DataCorruptError where its file is not the expected one.
    """
    import numpy as np

    from repro.data.prepared import Arrays, PreparedData, statistics

    _check(image_size, classes, train_per_class, test_per_class)
    table = np.loadtxt(gzip.decompress(read()).decode().splitlines(), delimiter=",", dtype=np.int64)
    of_class = [table[table[:, -1] == digit] for digit in range(classes)]
    splits = {}
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        chosen = [
            rows[(np.arange(len(rows)) % TEST_EVERY == TEST_EVERY - 1) == (split == "test")][:per_class]
            for rows in of_class
        ]
        rows = np.stack(chosen, axis=1).reshape(-1, SIDE * SIDE + 1)
        images = _resized(rows[:, :-1].reshape(-1, SIDE, SIDE), image_size)
        splits[split] = Arrays(images, rows[:, -1].copy())
    mean, std = statistics(splits["train"].images)
    manifest = Manifest(
        preparation_version=PREPARATION_VERSION,
        name="digits",
        title=f"{TITLE}, resized to {image_size} px",
        sources={Path(FILE).name: SHA256},
        image_size=image_size,
        class_names=tuple(map(str, range(classes))),
        train=_describe(splits["train"], "train", (image_size, classes, train_per_class)),
        test=_describe(splits["test"], "test", (image_size, classes, test_per_class)),
        mean=mean,
        std=std,
    )
    return PreparedData(manifest, **splits)


def fingerprint(image_size: int, classes: int, train_per_class: int, test_per_class: int) -> str:
    """`load(…).manifest.fingerprint()`, without reading the file or importing numpy.

    Raises UsageError and DataMissingError as `load` does.
    """
    _check(image_size, classes, train_per_class, test_per_class)
    _file()
    train = _membership("train", (image_size, classes, train_per_class))
    test = _membership("test", (image_size, classes, test_per_class))
    return fingerprint_of(PREPARATION_VERSION, {Path(FILE).name: SHA256}, train, test)


def read() -> bytes:
    """The file, as scikit-learn has it; raises DataMissingError or DataCorruptError, with the remedy."""
    content = (path := _file()).read_bytes()
    if (actual := hashlib.sha256(content).hexdigest()) != SHA256:
        again = f"{INSTALL} --force-reinstall --no-deps"
        raise DataCorruptError(f"{path} has sha256 {actual}, expected {SHA256}. Run: {again}")
    return content


def _file() -> Path:
    # Found without importing scikit-learn, which takes longer than a run's first epoch.
    try:
        path = Path(str(metadata.distribution("scikit-learn").locate_file(FILE)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        found = f"{path} does not exist" if path else "scikit-learn is not installed"
        raise DataMissingError(f"no {TITLE}: {found}. Run: {INSTALL}")
    return path


def _check(image_size: int, *counts: int) -> None:
    for (what, most), count in zip(MOST.items(), counts, strict=True):
        if not 1 <= count <= most:
            raise UsageError(f"{TITLE}: expected 1 to {most} {what}, got {count}")
    if image_size < SIDE:
        raise UsageError(f"{TITLE}: expected an image size of at least {SIDE} px, got {image_size}")


def _resized(images: "np.ndarray", size: int) -> "Images":
    """(N, 8, 8) in 0..16 → (N, 3, size, size) uint8 in 0..255: bilinear, rounded, three equal channels."""
    import numpy as np

    # Positions and weights in units of 1 / (2 · size) of a source pixel, so that they are exact.
    position = np.clip((2 * np.arange(size) + 1) * SIDE - size, 0, (SIDE - 1) * 2 * size)
    weights = np.maximum(2 * size - abs(position[:, None] - np.arange(SIDE) * 2 * size), 0)
    whole = WHITE * (2 * size) ** 2
    grey = ((weights @ images @ weights.T) * 255 + whole // 2) // whole
    return np.repeat(grey[:, None].astype(np.uint8), 3, axis=1)


def _membership(split: str, request: tuple[int, ...]) -> str:
    """Which images are in a split, and at what size, follows from the request, so its hash says so."""
    return hashlib.sha256(json.dumps([split, *request]).encode()).hexdigest()


def _describe(arrays: "Arrays", split: str, request: tuple[int, ...]) -> Split:
    images, labels = (
        ArrayFile(
            file=f"{split}-{kind} (in memory)",
            sha256=hashlib.sha256(array.data).hexdigest(),
            shape=array.shape,
            dtype=str(array.dtype),
        )
        for kind, array in (("images", arrays.images), ("labels", arrays.labels))
    )
    return Split(images=images, labels=labels, membership=_membership(split, request))
