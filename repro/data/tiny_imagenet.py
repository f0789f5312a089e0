"""TinyImageNet: the published zip, or its unpacked folder → prepared arrays.

    wnids.txt                                   one class per line, in the order of the labels
    words.txt                                   class, tab, what it is called
    train/<class>/images/<class>_<k>.JPEG       k from 0 to 499
    val/images/val_<k>.JPEG                     k from 0 to 9999
    val/val_annotations.txt                     image, tab, class, tab, a box that is not used here

`val` is the test set: the labels of `test` were never published. What is on disk is used where it is:
`tiny-imagenet-200.zip` or `tiny-imagenet-200/` in `<data>/tiny-imagenet/raw` or in `<data>`. The images are
read straight from the zip: 110,000 small files need not be written.
"""

import hashlib
import logging
import os
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro.data import DATA_SETS, FetchOptions, PrepareOptions
from repro.data.arrays import membership
from repro.data.decode import (
    DecodeRules,
    ImageDecoder,
    ImageFile,
    ImageRequest,
    decoder_versions,
    folder_files,
    image_digest,
    is_os_metadata,
    listing_digest,
)
from repro.data.download import Progress, download
from repro.data.files import file_hash
from repro.data.prepared import Images
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataCorruptError, DataMissingError
from repro.manifest import Manifest

NAME = "tiny-imagenet"
TITLE = DATA_SETS[NAME].title
RULES = DecodeRules(DATA_SETS[NAME].image_size, formats=("JPEG",), exact=True, max_bytes=1_000_000)
LONGEST_TEXT = 10_000_000  # bytes of a text file; the longest is words.txt with 2.6 MB
NAMED = 5  # files that a sentence names before it counts the rest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What is published: an address, the archive's MD5, and how much a whole copy has."""

    url: str
    archive: str
    archive_md5: str
    folder: str
    classes: int
    train_per_class: int
    test_per_class: int
    max_members: int = 130_000
    max_bytes: int = 600_000_000  # of the archive, packed and unpacked


PUBLISHED = Source(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    archive="tiny-imagenet-200.zip",
    archive_md5="90528d7ca1a48142e341f4ef8d21d0de",
    folder="tiny-imagenet-200",
    classes=200,
    train_per_class=500,
    test_per_class=50,
)

Split = list[tuple[ImageFile, int]]
"""Images with their labels, in the order of the set."""


def fetch(
    data_dir: Path,
    options: FetchOptions | None = None,
    progress: Progress | None = None,
    source: Source = PUBLISHED,
) -> Path:
    """The published archive, or a whole unpacked copy where there is one; downloaded where neither is.

    `options.url` or the environment variable REPRO_TINY_IMAGENET_URL names a mirror of the archive.

    Raises FetchError, DataCorruptError or SetupError.
    """
    archives, folders = _places(data_dir, source)
    for archive in archives:
        if archive.is_file() and file_hash(archive, "md5") == source.archive_md5:
            return archive
    for folder in filter(Path.is_dir, folders):
        try:
            if (missing := _Copy(folder, source).missing) is None:
                return folder
        except (DataMissingError, DataCorruptError) as error:
            missing = str(error)
        _log.info("%s is not used: it has %s; fetching the whole set", folder, missing)
    mirror = (options and options.url) or os.environ.get("REPRO_TINY_IMAGENET_URL")
    return download(
        mirror or source.url,
        archives[0],
        md5=source.archive_md5,
        max_bytes=source.max_bytes,
        progress=progress,
    )


def prepare(
    data_dir: Path,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    source: Source = PUBLISHED,
) -> Manifest:
    """Write the prepared set from files already on disk; whole arrays of the same files that are there stay.

    A copy that lacks images is refused unless `options.allow_partial`; the manifest then says what it lacks.

    Raises DataMissingError where no source is found or images lack, DataCorruptError naming an image or list
    that is not as it should be, SetupError where the folder cannot be written.
    """
    options = options or PrepareOptions()
    title = options.title or TITLE
    place = located(data_dir, source, options.source)
    copy = None if place is None else _Copy(place, source)
    if copy is not None and copy.missing and not options.allow_partial:
        raise DataMissingError(
            f"{place} has {copy.missing}: that is not all of {TITLE}. `repro data fetch {NAME}` gets the "
            "whole set; --allow-partial takes what is there, and every table made from it will say so"
        )
    listing = None if copy is None else copy.listing()

    def wanted(there: Manifest) -> bool:
        same = there.title == title and listing in (None, there.listing)
        return same and (there.partial is None or options.allow_partial)

    def make(writer: PreparedWriter) -> Manifest:
        if place is None or copy is None:
            raise _not_found(data_dir, options.source, source)
        notes = []
        if place.is_file() and (actual := file_hash(place, "md5")) != source.archive_md5:
            wrong = f"{place} has MD5 {actual}, expected {source.archive_md5}"
            if options.source is None:
                raise DataCorruptError(f"{wrong}: delete it and run `repro data fetch {NAME}`")
            notes.append(f"made of an archive that is not the published one: {wrong}")
        if copy.skipped:
            count, named = len(copy.skipped), _first(copy.skipped)
            notes.append(f"{count:,} files that are not of the set are passed over: {named}")
        sources = {name: copy.texts[name] for name in ("wnids.txt", "val_annotations.txt")}
        with ImageDecoder() as decoder:
            for which, split in (("train", copy.train), ("test", copy.test)):
                names = [image.name for image, _ in split]
                labels = np.array([label for _, label in split], dtype=np.int64)
                hashes: list[str] = []
                pieces = _decode(decoder, split, place, hashes, progress)
                writer.split(which, labels, membership(names), pieces)
                sources[f"{which} images"] = image_digest(names, hashes)
        return writer.finish(
            copy.class_names,
            sources,
            partial=copy.missing,
            notes=notes,
            tools=decoder_versions(),
            listing=listing,
        )

    return prepare_once(data_dir, options.name or NAME, title, make, wanted=wanted, progress=progress)


def located(data_dir: Path, source: Source = PUBLISHED, given: Path | None = None) -> Path | None:
    """The archive or folder that `prepare` would read, found by name alone; None where there is none."""
    if given is None:
        archives, folders = _places(data_dir, source)
        candidates = [*archives, *folders]  # an archive first, as its checksum is known
    elif given.is_file() or (given / "wnids.txt").is_file() or (given / "train").is_dir():
        candidates = [given]
    else:
        candidates = [given / source.archive, given / source.folder]
    return next((place for place in candidates if place.exists()), None)


class _Copy:
    """A copy of the set in a zip or folder, as far as names go: no image is opened.

    Raises DataMissingError for a copy without its text files or with a class that has no image, and
    DataCorruptError for a torn zip and for lists that contradict themselves or the images.
    """

    def __init__(self, place: Path, source: Source) -> None:
        self.place, self.source = place, source
        self.texts: dict[str, str] = {}  # text file → its sha256
        self.skipped: list[str] = []  # files among the images that are not of the set
        self._zipped = self._index_zip() if place.is_file() else None
        self.labels = self._read_labels()
        named = dict(line.partition("\t")[::2] for line in self._lines("words.txt"))
        words = [named.get(wnid, "") for wnid in self.labels]
        self.class_names = [
            name if name and name.isprintable() else wnid
            for wnid, name in zip(self.labels, words, strict=True)
        ]
        self.train: Split = [
            (file, label)
            for wnid, label in self.labels.items()
            for file in self._numbered(f"train/{wnid}/images", wnid, source.train_per_class)
        ]
        self.test = self._read_test()
        self.missing = self._find_missing()  # what a whole copy has and this one lacks

    def listing(self) -> str:
        """One sha256 over the lists and every image's name and size."""
        texts = [f"{name}={self.texts[name]}" for name in ("val_annotations.txt", "wnids.txt")]
        return membership([*texts, listing_digest(image for image, _ in (*self.train, *self.test))])

    def _files(self, folder: str) -> list[ImageFile]:
        if self._zipped is not None:
            return self._zipped.get(folder, [])
        return folder_files(self.place, folder) if (self.place / folder).is_dir() else []

    def _index_zip(self) -> dict[str, list[ImageFile]]:
        source, by_folder = self.source, dict[str, list[ImageFile]]()
        try:
            with zipfile.ZipFile(self.place) as archive:
                members = archive.infolist()
        # zipfile raises all of these on torn or hostile input.
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            struct.error,
            ValueError,
            OverflowError,
            OSError,
        ) as error:
            raise self._corrupt(f"not a whole zip archive ({error})") from error
        if len(members) > source.max_members or sum(each.file_size for each in members) > source.max_bytes:
            limits = f"{source.max_members:,} files or {source.max_bytes:,} bytes"
            raise self._corrupt(f"more than the {limits} that {TITLE} has at most")
        for member in members:
            top, _, name = member.filename.partition("/")
            folder, _, last = name.rpartition("/")
            if top == source.folder and last and not is_os_metadata(last):
                file = ImageFile(str(self.place), name, member.file_size, member.filename)
                by_folder.setdefault(folder, []).append(file)
        return {folder: sorted(files, key=lambda file: file.name) for folder, files in by_folder.items()}

    def _lines(self, path: str) -> list[str]:
        """The lines of a text file; its sha256 goes to `texts`."""
        folder, _, name = path.rpartition("/")
        file = next((file for file in self._files(folder) if file.name == path), None)
        if file is None:
            raise DataMissingError(
                f"{self.place} has no {path}: expected TinyImageNet as it is published, with train/, val/, "
                "wnids.txt and words.txt"
            )
        try:
            content = file.read(LONGEST_TEXT)
            self.texts[name] = hashlib.sha256(content).hexdigest()
            if len(content) > LONGEST_TEXT:
                raise ValueError(f"longer than {LONGEST_TEXT:,} bytes")
            # Only line feeds end a line, with or without a carriage return before.
            return [line.removesuffix("\r") for line in content.decode().split("\n")]
        except ValueError as error:  # of decoding, too
            raise self._corrupt(f"{path} is not whole text ({error})") from None

    def _read_labels(self) -> dict[str, int]:
        lines = [line for line in self._lines("wnids.txt") if line]
        for number, line in enumerate(lines, 1):
            if not re.fullmatch(r"n[0-9]{8}", line):
                raise self._corrupt(f"wnids.txt, line {number}: {_shown(line)} is not a class's name")
        labels = {wnid: label for label, wnid in enumerate(lines)}
        if len(lines) != self.source.classes or len(labels) != self.source.classes:
            found = f"{len(labels)} different classes on {len(lines)} lines"
            raise self._corrupt(f"wnids.txt has {found}, expected {self.source.classes}")
        return labels

    def _read_test(self) -> Split:
        path = "val/val_annotations.txt"
        listed: dict[str, int] = {}
        for number, line in enumerate(self._lines(path), 1):
            name, wnid = [*line.split("\t"), ""][:2]
            if name and (wnid not in self.labels or name in listed):
                of_class = f"is of the class {_shown(wnid)}, which wnids.txt lacks"
                wrong = "is listed twice" if wnid in self.labels else of_class
                raise self._corrupt(f"{path}, line {number}: {_shown(name)} {wrong}")
            if name:
                listed[name] = self.labels[wnid]
        count = self.source.classes * self.source.test_per_class
        files = self._numbered("val/images", "val", count)
        if unlisted := [file.name for file in files if _base_name(file) not in listed]:
            raise self._corrupt(f"{path} has no class for {_first(unlisted)}")
        return [(file, listed[_base_name(file)]) for file in files]

    def _numbered(self, folder: str, prefix: str, limit: int) -> list[ImageFile]:
        """The files called `<prefix>_<k>.JPEG`, k below `limit`, by k; others go to `skipped`."""
        found = {}
        for file in self._files(folder):
            match = re.fullmatch(rf"{prefix}_(0|[1-9][0-9]{{0,5}})\.JPEG", _base_name(file))
            if match and int(match[1]) < limit:
                found[int(match[1])] = file
            else:
                self.skipped.append(file.name)
        return [found[number] for number in sorted(found)]

    def _find_missing(self) -> str | None:
        whole = (self.source.train_per_class, self.source.test_per_class)
        counted = [Counter(label for _, label in split) for split in (self.train, self.test)]
        counts = {wnid: (counted[0][label], counted[1][label]) for wnid, label in self.labels.items()}
        for wnid, (train, test) in counts.items():
            if not train or not test:
                which = "test" if train else "training"
                raise DataMissingError(
                    f"{self.place}: the class {wnid} has no {which} images; every class needs some"
                )
            if test > whole[1]:
                gives = f"gives the class {wnid} {test} images, expected {whole[1]}"
                raise self._corrupt(f"val/val_annotations.txt {gives}")
        short = [(pair, wnid) for wnid, pair in counts.items() if pair != whole]
        if not short:
            return None
        (train, test), wnid = min(short)
        if set(counts.values()) == {(train, test)}:
            return f"{train} of {whole[0]} training and {test} of {whole[1]} test images a class"
        of_train, of_test = (count * len(self.labels) for count in whole)
        return (
            f"{len(self.train):,} of {of_train:,} training and {len(self.test):,} of {of_test:,} test "
            f"images; {len(short)} of {len(self.labels)} classes lack some, {wnid} most with {train} "
            f"training and {test} test images"
        )

    def _corrupt(self, problem: str) -> DataCorruptError:
        return DataCorruptError(f"{self.place}: {problem}; `repro data fetch {NAME}` gets the whole set")


def _decode(
    decoder: ImageDecoder, split: Split, place: Path, hashes: list[str], progress: Progress | None
) -> Iterator[Images]:
    """The images of a split, in pieces; each file's sha256 is added to `hashes`."""
    for decoded in decoder.decode([ImageRequest(image) for image, _ in split], RULES, progress):
        done = split[len(hashes) : len(hashes) + len(decoded.problems)]
        if bad := [
            f"{image.name}: {why}" for (image, _), why in zip(done, decoded.problems, strict=True) if why
        ]:
            raise DataCorruptError(
                f"{place} has images that are not as published ({_first(bad)}): `repro data fetch {NAME}` "
                "gets the set whole"
            )
        hashes += decoded.sha256
        yield decoded.pixels


def _places(data_dir: Path, source: Source) -> tuple[list[Path], list[Path]]:
    """Where the archive is looked for, and where the folder."""
    parents = (data_dir / NAME / "raw", data_dir)
    return [parent / source.archive for parent in parents], [parent / source.folder for parent in parents]


def _not_found(data_dir: Path, given: Path | None, source: Source) -> DataMissingError:
    if given is not None:
        return DataMissingError(
            f"{given} is not {TITLE}: expected {source.archive}, the folder {source.folder}, or a folder "
            "above one of them"
        )
    archives, folders = _places(data_dir, source)
    return DataMissingError(
        f"{TITLE} is not on disk (looked for {', '.join(map(str, archives + folders))}): run "
        f"`repro data fetch {NAME}`, or name its place with --from"
    )


def _base_name(file: ImageFile) -> str:
    return file.name.rpartition("/")[2]


def _first(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(_shown, names[:NAMED])) + more


def _shown(text: str) -> str:
    """A name from elsewhere, made fit for a message."""
    return text if text.isprintable() and text else ascii(text)
