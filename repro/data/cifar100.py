"""CIFAR-100: where it comes from, what its bytes must be, and how it becomes prepared arrays.

Files already on disk are used where they are: in `<data>/cifar100/raw/cifar-100-python/`, in
`<data>/cifar-100-python/` (torchvision's layout, so --data-dir may point at a torchvision root), or as the
archive `cifar-100-python.tar.gz` in `<data>/cifar100/raw` or `<data>`.

The files are pickles of Python 2. A pickle can run any program, so each is read once, its MD5 compared, and
those very bytes unpickled with stand-ins for the only three names that the format uses.
"""

import hashlib
import io
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from repro.data import DATA_SETS
from repro.data.archives import Limits, extract
from repro.data.arrays import membership
from repro.data.download import Checksum, Notify, Progress, download, one_at_a_time
from repro.data.prepared import Arrays, Images
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataCorruptError, DataMissingError, SetupError
from repro.manifest import Manifest

NAME = "cifar100"
TITLE = DATA_SETS[NAME].title
IMAGE_SIZE = DATA_SETS[NAME].image_size
URL_VARIABLE = "REPRO_CIFAR100_URL"
CHUNK = 1024
"""Images written together."""


@dataclass(frozen=True)
class Source:
    """What is published: an address, and the MD5 of the archive and of the files in it."""

    url: str
    archive: str
    archive_md5: str
    folder: str
    files: Mapping[str, str]
    """File name → MD5; "train", "test" and "meta"."""
    limits: Limits


PUBLISHED = Source(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    files=MappingProxyType(
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        }
    ),
    limits=Limits(members=16, bytes=400_000_000),
)


def fetch(
    data_dir: Path,
    progress: Progress | None = None,
    notify: Notify | None = None,
    url: str | None = None,
    source: Source = PUBLISHED,
) -> Path:
    """The folder of the published files, downloaded and unpacked where they are not there and whole yet.

    `url` or the environment variable REPRO_CIFAR100_URL names a mirror of the archive.

    Raises FetchError, DataCorruptError or SetupError.
    """
    raw = _raw(data_dir)
    for folder in _folders(data_dir, source):
        if all((folder / name).is_file() for name in source.files):
            if not (problems := _problems(folder, source)):
                return folder
            _say(notify, f"{'; '.join(problems)}: fetching the set anew")
    archive = None
    for candidate in _archives(data_dir, source):
        if candidate.is_file():
            if (problem := _problem(candidate, source.archive_md5)) is None:
                archive = candidate
                break
            _say(notify, f"{problem}: fetching it anew")
    if archive is None:
        archive = download(
            url or os.environ.get(URL_VARIABLE) or source.url,
            raw / source.archive,
            checksum=Checksum("md5", source.archive_md5),
            max_bytes=source.limits.bytes,
            progress=progress,
            notify=notify,
        )
    return _unpack(archive, raw, source, notify)


def prepare(
    data_dir: Path,
    progress: Progress | None = None,
    notify: Notify | None = None,
    place: Path | None = None,
    source: Source = PUBLISHED,
) -> Manifest:
    """Write `<data_dir>/cifar100/prepared` from files already on disk; whole arrays that are there stay.

    `place` is the folder of the files, one above it, or the archive, instead of the usual places.

    Raises DataMissingError where no source is found, DataCorruptError naming a file that is not what was
    published, SetupError where the folder cannot be written.
    """

    def make(writer: PreparedWriter) -> Manifest:
        return _write(writer, _source_folder(data_dir, source, place, notify), source)

    return prepare_once(data_dir, NAME, TITLE, make, progress=progress, notify=notify)


def located(data_dir: Path, source: Source = PUBLISHED, place: Path | None = None) -> Path | None:
    """The folder or archive that `prepare` would read, found by name alone; None where there is none."""
    for folder in _folders(data_dir, source, place):
        if all((folder / name).is_file() for name in source.files):
            return folder
    return next((path for path in _archives(data_dir, source, place) if path.is_file()), None)


def _write(writer: PreparedWriter, folder: Path, source: Source) -> Manifest:
    sources: dict[str, str] = {}
    meta = _load(folder / "meta", source.files["meta"], sources)
    with _understanding(folder / "meta"):
        class_names = [_text(name) for name in meta["fine_label_names"]]
    for which in ("train", "test"):
        arrays, names = _split(folder / which, source.files[which], sources)
        writer.split(which, arrays.labels, membership(names), _pieces(arrays.images))
    return writer.finish(class_names=class_names, sources=sources)


def _pieces(images: Images) -> Iterator[Images]:
    for start in range(0, len(images), CHUNK):
        yield images[start : start + CHUNK]


def _source_folder(data_dir: Path, source: Source, place: Path | None, notify: Notify | None) -> Path:
    found = located(data_dir, source, place)
    if found is not None and found.is_dir():
        return found
    if found is not None:
        if problem := _problem(found, source.archive_md5):
            raise DataCorruptError(f"{problem}: delete it and run `repro data fetch {NAME}`")
        return _unpack(found, _raw(data_dir), source, notify)
    folders = _folders(data_dir, source, place)
    # A folder with some of the files says more than "not found".
    for folder in folders:
        missing = [name for name in source.files if not (folder / name).is_file()]
        if folder.is_dir() and (place is None or len(missing) < len(source.files)):
            raise DataMissingError(
                f"{folder} lacks {', '.join(missing)}: run `repro data fetch {NAME}`, or copy the files there"
            )
    places = [*folders, *_archives(data_dir, source, place)]
    raise DataMissingError(
        f"{TITLE} is not on disk (looked for {', '.join(map(str, places))}): run `repro data fetch {NAME}`, "
        "or point --data-dir or REPRO_DATA at a folder where it is"
    )


def _unpack(archive: Path, raw: Path, source: Source, notify: Notify | None) -> Path:
    """The folder below `raw` of what is in `archive`, which is whole; a damaged one there is replaced."""
    folder = raw / source.folder
    with one_at_a_time(raw / ".unpack.lock", f"unpacking {TITLE}", notify):
        if folder.exists() and _problems(folder, source):
            _say(notify, f"replacing {folder} by what is in {archive}")
            shutil.rmtree(folder, ignore_errors=True)
        extract(archive, folder, source.limits, notify)
        if problems := _problems(folder, source):
            raise DataCorruptError(f"{'; '.join(problems)}, although {archive} is whole: is the disk sound?")
    return folder


def _raw(data_dir: Path) -> Path:
    return data_dir / NAME / "raw"


def _folders(data_dir: Path, source: Source, place: Path | None = None) -> tuple[Path, ...]:
    if place is not None:
        return place, place / source.folder
    return _raw(data_dir) / source.folder, data_dir / source.folder


def _archives(data_dir: Path, source: Source, place: Path | None = None) -> tuple[Path, ...]:
    if place is not None:
        return place, place / source.archive
    return _raw(data_dir) / source.archive, data_dir / source.archive


def _problems(folder: Path, source: Source) -> list[str]:
    """One phrase for each file that is missing or has another MD5 than published."""
    found = (_problem(folder / name, md5) for name, md5 in source.files.items())
    return [problem for problem in found if problem is not None]


def _problem(path: Path, md5: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    try:
        actual = Checksum("md5", md5).of(path)
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    return None if actual == md5 else f"{path} has MD5 {actual}, expected {md5}"


def _split(path: Path, md5: str, sources: dict[str, str]) -> tuple[Arrays, list[str]]:
    """Images (N, 3, 32, 32) uint8 with their fine labels (N,) int64, and the images' names."""
    content = _load(path, md5, sources)
    with _understanding(path):
        images = content["data"].to_numpy().reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
        labels = np.array(content["fine_labels"], dtype=np.int64)
        names = [_text(name) for name in content["filenames"]]
        if not len(images) == len(labels) == len(names):
            raise ValueError(f"{len(images)} images, {len(labels)} labels and {len(names)} names")
    return Arrays(images, labels), names


def _load(path: Path, md5: str, sources: dict[str, str]) -> dict[str, Any]:
    """The pickled dictionary of the file at `path`; its sha256 is added to `sources`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise DataCorruptError(
            f"{path} has MD5 {actual}, expected {md5}: delete it and run `repro data fetch {NAME}`"
        )
    sources[path.name] = hashlib.sha256(content).hexdigest()
    with _understanding(path):
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {_text(key): value for key, value in loaded.items()}


@contextmanager
def _understanding(path: Path) -> Iterator[None]:
    """What a file of the right MD5 but another structure raises becomes a DataCorruptError."""
    try:
        yield
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
    ) as error:
        raise DataCorruptError(f"{path} cannot be read as a file of {TITLE}: {error!r}") from error


class _PixelType:
    """Stands in for numpy.dtype: only unsigned bytes are admitted."""

    def __init__(self, code: bytes, *_: object) -> None:
        if code != b"u1":
            raise pickle.UnpicklingError(f"expected an array of unsigned bytes, got {code!r}")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for single bytes."""


class _PixelArray:
    """Stands in for numpy.ndarray; holds what the pickle says of it."""

    state: tuple[object, ...] = ()

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        """(N, 3072) uint8."""
        _, shape, pixel_type, column_order, content = self.state
        if not isinstance(pixel_type, _PixelType) or column_order or not isinstance(content, bytes):
            raise ValueError("expected rows of unsigned bytes")
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != 3 * IMAGE_SIZE**2:
            raise ValueError(f"expected an array (N, {3 * IMAGE_SIZE**2}), got {shape}")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _reconstruct(*_: object) -> _PixelArray:
    return _PixelArray()


class _Unpickler(pickle.Unpickler):
    """Admits the three names in CIFAR's files, each as a stand-in of this module, and no other."""

    admitted = MappingProxyType(
        {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): _PixelArray,
            ("numpy", "dtype"): _PixelType,
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of {TITLE} needs")
        return self.admitted[module, name]


def _text(value: bytes) -> str:
    return value.decode("ascii")


def _say(notify: Notify | None, message: str) -> None:
    if notify is not None:
        notify(message)
