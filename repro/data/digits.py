"""Handwritten digits for the smoke preset: scikit-learn's `load_digits`, resized to 32 pixels.

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

from repro.data import DATA_SETS
from repro.errors import DataCorruptError, DataMissingError, UsageError
from repro.manifest import PREPARATION_VERSION, ArrayFile, Manifest, Split, fingerprint_of

if TYPE_CHECKING:
    import numpy as np

    from repro.data.prepared import Arrays, Images, PreparedData

TITLE = "handwritten digits (scikit-learn), resized to 32 px"
FILE = "sklearn/datasets/data/digits.csv.gz"  # a line per image: 64 pixels, row by row, and the digit
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
INSTALL = f"{shlex.quote(sys.executable)} -m pip install scikit-learn"
SIDE = 8  # pixels
IMAGE_SIZE = 32  # pixels, in place of 64 too: a run takes half the time
WHITE = 16  # the brightest value in the file
TEST_EVERY = 4  # of each class every fourth image is for testing, the others are for training
MOST = {"classes": 10, "training images per class": 130, "test images per class": 43}
"""What there is: the rarest digit, 8, has 174 images."""


def load(name: str, classes: int, train_per_class: int, test_per_class: int) -> "PreparedData":
    """The digits in place of the data set `name`, labels 0, 1, …, `classes` − 1, 0, 1, … in both splits.

    Images are (N, 3, 32, 32) uint8. Each known set has a split of its own, or no two tables would differ.

    Raises UsageError for more than there are, DataMissingError without scikit-learn, or DataCorruptError
    where its file is not the expected one.
    """
    import numpy as np

    from repro.data.prepared import Arrays, PreparedData, statistics

    _check(classes, train_per_class, test_per_class)
    table = np.loadtxt(gzip.decompress(read()).decode().splitlines(), delimiter=",", dtype=np.int64)
    of_class = [table[table[:, -1] == digit] for digit in range(classes)]
    splits, first = {}, list(DATA_SETS).index(name) if name in DATA_SETS else TEST_EVERY - 1
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        chosen = [
            rows[(np.arange(len(rows)) % TEST_EVERY == first) == (split == "test")][:per_class]
            for rows in of_class
        ]
        rows = np.stack(chosen, axis=1).reshape(-1, SIDE * SIDE + 1)
        images = _resized(rows[:, :-1].reshape(-1, SIDE, SIDE), IMAGE_SIZE)
        splits[split] = Arrays(images, rows[:, -1].copy())
    mean, std = statistics(splits["train"].images)
    manifest = Manifest(
        preparation_version=PREPARATION_VERSION,
        name="digits",
        title=TITLE,
        sources={Path(FILE).name: SHA256},
        image_size=IMAGE_SIZE,
        class_names=tuple(map(str, range(classes))),
        train=_describe(splits["train"], "train", (name, classes, train_per_class)),
        test=_describe(splits["test"], "test", (name, classes, test_per_class)),
        mean=mean,
        std=std,
    )
    return PreparedData(manifest, **splits)


def fingerprint(name: str, classes: int, train_per_class: int, test_per_class: int) -> str:
    """`load(…).manifest.fingerprint()`, without reading the file or importing numpy.

    Raises UsageError and DataMissingError as `load` does.
    """
    _check(classes, train_per_class, test_per_class)
    _file()
    train = _membership("train", (name, classes, train_per_class))
    test = _membership("test", (name, classes, test_per_class))
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


def _check(*counts: int) -> None:
    for (what, most), count in zip(MOST.items(), counts, strict=True):
        if not 1 <= count <= most:
            raise UsageError(f"{TITLE}: expected 1 to {most} {what}, got {count}")


def _resized(images: "np.ndarray", size: int) -> "Images":
    """(N, 8, 8) in 0..16 → (N, 3, size, size) uint8 in 0..255: bilinear, rounded, three equal channels."""
    import numpy as np

    # Positions and weights in units of 1 / (2 · size) of a source pixel, so that they are exact.
    position = np.clip((2 * np.arange(size) + 1) * SIDE - size, 0, (SIDE - 1) * 2 * size)
    weights = np.maximum(2 * size - abs(position[:, None] - np.arange(SIDE) * 2 * size), 0)
    whole = WHITE * (2 * size) ** 2
    grey = ((weights @ images @ weights.T) * 255 + whole // 2) // whole
    return np.repeat(grey[:, None].astype(np.uint8), 3, axis=1)


def _membership(split: str, request: tuple[str | int, ...]) -> str:
    """Which images are in a split follows from the request, so its hash says so."""
    return hashlib.sha256(json.dumps([split, *request]).encode()).hexdigest()


def _describe(arrays: "Arrays", split: str, request: tuple[str | int, ...]) -> Split:
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
