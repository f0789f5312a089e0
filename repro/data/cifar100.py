"""CIFAR-100: where it comes from, what its bytes must be, and how it becomes prepared arrays.

Files already on disk are used where they are: in `<data>/cifar100/raw/cifar-100-python/`, in
`<data>/cifar-100-python/` (torchvision's layout, so --data-dir may point at a torchvision root), or as the
archive `cifar-100-python.tar.gz` in `<data>/cifar100/raw` or `<data>`.
"""

import hashlib
import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from repro.data import DATA_SETS, FetchOptions, PrepareOptions
from repro.data.arrays import membership
from repro.data.download import Progress, download
from repro.data.files import file_hash, one_at_a_time, unpack_tar
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataCorruptError, DataMissingError, SetupError
from repro.manifest import Manifest

NAME = "cifar100"
TITLE = DATA_SETS[NAME].title
CHUNK = 1024  # images written together

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What is published: an address, and the MD5 of the archive and of the files in it."""

    url: str
    archive: str
    archive_md5: str
    folder: str
    files: Mapping[str, str]  # file → MD5, in the order in which the manifest lists them
    max_bytes: int = 400_000_000  # of the archive, packed and unpacked


PUBLISHED = Source(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    files=MappingProxyType(
        {
            "meta": "7973b15100ade9c7d40fb424638fde48",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        }
    ),
)


def fetch(
    data_dir: Path,
    options: FetchOptions | None = None,
    progress: Progress | None = None,
    source: Source = PUBLISHED,
) -> Path:
    """The folder of the published files, downloaded and unpacked where they are not on disk and whole.

    `options.url` or the environment variable REPRO_CIFAR100_URL names a mirror of the archive.

    Raises FetchError, DataCorruptError or SetupError.
    """
    for folder in _folders(data_dir, source):
        if not _absent(folder, source):
            if not (damage := _damage(folder, source)):
                return folder
            _log.info("%s: fetching the set again", damage)
    for archive in _archives(data_dir, source):
        if archive.is_file() and file_hash(archive, "md5") == source.archive_md5:
            return _unpack(archive, data_dir, source)
    url = (options and options.url) or os.environ.get("REPRO_CIFAR100_URL") or source.url
    target = _archives(data_dir, source)[0]
    download(url, target, md5=source.archive_md5, max_bytes=source.max_bytes, progress=progress)
    return _unpack(target, data_dir, source)


def prepare(
    data_dir: Path,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    source: Source = PUBLISHED,
) -> Manifest:
    """Write `<data_dir>/cifar100/prepared` from files already on disk; whole arrays that are there stay.

    `options.source` is the folder of the files, one above it, or the archive, instead of the usual places.

    Raises DataMissingError where no source is found, DataCorruptError naming a file that is not what was
    published, SetupError where the folder cannot be written.
    """
    place = options.source if options else None

    def make(writer: PreparedWriter) -> Manifest:
        found = located(data_dir, source, place)
        if found is None:
            raise _not_found(data_dir, source, place)
        if found.is_file():
            if (actual := file_hash(found, "md5")) != source.archive_md5:
                raise _corrupt(found, actual, source.archive_md5)
            found = _unpack(found, data_dir, source)
        return _write(writer, found, source)

    return prepare_once(data_dir, NAME, TITLE, make, progress=progress)


def located(data_dir: Path, source: Source = PUBLISHED, place: Path | None = None) -> Path | None:
    """The folder or archive that `prepare` would read, found by name alone; None where there is none."""
    for folder in _folders(data_dir, source, place):
        if not _absent(folder, source):
            return folder
    return next((path for path in _archives(data_dir, source, place) if path.is_file()), None)


def _write(writer: PreparedWriter, folder: Path, source: Source) -> Manifest:
    sources: dict[str, str] = {}
    class_names: list[str] = []
    for name, md5 in source.files.items():
        content = _load(folder / name, md5, sources)
        if name == "meta":
            class_names = content["fine_label_names"]
            continue
        images = content["data"].reshape(-1, 3, 32, 32)
        labels = np.array(content["fine_labels"], dtype=np.int64)
        pieces = (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
        writer.split(name, labels, membership(content["filenames"]), pieces)
    return writer.finish(class_names, sources)


def _load(path: Path, md5: str, sources: dict[str, str]) -> dict[str, Any]:
    """The dictionary in a file of the set; the file's sha256 is added to `sources`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    if (actual := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise _corrupt(path, actual, md5)
    sources[path.name] = hashlib.sha256(content).hexdigest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, about how Python 2 pickled its types
        # A pickle can run any program; these very bytes were just found to be the published ones.
        loaded: dict[str, Any] = pickle.loads(content, encoding="latin1")  # noqa: S301
    return loaded


def _unpack(archive: Path, data_dir: Path, source: Source) -> Path:
    """The folder of what is in `archive`, which is whole; a damaged one there is replaced."""
    folder = _folders(data_dir, source)[0]
    with one_at_a_time(folder.with_name(".unpack.lock"), f"unpacking {TITLE}"):
        if folder.exists() and (_absent(folder, source) or _damage(folder, source)):
            _log.info("replacing %s by what is in %s", folder, archive)
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            unpack_tar(archive, folder, max_members=16, max_bytes=source.max_bytes)
    return folder


def _folders(data_dir: Path, source: Source, place: Path | None = None) -> tuple[Path, Path]:
    if place is not None:
        return place, place / source.folder
    return data_dir / NAME / "raw" / source.folder, data_dir / source.folder


def _archives(data_dir: Path, source: Source, place: Path | None = None) -> tuple[Path, Path]:
    if place is not None:
        return place, place / source.archive
    return data_dir / NAME / "raw" / source.archive, data_dir / source.archive


def _absent(folder: Path, source: Source) -> list[str]:
    return [name for name in sorted(source.files) if not (folder / name).is_file()]


def _damage(folder: Path, source: Source) -> str:
    """Each file of `folder` that has another MD5 than published; empty for a whole one."""
    found = ((folder / name, md5, file_hash(folder / name, "md5")) for name, md5 in source.files.items())
    return "; ".join(
        f"{path} has MD5 {actual}, expected {md5}" for path, md5, actual in found if actual != md5
    )


def _corrupt(path: Path, actual: str, md5: str) -> DataCorruptError:
    return DataCorruptError(
        f"{path} has MD5 {actual}, expected {md5}: delete it and run `repro data fetch {NAME}`"
    )


def _not_found(data_dir: Path, source: Source, place: Path | None) -> DataMissingError:
    folders = _folders(data_dir, source, place)
    partial = [
        f"{folder} lacks {', '.join(_absent(folder, source))}" for folder in folders if folder.is_dir()
    ]
    places = ", ".join(map(str, [*folders, *_archives(data_dir, source, place)]))
    return DataMissingError(
        f"{TITLE} is not on disk ({'; '.join([*partial, f'looked for {places}'])}): run "
        f"`repro data fetch {NAME}`, or point --data-dir or REPRO_DATA at a folder where it is"
    )
