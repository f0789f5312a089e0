"""The data sets by name: what each is, and how to fetch, prepare, verify and list them.

Importing this package imports neither numpy nor torch: planning reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from repro.errors import DataCorruptError, DataMissingError, UsageError

if TYPE_CHECKING:
    from repro.data.download import Notify, Progress
    from repro.manifest import Manifest

    Fetch = Callable[[Path, Progress | None, Notify | None, str | None], Path]
    Prepare = Callable[[Path, Progress | None, Notify | None], Manifest]
    Located = Callable[[Path], Path | None]


@dataclass(frozen=True)
class DataSet:
    """One data set.

    A count is None where it is whatever is found, a callable where this version does not have it.
    """

    name: str
    title: str
    image_size: int
    classes: int | None
    train_count: int | None
    test_count: int | None
    source: str
    """Where the data come from, in a sentence."""
    fetch: "Fetch | None" = None
    prepare: "Prepare | None" = None
    paper_counts: tuple[int, int, int] | None = None
    """Training images, test images and classes as the paper counts them, where the set is as found: only for
    an estimate of time before the data are here."""
    located: "Located | None" = None
    """Where its source files lie below a data folder, by name alone, or None."""

    def unavailable(self, doing: str) -> str | None:
        """The sentence for a user whose set this version cannot prepare; None where it can."""
        return None if self.prepare is not None else str(_unavailable(self, doing))


@dataclass(frozen=True)
class DataSetState:
    """What there is of a data set below one data folder.

    `images` and `classes` are None unless prepared; `bytes` are those of the arrays, else of the source.
    """

    name: str
    title: str
    state: Literal["prepared", "fetched", "missing", "corrupt"]
    images: int | None
    classes: int | None
    bytes: int
    detail: str


def _fetch_cifar100(
    data_dir: Path, progress: "Progress | None", notify: "Notify | None", url: str | None
) -> Path:
    from repro.data import cifar100

    return cifar100.fetch(data_dir, progress, notify, url)


def _prepare_cifar100(data_dir: Path, progress: "Progress | None", notify: "Notify | None") -> "Manifest":
    from repro.data import cifar100

    return cifar100.prepare(data_dir, progress, notify)


def _located_cifar100(data_dir: Path) -> Path | None:
    from repro.data import cifar100

    return cifar100.located(data_dir)


DATA_SETS: dict[str, DataSet] = {
    each.name: each
    for each in (
        DataSet(
            name="cifar100",
            title="CIFAR-100",
            image_size=32,
            classes=100,
            train_count=50_000,
            test_count=10_000,
            source="Alex Krizhevsky's page at the University of Toronto, one archive of 169 MB.",
            fetch=_fetch_cifar100,
            prepare=_prepare_cifar100,
            located=_located_cifar100,
        ),
        DataSet(
            name="tiny-imagenet",
            title="TinyImageNet",
            image_size=64,
            classes=200,
            train_count=100_000,
            test_count=10_000,
            source="Stanford's course CS231n, one archive; its validation split is the test set.",
        ),
        DataSet(
            name="facescrub",
            title="FaceScrub",
            image_size=64,
            classes=None,
            train_count=None,
            test_count=None,
            source="Lists of addresses that its publishers hand out on request. Many are dead, so the "
            "classes (361 in the paper) and images are as found.",
            paper_counts=(361 * 90, 361 * 10, 361),
        ),
    )
}


def data_set(name: str) -> DataSet:
    """The data set called `name`. Raises UsageError naming the known ones."""
    try:
        return DATA_SETS[name]
    except KeyError:
        raise UsageError(f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}") from None


def fetch(
    name: str,
    data_dir: Path,
    progress: "Progress | None" = None,
    notify: "Notify | None" = None,
    url: str | None = None,
) -> Path:
    """The place of the source files of `name` below `data_dir`, downloaded where they are not there yet.

    `url` names a mirror.

    Raises UsageError, FetchError, DataCorruptError, SetupError, or DataMissingError where this version
    cannot fetch the set.
    """
    chosen = data_set(name)
    if chosen.fetch is None:
        raise _unavailable(chosen, "fetching")
    return chosen.fetch(data_dir, progress, notify, url)


def prepare(
    name: str, data_dir: Path, progress: "Progress | None" = None, notify: "Notify | None" = None
) -> "Manifest":
    """Make the arrays of `name` from its source files; whole ones that are there already stay.

    Raises UsageError, DataCorruptError, SetupError, or DataMissingError where the source files are missing
    or this version cannot prepare the set.
    """
    chosen = data_set(name)
    if chosen.prepare is None:
        raise _unavailable(chosen, "preparing")
    return chosen.prepare(data_dir, progress, notify)


def verify(name: str, data_dir: Path, progress: "Progress | None" = None) -> "Manifest":
    """Hash every array of `name` and return the manifest that they match.

    Raises UsageError, DataMissingError, or DataCorruptError naming the damaged files.
    """
    from repro.data.arrays import verify_prepared

    return verify_prepared(data_dir, data_set(name).name, progress)


def listing(data_dir: Path) -> list[DataSetState]:
    """What there is of every known data set below `data_dir`.

    Shapes and file sizes are checked, bytes are not hashed: that is `verify`.
    """
    return [_state(each, data_dir) for each in DATA_SETS.values()]


def _state(chosen: DataSet, data_dir: Path) -> DataSetState:
    from repro.data.arrays import open_prepared
    from repro.manifest import prepared_folder

    folder = prepared_folder(data_dir, chosen.name)
    try:
        manifest = open_prepared(data_dir, chosen.name).manifest
    except DataCorruptError as error:
        return DataSetState(chosen.name, chosen.title, "corrupt", None, None, _bytes(folder), str(error))
    except DataMissingError as error:
        found = chosen.located(data_dir) if chosen.located is not None else None
        if found is not None:
            detail = f"source in {found}; `repro data prepare {chosen.name}` makes the arrays"
            return DataSetState(chosen.name, chosen.title, "fetched", None, None, _bytes(found), detail)
        if folder.exists():
            detail = str(error)
        elif chosen.prepare is None:
            detail = str(_unavailable(chosen, "preparing"))
        else:
            detail = f"`repro data fetch {chosen.name}` downloads it"
        return DataSetState(chosen.name, chosen.title, "missing", None, None, 0, detail)
    return DataSetState(
        chosen.name,
        chosen.title,
        "prepared",
        manifest.train.count + manifest.test.count,
        manifest.classes,
        _bytes(folder),
        "; ".join(filter(None, (manifest.partial, *manifest.notes, str(folder)))),
    )


def _unavailable(chosen: DataSet, doing: str) -> DataMissingError:
    usable = ", ".join(each.name for each in DATA_SETS.values() if each.prepare is not None)
    return DataMissingError(
        f"{doing} {chosen.title} is not available in this version; its runs are left out and its cells stay "
        f"blank with this reason. Available: {usable}"
    )


def _bytes(place: Path) -> int:
    files = place.iterdir() if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())
