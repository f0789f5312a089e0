"""A set of the user's own: a folder of images per class, prepared by FaceScrub's rule under its own name.

    <folder>/Alvaro_Uribe/Alvaro_Uribe_0001.jpg …

Nothing is fetched, and neither its name nor its title may be that of a known set.
"""

from pathlib import Path

from repro.data import OWN_IMAGE_SIZE, PrepareOptions
from repro.data.decode import (
    DecodeRules,
    ImageFile,
    ImageRequest,
    folder_files,
    is_os_metadata,
    listing_digest,
)
from repro.data.download import Progress
from repro.data.identity_split import Candidate, SplitRule, write_identities
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataMissingError, SetupError
from repro.manifest import Manifest


def prepare(data_dir: Path, options: PrepareOptions, progress: Progress | None = None) -> Manifest:
    """Write `<data_dir>/<options.name>/prepared` from the folders in `options.source`.

    Raises DataMissingError where there are too few images, SetupError where a folder cannot be read or
    written.
    """
    assert options.name is not None  # `repro.data.prepare` refuses a set of the user's own without them
    assert options.source is not None
    title = options.title or options.name
    rule = SplitRule() if options.min_images is None else SplitRule(min_images=options.min_images)
    rules = DecodeRules(OWN_IMAGE_SIZE, crop=1.0 if options.crop is None else options.crop)
    settings = {"crop": f"central square, {rules.crop:g} of the shorter side"}
    files, left_out = _find_images(options.source)
    listing = listing_digest(file for _, file in files)

    def make(writer: PreparedWriter) -> Manifest:
        return write_identities(
            writer,
            [Candidate(identity, file.name, ImageRequest(file)) for identity, file in files],
            rule,
            rules,
            settings=settings,
            left_out=left_out,
            sources={},
            progress=progress,
            listing=listing,
        )

    def wanted(there: Manifest) -> bool:
        return (there.title, there.settings, there.listing) == (title, {**settings, **rule.settings}, listing)

    return prepare_once(data_dir, options.name, title, make, wanted=wanted, progress=progress)


def _find_images(folder: Path) -> tuple[list[tuple[str, ImageFile]], dict[str, str]]:
    """Every file in the folders of `folder`, with its class, and what is not taken, with the reason."""
    if not folder.is_dir():
        raise DataMissingError(f"{folder} is not a folder; expected one with a folder of images per class")
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise SetupError(f"cannot read {folder}: {error.strerror or error}") from None
    found: list[tuple[str, ImageFile]] = []
    left_out: dict[str, str] = {}
    for identity in names:
        if identity.startswith(".") or is_os_metadata(identity):
            continue
        for file in folder_files(folder, identity):
            if file.name.isprintable():
                found.append((identity, file))
            else:
                left_out[ascii(file.name)] = "its name has a control character or is not UTF-8"
    if not found:
        raise DataMissingError(f"{folder} has no folders with images; expected a folder of images per class")
    return found, left_out
