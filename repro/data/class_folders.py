"""A set of one's own: a folder of images a class, prepared by FaceScrub's rule under its own name.

    <folder>/Alvaro_Uribe/Alvaro_Uribe_0001.jpg …

Nothing is fetched, and neither its name nor its title may be that of a known set.
"""

from collections.abc import Iterator
from pathlib import Path

from repro.data import OWN_IMAGE_SIZE, PrepareOptions
from repro.data.decode import DecodeRules, Wanted
from repro.data.download import Notify, Progress
from repro.data.identities import Candidate, write_identities
from repro.data.identity_split import SplitRule
from repro.data.image_digest import listing_digest
from repro.data.image_files import PlainFile, is_droppings, plain_files
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataMissingError, SetupError, UsageError
from repro.manifest import Manifest


def prepare(
    name: str,
    data_dir: Path,
    options: PrepareOptions,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Manifest:
    """Write `<data_dir>/<name>/prepared` from the folders in `options.source`.

    Raises UsageError without a source, DataMissingError where there are too few images, SetupError where a
    folder cannot be read or written.
    """
    if options.source is None:
        raise UsageError(
            f"repro data prepare {name}: --from FOLDER is needed, with a folder of images a class"
        )
    title = options.title or name
    rule = SplitRule() if options.min_images is None else SplitRule(min_images=options.min_images)
    rules = DecodeRules(OWN_IMAGE_SIZE, crop=1.0 if options.crop is None else options.crop)
    settings = {"crop": f"central square, {rules.crop:g} of the shorter side"}
    files, left_out = _found(options.source)
    listing = listing_digest([file for _, file in files])

    def make(writer: PreparedWriter) -> Manifest:
        candidates = [Candidate(identity, file.name, Wanted(file)) for identity, file in files]
        return write_identities(
            writer,
            candidates,
            rule,
            rules,
            settings=settings,
            left_out=left_out,
            listing=listing,
            progress=progress,
        )

    def wanted(there: Manifest) -> bool:
        return (there.title, there.settings, there.listing) == (title, {**settings, **rule.settings}, listing)

    return prepare_once(data_dir, name, title, make, wanted=wanted, progress=progress, notify=notify)


def _found(folder: Path) -> tuple[list[tuple[str, PlainFile]], dict[str, str]]:
    """Every file in the folders of `folder`, with its class, and what is not taken, with the reason."""
    if not folder.is_dir():
        raise DataMissingError(f"{folder} is not a folder; expected one with a folder of images a class")
    found: list[tuple[str, PlainFile]] = []
    left_out: dict[str, str] = {}
    for identity in _class_folders(folder):
        for file in plain_files(folder, identity):
            if file.name.isprintable():
                found.append((identity, file))
            else:
                left_out[ascii(file.name)] = "its name has a control character or is not UTF-8"
    if not found:
        raise DataMissingError(f"{folder} has no folders with images; expected a folder of images a class")
    return found, left_out


def _class_folders(folder: Path) -> Iterator[str]:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise SetupError(f"cannot read {folder}: {error.strerror or error}") from None
    yield from (name for name in names if not name.startswith(".") and not is_droppings(name))
