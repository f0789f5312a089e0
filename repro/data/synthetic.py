"""Generated data in the shape of a real set, for the smoke preset: they show that every part works.

A class is a smooth random pattern of colours; an image is its class's pattern, shifted a little and wrapped
around, plus noise. All arithmetic is on integers, so every machine makes the same pixels.

Nothing is written to disk, and the manifest's `generated` is set: such data never stand in for real ones.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from repro.data import dataset_info
from repro.errors import UsageError
from repro.manifest import PREPARATION_VERSION, ArrayFile, Manifest, Split, fingerprint_of

if TYPE_CHECKING:
    import numpy as np

    from repro.data.prepared import Arrays, Images, PreparedData

GENERATOR_VERSION = 1
"""Raised when the same request would give other images."""

GRID = 4
"""A pattern is GRID × GRID random colours, interpolated."""
NOISE = 48
"""The largest noise on a channel, of 255."""


def generate(
    name: str, image_size: int, classes: int, train_per_class: int, test_per_class: int
) -> "PreparedData":
    """Images in the shape of the data set `name`, labels 0, 1, …, classes − 1, 0, 1, … in both splits.

    Raises UsageError for an unknown name or sizes below 1 (8 for `image_size`).
    """
    import numpy as np

    from repro.data.prepared import Arrays, PreparedData, statistics

    def generator(purpose: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(spec.seed(purpose)))

    spec = _Spec(name, image_size, classes, train_per_class, test_per_class)
    patterns, splits = _patterns(spec, generator("patterns")), {}
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        labels = np.tile(np.arange(classes, dtype=np.int64), per_class)
        splits[split] = Arrays(_images(patterns, labels, generator(split)), labels)
    mean, std = statistics(splits["train"].images)
    manifest = Manifest(
        preparation_version=PREPARATION_VERSION,
        name=f"generated-{name}",
        title=f"generated data in the shape of {dataset_info(name).title}",
        generated=True,
        sources=spec.sources,
        image_size=image_size,
        class_names=tuple(f"pattern {index}" for index in range(classes)),
        train=_describe(splits["train"], "train", spec),
        test=_describe(splits["test"], "test", spec),
        mean=mean,
        std=std,
    )
    return PreparedData(manifest, **splits)


def fingerprint(name: str, image_size: int, classes: int, train_per_class: int, test_per_class: int) -> str:
    """`generate(…).manifest.fingerprint()`, without making a pixel or importing numpy.

    Raises UsageError as `generate` does.
    """
    spec = _Spec(name, image_size, classes, train_per_class, test_per_class)
    train, test = spec.membership("train"), spec.membership("test")
    return fingerprint_of(PREPARATION_VERSION, spec.sources, train, test)


@dataclass(frozen=True)
class _Spec:
    """What decides every pixel: the request and the generator's version, hashed."""

    name: str
    image_size: int
    classes: int
    train_per_class: int
    test_per_class: int
    generator_version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        dataset_info(self.name)
        if self.image_size < 8 or min(self.classes, self.train_per_class, self.test_per_class) < 1:
            sizes = f"{self.image_size} pixels, {self.classes} classes, {self.train_per_class} training and"
            needed = "at least 8 pixels, 1 class and 1 image per class"
            raise UsageError(
                f"generated data: expected {needed}, got {sizes} {self.test_per_class} test images per class"
            )

    @property
    def sources(self) -> dict[str, str]:
        """In the manifest's form."""
        return {"generator": self._hash("").hexdigest()}

    def membership(self, split: str) -> str:
        """Which images are in a split follows from the request, so its hash says so."""
        return self._hash(f"membership of {split}").hexdigest()

    def seed(self, purpose: str) -> int:
        """A seed for one purpose alone."""
        return int.from_bytes(self._hash(f"seed of {purpose}").digest())

    def _hash(self, purpose: str) -> "hashlib._Hash":
        return hashlib.sha256((json.dumps(asdict(self), sort_keys=True) + purpose).encode())


def _patterns(spec: _Spec, generator: "np.random.Generator") -> "np.ndarray":
    """(classes, 3, S, S) int16 in 0..255: random colours on a coarse grid, interpolated bilinearly."""
    import numpy as np

    size = spec.image_size
    grid = generator.integers(0, 256, size=(spec.classes, 3, GRID, GRID), dtype=np.int64)
    # Weights in units of 1 / (size − 1), so that the interpolation is exact.
    position = np.arange(size) * (GRID - 1)
    cell = np.minimum(position // (size - 1), GRID - 2)
    weights = np.zeros((size, GRID), dtype=np.int64)
    weights[np.arange(size), cell + 1] = position - cell * (size - 1)
    weights[np.arange(size), cell] = (size - 1) - weights[np.arange(size), cell + 1]
    smooth = weights @ grid @ weights.T // (size - 1) ** 2
    return smooth.astype(np.int16)


def _images(patterns: "np.ndarray", labels: "np.ndarray", generator: "np.random.Generator") -> "Images":
    """(N, 3, S, S) uint8: each label's pattern, shifted by up to an eighth of the image, plus noise."""
    import numpy as np

    size = patterns.shape[-1]
    shift = generator.integers(-(size // 8), size // 8 + 1, size=(2, len(labels), 1))
    rows, columns = (np.arange(size) + shift) % size
    channels, of = np.arange(3)[None, :, None, None], labels[:, None, None, None]
    shifted = patterns[of, channels, rows[:, None, :, None], columns[:, None, None, :]]
    noise = generator.integers(-NOISE, NOISE + 1, size=shifted.shape, dtype=np.int16)
    return np.clip(shifted + noise, 0, 255).astype(np.uint8)


def _describe(arrays: "Arrays", split: str, spec: _Spec) -> Split:
    images, labels = (
        ArrayFile(
            file=f"{split}-{kind} (in memory)",
            sha256=hashlib.sha256(array.data).hexdigest(),
            shape=array.shape,
            dtype=str(array.dtype),
        )
        for kind, array in (("images", arrays.images), ("labels", arrays.labels))
    )
    return Split(images=images, labels=labels, membership=spec.membership(split))
