"""The data sets by name: what each is, and how to fetch, prepare, verify and list them.

Importing this package imports neither numpy nor torch: planning reads it.
"""

import importlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repro.errors import DataCorruptError, DataMissingError, UsageError
from repro.paths import NAME

if TYPE_CHECKING:
    from repro.data.download import Progress
    from repro.manifest import Manifest

OWN_IMAGE_SIZE = 64  # pixels per side of a set of the user's own


@dataclass(frozen=True)
class FetchOptions:
    """Options of `repro data fetch`; each set lists in `fetch_takes` those that apply to it."""

    url: str | None = None  # a mirror
    lists: Path | None = None  # folder of the publishers' lists of addresses
    retry_dead: bool = False  # request addresses again that brought nothing
    allow_private_addresses: bool = False  # fetch from this machine and its network too


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `repro data prepare`; each set lists in `prepare_takes` those that apply to it."""

    source: Path | None = None  # where the files are, if not in the usual places
    lists: Path | None = None  # folder of the publishers' lists, which say who is where in the images
    name: str | None = None  # what the prepared set is called, if not as its source
    title: str | None = None
    allow_partial: bool = False
    min_images: int | None = None  # a class with fewer is left out
    crop: float | None = None  # side of the central square that is kept, per shorter side of the image


@dataclass(frozen=True)
class DataSet:
    """One data set; a count is None where it is whatever is found.

    `module`, in this package, has `prepare` and, for a known set, `fetch` and `located`.
    """

    name: str
    title: str
    image_size: int
    module: str
    classes: int | None = None
    train_count: int | None = None
    test_count: int | None = None
    paper_counts: tuple[int, int, int] | None = None
    """Training images, test images and classes as the paper counts them, where the set is as found: only for
    an estimate of time before the data are here."""
    fetch_needs: str = ""  # what `repro data fetch` needs besides a network, with its option
    fetch_takes: frozenset[str] = frozenset({"url"})
    prepare_takes: frozenset[str] = frozenset()

    def implementation(self) -> Any:
        """The module, imported; numpy comes with it."""
        return importlib.import_module(f"repro.data.{self.module}")


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
            module="cifar100",
            prepare_takes=frozenset({"source"}),
        ),
        DataSet(
            name="tiny-imagenet",
            title="TinyImageNet",
            image_size=64,
            classes=200,
            train_count=100_000,
            test_count=10_000,
            module="tiny_imagenet",
            prepare_takes=frozenset({"source", "name", "title", "allow_partial"}),
        ),
        DataSet(
            name="facescrub",
            title="FaceScrub",
            image_size=64,
            module="facescrub",
            paper_counts=(361 * 90, 361 * 10, 361),
            fetch_needs="the lists that its publishers send on request (--lists DIR)",
            fetch_takes=frozenset({"lists", "retry_dead", "allow_private_addresses"}),
            prepare_takes=frozenset({"source", "lists", "name", "title", "min_images"}),
        ),
    )
}


def described(name: str) -> DataSet:
    """The data set called `name`; any other name is that of a set of the user's own, with a folder per class.

    Raises UsageError for what cannot be a name.
    """
    if name in DATA_SETS:
        return DATA_SETS[name]
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a data set's name; use small letters, digits, dots and dashes, as in lfw"
        )
    takes = frozenset({"source", "title", "min_images", "crop"})
    return DataSet(name, name, OWN_IMAGE_SIZE, "image_folder", prepare_takes=takes)


def fetch(
    name: str, data_dir: Path, options: FetchOptions | None = None, progress: "Progress | None" = None
) -> Path:
    """The place of the source files of `name` below `data_dir`, downloaded where they are not there yet.

    Raises UsageError, FetchError, DataCorruptError, SetupError, or DataMissingError where something is needed
    beforehand.
    """
    if name not in DATA_SETS:
        raise UsageError(f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}")
    chosen = DATA_SETS[name]
    options = options or FetchOptions()
    _check_options("fetch", name, options, FetchOptions(), chosen.fetch_takes)
    place: Path = chosen.implementation().fetch(data_dir, options, progress)
    return place


def prepare(
    name: str, data_dir: Path, options: PrepareOptions | None = None, progress: "Progress | None" = None
) -> "Manifest":
    """Make the arrays of `name` from its source files; whole ones of the same kind that are there stay.

    A name that is not a known set's needs `options.source`, a folder with a folder per class.

    Raises UsageError, DataCorruptError, SetupError, or DataMissingError where the source files are missing.
    """
    options = options or PrepareOptions()
    if name not in DATA_SETS and options.source is None:
        raise UsageError(
            f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}; for a set of your own add "
            "--from FOLDER with a folder of images per class"
        )
    chosen = described(name)
    _check_options("prepare", name, options, PrepareOptions(), chosen.prepare_takes)
    if options.name is not None and options.name != name:
        described(options.name)
        if options.name in DATA_SETS:
            raise UsageError(f"--as {options.name}: {name} cannot be kept under another known set's name")
    for known in DATA_SETS.values():
        if options.title and known.name != name and known.title.casefold() in options.title.casefold():
            raise UsageError(
                f"--title {options.title!r}: only {known.name} itself may be called {known.title}"
            )
    named = replace(options, name=options.name or name)
    manifest: Manifest = chosen.implementation().prepare(data_dir, named, progress)
    return manifest


def verify(name: str, data_dir: Path, progress: "Progress | None" = None) -> "Manifest":
    """Hash every array of `name` and return the manifest that they match.

    Raises UsageError for a name that is neither known nor prepared, DataMissingError, or DataCorruptError
    naming the damaged files.
    """
    from repro.data.arrays import verify_prepared

    own = _own_sets(data_dir)
    if name not in DATA_SETS and name not in own:
        known = ", ".join([*DATA_SETS, *own])
        raise UsageError(f"unknown data set {name!r}; known: {known}")
    return verify_prepared(data_dir, name, progress)


def listing(data_dir: Path) -> list[DataSetState]:
    """What there is of every known data set below `data_dir`, and of every other one prepared there.

    Shapes and file sizes are checked, bytes are not hashed: that is `verify`.
    """
    return [_state(described(name), data_dir) for name in (*DATA_SETS, *_own_sets(data_dir))]


def _own_sets(data_dir: Path) -> list[str]:
    """The names under which sets beside the known ones were prepared below `data_dir`."""
    return sorted(
        folder.parent.name
        for folder in data_dir.glob("*/prepared")
        if folder.parent.name not in DATA_SETS and NAME.fullmatch(folder.parent.name)
    )


def _state(chosen: DataSet, data_dir: Path) -> DataSetState:
    from repro.data.arrays import open_prepared
    from repro.manifest import prepared_folder

    folder = prepared_folder(data_dir, chosen.name)
    try:
        manifest = open_prepared(data_dir, chosen.name).manifest
    except DataCorruptError as error:
        return DataSetState(chosen.name, chosen.title, "corrupt", None, None, _bytes(folder), str(error))
    except DataMissingError as error:
        found = chosen.implementation().located(data_dir) if chosen.name in DATA_SETS else None
        if found is not None:
            detail = f"source in {found}; `repro data prepare {chosen.name}` makes the arrays"
            return DataSetState(chosen.name, chosen.title, "fetched", None, None, _bytes(found), detail)
        if folder.exists():
            detail = str(error)
        else:
            needs = f", given {chosen.fetch_needs}" if chosen.fetch_needs else ""
            detail = f"`repro data fetch {chosen.name}` downloads it{needs}"
        return DataSetState(chosen.name, chosen.title, "missing", None, None, 0, detail)
    return DataSetState(
        chosen.name,
        manifest.title,
        "prepared",
        manifest.train.count + manifest.test.count,
        manifest.classes,
        _bytes(folder),
        "; ".join(filter(None, (manifest.partial, *manifest.notes, str(folder)))),
    )


def _check_options(command: str, name: str, given: object, default: object, takes: frozenset[str]) -> None:
    """Raises UsageError for an option that was given but means nothing for the set `name`."""
    spelling = {"source": "from", "name": "as"}
    for option in fields(given):  # type: ignore[arg-type]
        value = getattr(given, option.name)
        if value != getattr(default, option.name) and option.name not in takes:
            flag = spelling.get(option.name, option.name.replace("_", "-"))
            raise UsageError(f"repro data {command} {name}: --{flag} means nothing for this set")


def _bytes(place: Path) -> int:
    files = place.iterdir() if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())
