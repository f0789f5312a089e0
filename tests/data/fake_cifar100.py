"""A tiny CIFAR-100 in the published layout: three pickles, and their archive."""

import hashlib
import io
import pickle
import tarfile
from dataclasses import replace

import numpy as np

from repro.data.cifar100 import PUBLISHED, Published

CLASSES = 5
FINE_LABELS = [f"class_{index}" for index in range(CLASSES)]


def split(name: str, per_class: int, seed: int) -> tuple[dict[str, object], np.ndarray]:
    """The dictionary of one split and its images (N, 3, 32, 32)."""
    count = CLASSES * per_class
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    content = {
        "filenames": [f"{name}_{index:03d}.png" for index in range(count)],
        "batch_label": f"{name}ing batch 1 of 1",
        "fine_labels": [index % CLASSES for index in range(count)],
        "coarse_labels": [0] * count,
        "data": images.reshape(count, 3072),
    }
    return content, images


SPLITS = {"train": split("train", 4, seed=1), "test": split("test", 2, seed=2)}


def files() -> dict[str, bytes]:
    """train (4 images per class), test (2) and meta."""
    return {
        **{name: pickle.dumps(content) for name, (content, _) in SPLITS.items()},
        "meta": pickle.dumps({"fine_label_names": FINE_LABELS, "coarse_label_names": ["all"]}),
    }


def archive(contents: dict[str, bytes]) -> bytes:
    """The files as the published archive has them, below `cifar-100-python/`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        folder = tarfile.TarInfo("cifar-100-python")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def published(contents: dict[str, bytes], packed: bytes) -> Published:
    """What would be published of these files."""
    return replace(
        PUBLISHED,
        url="http://127.0.0.1:9/none",  # refuses connections
        mirrors=(),
        archive_md5=md5(packed),
        files={name: md5(contents[name]) for name in ("meta", "train", "test")},
        pixels={name: hashlib.sha256(images).hexdigest() for name, (_, images) in SPLITS.items()},
    )


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()
