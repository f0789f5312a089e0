"""TinyImageNet: where it comes from, and how it becomes prepared arrays.

What is on disk is used where it is: the archive `tiny-imagenet-200.zip` or the unpacked folder
`tiny-imagenet-200`, in `<data>/tiny-imagenet/raw` or in `<data>`. The images are read straight from the zip:
130,000 small files need not be written, and a name in the archive can lead nowhere.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro.data import DATA_SETS, PrepareOptions
from repro.data.archives import Limits
from repro.data.arrays import membership
from repro.data.decode import DecodeRules, Wanted, decoder_versions
from repro.data.decode_pool import Decoder, image_decoder
from repro.data.download import Checksum, Notify, Progress, download
from repro.data.image_digest import image_digest, listing_digest
from repro.data.image_files import FolderTree
from repro.data.prepared import Images
from repro.data.tiny_imagenet_files import Contents, Expected, Split, named, read_contents
from repro.data.writer import PreparedWriter, prepare_once
from repro.data.zip_members import open_zip
from repro.errors import DataCorruptError, DataMissingError, SetupError
from repro.manifest import Manifest

NAME = "tiny-imagenet"
TITLE = DATA_SETS[NAME].title
IMAGE_SIZE = DATA_SETS[NAME].image_size
URL_VARIABLE = "REPRO_TINY_IMAGENET_URL"


@dataclass(frozen=True)
class Source:
    """What is published: an address, the archive's MD5, and how much a whole copy has."""

    url: str
    archive: str
    archive_md5: str
    folder: str
    expected: Expected
    limits: Limits


PUBLISHED = Source(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    archive="tiny-imagenet-200.zip",
    archive_md5="90528d7ca1a48142e341f4ef8d21d0de",
    folder="tiny-imagenet-200",
    expected=Expected(classes=200, train_per_class=500, test_per_class=50),
    limits=Limits(members=130_000, bytes=600_000_000),
)


def fetch(
    data_dir: Path,
    progress: Progress | None = None,
    notify: Notify | None = None,
    url: str | None = None,
    source: Source = PUBLISHED,
) -> Path:
    """The published archive, or a whole unpacked copy where there is one; downloaded where neither is.

    `url` or the environment variable REPRO_TINY_IMAGENET_URL names a mirror of the archive.

    Raises FetchError, DataCorruptError or SetupError.
    """
    for archive in _archives(data_dir, source):
        if archive.is_file() and not _wrong_md5(archive, source):
            return archive
    for folder in _folders(data_dir, source):
        if folder.is_dir():
            if (lacks := _lacks(folder, source)) is None:
                return folder
            _say(notify, f"{folder} is not used: {lacks}; fetching the whole set")
    return download(
        url or os.environ.get(URL_VARIABLE) or source.url,
        data_dir / NAME / "raw" / source.archive,
        checksum=Checksum("md5", source.archive_md5),
        max_bytes=source.limits.bytes,
        progress=progress,
        notify=notify,
    )


def prepare(
    data_dir: Path,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
    source: Source = PUBLISHED,
) -> Manifest:
    """Write the prepared set from files already on disk; whole arrays of the same files that are there stay.

    A copy that lacks images is refused unless `options.allow_partial`; the manifest then says what it lacks.

    Raises DataMissingError where no source is found or images lack, DataCorruptError naming an image or list
    that is not as it should be, SetupError where the folder cannot be written.
    """
    options = options or PrepareOptions()
    title = options.title or TITLE
    place = _place(data_dir, options.source, source)
    contents = None if place is None else _read(place, source)
    if contents is not None and contents.missing and not options.allow_partial:
        raise DataMissingError(
            f"{place} has {contents.missing}: that is not all of {TITLE}. `repro data fetch {NAME}` gets the "
            "whole set; --allow-partial takes what is there, and every table made from it will say so"
        )
    listing = None if contents is None else _listing(contents)

    def wanted(there: Manifest) -> bool:
        same = there.title == title and listing in (None, there.listing)
        return same and (there.partial is None or options.allow_partial)

    def make(writer: PreparedWriter) -> Manifest:
        if place is None or contents is None:
            raise _not_found(data_dir, options.source, source)
        notes = []
        if place.is_file() and (wrong := _wrong_md5(place, source)):
            if options.source is None:
                raise DataCorruptError(f"{wrong}: delete it and run `repro data fetch {NAME}`")
            notes.append(f"made of an archive that is not the published one: {wrong}")
        if contents.passed_over:
            notes.append(
                f"{len(contents.passed_over):,} files that are not of the set are passed over: "
                f"{named(contents.passed_over)}"
            )
        sources = dict(contents.texts)
        with image_decoder() as decode:
            for which, split in (("train", contents.train), ("test", contents.test)):
                hashes: list[str] = []
                names = [image.name for image in split.images]
                writer.split(
                    which,
                    np.array(split.labels, dtype=np.int64),
                    membership(names),
                    _decoded(decode, split, place, hashes, progress),
                )
                sources[f"{which} images"] = image_digest(names, hashes)
        return writer.finish(
            class_names=contents.class_names,
            sources=sources,
            partial=contents.missing,
            notes=notes,
            tools=decoder_versions(),
            listing=listing,
        )

    return prepare_once(
        data_dir, options.name or NAME, title, make, wanted=wanted, progress=progress, notify=notify
    )


def located(data_dir: Path, source: Source = PUBLISHED) -> Path | None:
    """The archive or folder that `prepare` would read, found by name alone; None where there is none."""
    return _place(data_dir, None, source)


def _decoded(
    decode: Decoder, split: Split, place: Path, hashes: list[str], progress: Progress | None
) -> Iterator[Images]:
    """The images of a split, in pieces; each file's sha256 is added to `hashes`."""
    rules = DecodeRules(IMAGE_SIZE, formats=("JPEG",), exact=True, max_bytes=1_000_000)
    for decoded in decode([Wanted(image) for image in split.images], rules, progress):
        bad = [
            f"{image.name}: {problem}"
            for image, problem in zip(split.images[len(hashes) :], decoded.problems, strict=False)
            if problem is not None
        ]
        if bad:
            raise DataCorruptError(
                f"{place} has images that are not as published ({named(bad)}): `repro data fetch {NAME}` "
                "gets the set whole"
            )
        hashes += decoded.sha256
        yield decoded.pixels


def _read(place: Path, source: Source) -> Contents:
    tree = open_zip(place, source.folder, source.limits) if place.is_file() else FolderTree(place)
    return read_contents(tree, str(place), source.expected)


def _listing(contents: Contents) -> str:
    texts = [f"{name}={sha256}" for name, sha256 in sorted(contents.texts.items())]
    return membership([*texts, listing_digest((*contents.train.images, *contents.test.images))])


def _lacks(folder: Path, source: Source) -> str | None:
    """Why the unpacked copy in `folder` is not a whole one."""
    try:
        contents = _read(folder, source)
    except (DataMissingError, DataCorruptError) as error:
        return str(error)
    return contents.missing and f"it has {contents.missing}"


def _place(data_dir: Path, given: Path | None, source: Source) -> Path | None:
    """Where the set is read from: an archive before a folder, as its checksum is known."""
    if given is not None and given.is_file():
        return given
    candidates = [*_archives(data_dir, source), *_folders(data_dir, source)]
    if given is not None:
        candidates = [given / source.archive, given / source.folder]
        if (given / "wnids.txt").is_file() or (given / "train").is_dir():
            candidates = [given]
    return next((place for place in candidates if place.is_file() or place.is_dir()), None)


def _not_found(data_dir: Path, given: Path | None, source: Source) -> DataMissingError:
    if given is not None:
        return DataMissingError(
            f"{given} is not {TITLE}: expected {source.archive}, the folder {source.folder}, or a folder "
            "above one of them"
        )
    places = [*_archives(data_dir, source), *_folders(data_dir, source)]
    return DataMissingError(
        f"{TITLE} is not on disk (looked for {', '.join(map(str, places))}): run `repro data fetch {NAME}`, "
        "or name its place with --from"
    )


def _archives(data_dir: Path, source: Source) -> tuple[Path, ...]:
    return data_dir / NAME / "raw" / source.archive, data_dir / source.archive


def _folders(data_dir: Path, source: Source) -> tuple[Path, ...]:
    return data_dir / NAME / "raw" / source.folder, data_dir / source.folder


def _wrong_md5(archive: Path, source: Source) -> str | None:
    try:
        actual = Checksum("md5", source.archive_md5).of(archive)
    except OSError as error:
        raise SetupError(f"cannot read {archive}: {error.strerror or error}") from error
    if actual == source.archive_md5:
        return None
    return f"{archive} has MD5 {actual}, expected {source.archive_md5}"


def _say(notify: Notify | None, message: str) -> None:
    if notify is not None:
        notify(message)
