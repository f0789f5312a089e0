"""CIFAR-100: where it comes from, what its bytes must be, and how it becomes prepared arrays.

Files already on disk are used where they are: in `<data>/cifar100/raw/cifar-100-python/`, in
`<data>/cifar-100-python/` (torchvision's layout, so --data-dir may point at a torchvision root), or in the
archive `cifar-100-python.tar.gz` in `<data>/cifar100/raw` or `<data>`, which is never unpacked to disk.
"""

import hashlib
import logging
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from repro.data import DATA_SETS
from repro.data import download as downloading
from repro.data.files import file_hash
from repro.data.prepared import membership
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import SetupError
from repro.manifest import Manifest

NAME = "cifar100"
TITLE = DATA_SETS[NAME].title

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published(downloading.Published):
    """The archive, and the MD5 of each file in it, in the order in which the manifest lists them."""

    files: Mapping[str, str]


PUBLISHED = Published(
    name=NAME,
    title=TITLE,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    mirror_variable="REPRO_CIFAR100_URL",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    max_bytes=400_000_000,
    files=MappingProxyType(
        {
            "meta": "7973b15100ade9c7d40fb424638fde48",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        }
    ),
)


def fetch(data_dir: Path, *, url: str | None = None, published: Published = PUBLISHED) -> Path:
    """The folder of the published files or their archive, which is downloaded where neither is there whole.

    `url` or the environment variable REPRO_CIFAR100_URL names a mirror of the archive.

    Raises FetchError or SetupError.
    """
    for folder in published.places(data_dir, published.folder):
        if not _absent(folder, published):
            damaged = [
                name for name, md5 in published.files.items() if file_hash(folder / name, "md5") != md5
            ]
            if not damaged:
                return folder
            _log.info("%s: %s damaged; fetching the set again", folder, ", ".join(damaged))
    return published.whole_archive(data_dir) or published.download(data_dir, url)


def prepare(data_dir: Path, *, source: Path | None = None, published: Published = PUBLISHED) -> Manifest:
    """Write `<data_dir>/cifar100/prepared` from files already on disk; whole arrays that are there stay.

    `source` is the folder of the files, one above it, or the archive, instead of the usual places.

    Raises DataMissingError where no source is found, DataCorruptError naming a file that is not what was
    published, SetupError where a file cannot be read or the folder not be written.
    """

    def make(writer: PreparedWriter) -> Manifest:
        found = find_source(data_dir, source, published)
        if found is None:
            folders = [path for path in published.places(data_dir, published.folder, source) if path.is_dir()]
            lacking = [f"{path} lacks {', '.join(_absent(path, published))}; " for path in folders]
            raise published.not_found(data_dir, source, "".join(lacking))
        if found.is_file() and (wrong := published.wrong_md5(found)):
            raise published.corrupt(wrong)
        sources: dict[str, str] = {}
        class_names: list[str] = []
        for name, md5 in published.files.items():
            content = _load(found, name, md5, sources, published)
            if name == "meta":
                class_names = content["fine_label_names"]
                continue
            images = content["data"].reshape(-1, 3, 32, 32)
            labels = np.array(content["fine_labels"], dtype=np.int64)
            writer.split(name, labels, membership(content["filenames"]), [images], 32)
        return writer.finish(class_names, sources)

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


def _load(place: Path, name: str, md5: str, sources: dict[str, str], published: Published) -> dict[str, Any]:
    """The dictionary in a file of the set, in a folder or archive; its sha256 is added to `sources`."""
    try:
        if place.is_file():
            with tarfile.open(place) as tar:
                member = tar.extractfile(f"{published.folder}/{name}")
                content = b"" if member is None else member.read(published.max_bytes)
        else:
            content = (place / name).read_bytes()
    except (KeyError, tarfile.TarError, EOFError, zlib.error) as error:
        raise published.corrupt(f"{place}: {name} is not whole in it ({error})") from None
    except OSError as error:
        raise SetupError(f"cannot read {place}: {error.strerror or error}") from error
    if (actual := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise published.corrupt(f"{place / name} has MD5 {actual}, expected {md5}")
    sources[name] = hashlib.sha256(content).hexdigest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, about how Python 2 pickled its types
        # A pickle can run any program; these very bytes were just found to be the published ones.
        loaded: dict[str, Any] = pickle.loads(content, encoding="latin1")  # noqa: S301
    return loaded
