"""The data sets by name: what each is, and how to fetch, prepare, verify and list them.

Importing this package imports neither numpy nor torch: planning reads it.
"""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repro.errors import DataCorruptError, DataMissingError, UsageError, did_you_mean
from repro.paths import NAME, known_sets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from repro.config import Preset, RunConfig
    from repro.data.prepared import PreparedData
    from repro.manifest import Manifest
    from repro.registry import Registry, Run

OWN_IMAGE_SIZE = 64  # pixels per side of a set of the user's own


@dataclass(frozen=True)
class DataSet:
    """One data set; a count is None where it is whatever is found.

    `module`, in this package, has `prepare(data_dir, *, …)` and, for a known set, `fetch(data_dir, *, …)` and
    `find_source(data_dir)`; their keyword arguments are the options that the commands take for this set.
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


_KNOWN = (
    DataSet("cifar100", "CIFAR-100", 32, "cifar100", classes=100, train_count=50_000, test_count=10_000),
    DataSet("tiny-imagenet", "TinyImageNet", 64, "tiny_imagenet", 200, 100_000, 10_000),
    DataSet("facescrub", "FaceScrub", 64, "facescrub", paper_counts=(361 * 90, 361 * 10, 361),
            fetch_needs="the lists that its publishers send on request (--lists DIR)"),
)  # fmt: skip
DATA_SETS: dict[str, DataSet] = {each.name: each for each in _KNOWN}


def dataset_info(name: str) -> DataSet:
    """The data set called `name`; any other name is that of a set of the user's own, with a folder per class.

    Raises UsageError for what cannot be a name.
    """
    if name in DATA_SETS:
        return DATA_SETS[name]
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a data set's name; use small letters, digits, dots and dashes, as in lfw"
        )
    return DataSet(name, name, OWN_IMAGE_SIZE, "identities")


def fetch(name: str, data_dir: Path, **options: Any) -> Path:
    """The place of the source files of `name` below `data_dir`, downloaded where they are not there yet.

    `options` are those of the set's own `fetch`; one that is None or False was not given.

    Raises UsageError, FetchError, DataCorruptError, SetupError, or DataMissingError where something is needed
    beforehand.
    """
    if name not in DATA_SETS:
        raise UsageError(_unknown(name, DATA_SETS))
    place: Path = _call("fetch", DATA_SETS[name], data_dir, options)
    return place


def prepare(name: str, data_dir: Path, **options: Any) -> "Manifest":
    """Make the arrays of `name` from its source files; whole ones of the same kind that are there stay.

    `options` are those of the set's own `prepare`. A name that is not a known set's needs `source`, a folder
    with a folder per class.

    Raises UsageError, DataCorruptError, SetupError, or DataMissingError where the source files are missing.
    """
    chosen, title, save_as = dataset_info(name), options.get("title") or "", options.get("save_as") or name
    if name not in DATA_SETS and options.get("source") is None:
        raise UsageError(
            _unknown(
                name, DATA_SETS, "; for a set of your own add --from FOLDER with a folder of images per class"
            )
        )
    if name not in DATA_SETS and save_as != name:
        raise UsageError(f"repro data prepare {name}: --as means nothing for this set")
    if save_as != name and dataset_info(save_as).name in DATA_SETS:
        raise UsageError(f"--as {save_as}: {name} cannot be kept under another known set's name")
    for known in DATA_SETS.values():
        if known.name != name and known.title.casefold() in title.casefold():
            raise UsageError(f"--title {title!r}: only {known.name} itself may be called {known.title}")
    if name not in DATA_SETS:
        options["save_as"] = name
    manifest: Manifest = _call("prepare", chosen, data_dir, options)
    return manifest


def verify(name: str, data_dir: Path) -> "Manifest":
    """Hash every array of `name` and return the manifest that they match.

    Raises UsageError for a name that is neither known nor prepared, DataMissingError, or DataCorruptError
    naming the damaged files.
    """
    from repro.data.prepared import verify_prepared

    if name not in (known := known_sets(data_dir)):
        raise UsageError(_unknown(name, known))
    return verify_prepared(data_dir, name)


def open_for_training(config: "RunConfig", data_dir: Path) -> "PreparedData":
    """The arrays to train `config` on: a prepared set, or handwritten digits where its recipe says so.

    Prepared arrays are hashed: what is trained on is what the manifest says, to the bit.

    Raises DataMissingError or DataCorruptError, saying what to do.
    """
    if config.recipe.data == "digits":
        from repro.data import digits

        return digits.load(*_digits(config))
    from repro.data.prepared import open_prepared, verify_prepared

    verify_prepared(data_dir, config.dataset)
    return open_prepared(data_dir, config.dataset)


def fingerprint(config: "RunConfig", data_dir: Path) -> str:
    """The fingerprint of the data that `config` would be trained on.

    Opens no array, so that planning can tell whether a record's data are the present ones.

    Raises DataMissingError, saying how to get them, or DataCorruptError.
    """
    from repro.data import digits
    from repro.manifest import read_manifest

    if config.recipe.data == "digits":
        return digits.fingerprint(*_digits(config))
    return read_manifest(data_dir, config.dataset).fingerprint()


def fingerprints(
    runs: "Iterable[Run]", registry: "Registry", preset: "Preset", data_dir: Path
) -> dict[str, str | None]:
    """The fingerprint of each data set of `runs`; None where the data are not at hand."""
    found: dict[str, str | None] = {}
    for run in runs:
        if (name := run.cell.dataset) not in found:
            try:
                found[name] = fingerprint(registry.config(run, preset), data_dir)
            except DataMissingError:
                found[name] = None
    return found


def _digits(config: "RunConfig") -> tuple[str, int, int, int]:
    recipe = config.recipe
    sizes = (recipe.classes, recipe.images_per_class, recipe.test_images_per_class)
    classes, train, test = (size for size in sizes if size is not None)
    return config.dataset, classes, train, test


def listing(data_dir: Path) -> list[DataSetState]:
    """What there is of every known data set below `data_dir`, and of every other one prepared there.

    Shapes and file sizes are checked, bytes are not hashed: that is `verify`.
    """
    return [_state(dataset_info(name), data_dir) for name in known_sets(data_dir)]


def _unknown(name: str, known: "Iterable[str]", advice: str = "") -> str:
    return f"unknown data set {name!r}; known: {', '.join(known)}{advice}{did_you_mean(name, known)}"


def _state(chosen: DataSet, data_dir: Path) -> DataSetState:
    from repro.data.prepared import open_prepared
    from repro.manifest import prepared_folder

    folder = prepared_folder(data_dir, chosen.name)
    state: Literal["prepared", "fetched", "missing", "corrupt"] = "missing"
    title, images, classes, place = chosen.title, None, None, folder
    try:
        manifest = open_prepared(data_dir, chosen.name).manifest
    except DataCorruptError as error:
        state, detail = "corrupt", str(error)
    except DataMissingError as error:
        needs = f", given {chosen.fetch_needs}" if chosen.fetch_needs else ""
        detail = str(error) if folder.exists() else f"`repro data fetch {chosen.name}` downloads it{needs}"
        found = chosen.implementation().find_source(data_dir) if chosen.name in DATA_SETS else None
        if found is not None:
            state, place = "fetched", found
            detail = f"source in {found}; `repro data prepare {chosen.name}` makes the arrays"
    else:
        state, title, classes = "prepared", manifest.title, manifest.classes
        images = manifest.train.count + manifest.test.count
        detail = "; ".join(filter(None, (manifest.partial, *manifest.notes, str(folder))))
    files = place.iterdir() if place.is_dir() else [place]
    size = 0 if state == "missing" else sum(file.stat().st_size for file in files if file.is_file())
    return DataSetState(chosen.name, title, state, images, classes, size, detail)


def _call(command: str, chosen: DataSet, data_dir: Path, options: dict[str, Any]) -> Any:
    """The set's own function; UsageError for an option that was given and means nothing for this set."""
    function = getattr(chosen.implementation(), command)
    given = {option: value for option, value in options.items() if value not in (None, False)}
    spelling = {"source": "from", "save_as": "as"}
    for option in given.keys() - inspect.signature(function).parameters:
        flag = spelling.get(option, option.replace("_", "-"))
        raise UsageError(f"repro data {command} {chosen.name}: --{flag} means nothing for this set")
    return function(data_dir, **given)
