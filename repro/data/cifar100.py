"""CIFAR-100: where it comes from, what its bytes must be, and how it becomes prepared arrays.

Files already on disk are used where they are: in `<data>/cifar100/raw/cifar-100-python/`, in
`<data>/cifar-100-python/` (torchvision's layout, so --data-dir may point at a torchvision root), or in the
archive `cifar-100-python.tar.gz` in `<data>/cifar100/raw` or `<data>`, which is never unpacked to disk.
"""

import hashlib
import logging
import os
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.data import DATA_SETS
from repro.data import download as downloading
from repro.data.prepared import membership
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataCorruptError, SetupError
from repro.manifest import Manifest

NAME = "cifar100"
TITLE = DATA_SETS[NAME].title

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published(downloading.Published):
    """The archive, the MD5 of each file in it, in the order in which the manifest lists them, and its pixels.

    `pixels` has the sha256 of the bytes of each split's images (N, 3, 32, 32) uint8.
    """

    files: Mapping[str, str]
    pixels: Mapping[str, str]


PUBLISHED = Published(
    name=NAME,
    title=TITLE,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    mirrors=("https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",),
    mirror_variable="REPRO_CIFAR100_URL",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    max_bytes=400_000_000,
    files={
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
    pixels={
        "train": "de64658905c6b161606e3649ddafce7cf86c7634a0cf9116d518e64ef46a33c5",
        "test": "83c56492b2c11211ad1bb2dbd4f2eef4170a0441e41a41f3039c3144b1f5a511",
    },
)


def fetch(data_dir: Path, *, url: str | None = None, published: Published = PUBLISHED) -> Path:
    """The folder of the published files or their archive, which is downloaded where neither is there whole.

    `url` or the environment variable REPRO_CIFAR100_URL names a mirror of the archive.

    Raises FetchError or SetupError.
    """
    for folder in published.places(data_dir, published.folder):
        if not _absent(folder, published):
            try:
                _read(folder, published)
            except DataCorruptError as error:
                _log.info("%s; fetching the set again", error)
            else:
                return folder
    return published.whole_archive(data_dir) or published.download(data_dir, url)


def prepare(data_dir: Path, *, source: Path | None = None, published: Published = PUBLISHED) -> Manifest:
    """Write `<data_dir>/cifar100/prepared` from files already on disk; whole arrays that are there stay.

    `source` is the folder of the files, one above it, or the archive, instead of the usual places. An archive
    that is named may be packed otherwise than the published one: each file in it must be the published file.

    Raises DataMissingError where no source is found, DataCorruptError naming a file that is not what was
    published or pixels that are not, SetupError where a file cannot be read or the folder not be written.
    """

    def make(writer: PreparedWriter) -> Manifest:
        found = find_source(data_dir, source, published)
        if found is None:
            folders = [path for path in published.places(data_dir, published.folder, source) if path.is_dir()]
            lacking = [f"{path} lacks {', '.join(_absent(path, published))}; " for path in folders]
            raise published.not_found(data_dir, source, "".join(lacking))
        if source is None and found.is_file() and (wrong := published.wrong_md5(found)):
            raise published.corrupt(wrong)
        contents = _read(found, published)
        for name in ("train", "test"):
            split = _unpickle(contents[name])
            labels = np.array(split["fine_labels"], dtype=np.int64)
            images = split["data"].reshape(-1, 3, 32, 32)
            writer.split(name, labels, membership(split["filenames"]), [images], 32)
            # Of what was written: a defect in unpickling, in the order of the axes or on disk shows here.
            with (writer.folder / f"{name}-images.npy").open("rb") as stream:
                stream.seek(-images.nbytes, os.SEEK_END)  # behind the header
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
            if actual != published.pixels[name]:
                raise DataCorruptError(
                    f"the {name} images as prepared have sha256 {actual}, expected {published.pixels[name]}, "
                    f"though {found} is as published: run `repro data prepare {NAME}` again"
                )
        sources = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        return writer.finish(_unpickle(contents["meta"])["fine_label_names"], sources)

    return prepare_once(data_dir, NAME, TITLE, make)


def find_source(data_dir: Path, source: Path | None = None, published: Published = PUBLISHED) -> Path | None:
    """The folder or archive that `prepare` would read, found by name alone; None where there is none."""
    for folder in published.places(data_dir, published.folder, source):
        if not _absent(folder, published):
            return folder
    archives = published.places(data_dir, published.archive, source)
    return next((path for path in archives if path.is_file()), None)


def _absent(folder: Path, published: Published) -> list[str]:
    return [name for name in sorted(published.files) if not (folder / name).is_file()]


def _read(place: Path, published: Published) -> dict[str, bytes]:
    """The published files of a folder or archive; DataCorruptError unless each has its MD5."""
    contents, name = {}, ""
    try:
        with tarfile.open(place) if place.is_file() else nullcontext() as tar:
            for name in published.files:
                member = tar and tar.extractfile(f"{published.folder}/{name}")
                if tar:
                    contents[name] = member.read(published.max_bytes) if member else b""
                else:
                    contents[name] = (place / name).read_bytes()
    except (KeyError, tarfile.TarError, EOFError, zlib.error) as error:
        raise published.corrupt(f"{place}: {name} is not whole in it ({error})") from None
    except OSError as error:
        raise SetupError(f"cannot read {place}: {error.strerror or error}") from error
    for name, content in contents.items():
        actual, md5 = hashlib.md5(content, usedforsecurity=False).hexdigest(), published.files[name]
        if actual != md5:
            raise published.corrupt(f"{place / name} has MD5 {actual}, expected {md5}")
    return contents


def _unpickle(content: bytes) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, about how Python 2 pickled its types
        # A pickle can run any program; these very bytes were just found to be the published ones.
        loaded: dict[str, Any] = pickle.loads(content, encoding="latin1")  # noqa: S301
    return loaded
