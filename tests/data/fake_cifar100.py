"""A tiny CIFAR-100 in the published format: pickles as Python 2 wrote them, and their archive."""

import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

from repro.data.cifar100 import Source

CLASSES = 5
FINE_LABELS = [f"class_{index}" for index in range(CLASSES)]


def python2_pickle(content: dict[str, object]) -> bytes:
    """Protocol 2 of Python 2, opcode by opcode: strings are bytes, arrays go through numpy.core."""
    return b"\x80\x02" + _dump(content) + b"."


def _dump(value: object) -> bytes:
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case None:
            return b"N"
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return _dump(value.encode())
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case tuple() | list():
            items = b"".join(map(_dump, value))
            return b"(" + items + b"t" if isinstance(value, tuple) else b"](" + items + b"e"
        case dict():
            pairs = b"".join(_dump(key) + _dump(item) for key, item in value.items())
            return b"}(" + pairs + b"u"
        case np.ndarray():
            made = (
                b"cnumpy.core.multiarray\n_reconstruct\n"
                + b"(cnumpy\nndarray\n"
                + _dump((0,))
                + b"U\x01bt"
                + b"R"
            )
            pixel_type = b"cnumpy\ndtype\n" + _dump((value.dtype.str[1:], 0, 1)) + b"R"
            pixel_type += _dump((3, "|", None, None, None, -1, -1, 0)) + b"b"
            state = _dump(1) + _dump(value.shape) + pixel_type + _dump(False) + _dump(value.tobytes())
            return made + b"(" + state + b"tb"
    raise TypeError(type(value))


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


def files() -> dict[str, bytes]:
    """train (4 images a class), test (2) and meta."""
    return {
        "train": python2_pickle(split("train", 4, seed=1)[0]),
        "test": python2_pickle(split("test", 2, seed=2)[0]),
        "meta": python2_pickle({"fine_label_names": FINE_LABELS, "coarse_label_names": ["all"]}),
    }


def archive(contents: dict[str, bytes], compression: str = "gz") -> bytes:
    """The files as the published archive has them, below `cifar-100-python/`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
        folder = tarfile.TarInfo("cifar-100-python")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def source(contents: dict[str, bytes], packed: bytes, url: str = "http://127.0.0.1:9/none") -> Source:
    """What would be published of these files."""
    return Source(
        url=url,
        archive="cifar-100-python.tar.gz",
        archive_md5=md5(packed),
        folder="cifar-100-python",
        files={name: md5(contents[name]) for name in ("meta", "train", "test")},
        max_bytes=10_000_000,
    )


def lay_out(contents: dict[str, bytes], folder: Path) -> Path:
    """Write the files into `folder`."""
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()
