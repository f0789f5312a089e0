"""TinyImageNet: the published zip, or its unpacked folder → prepared arrays.

    wnids.txt                                   one class per line, in the order of the labels
    words.txt                                   class, tab, what it is called
    train/<class>/images/<class>_<k>.JPEG       k from 0 to 499
    val/images/val_<k>.JPEG                     k from 0 to 9999
    val/val_annotations.txt                     image, tab, class, tab, a box that is not used here

Copies whose images lie in folders by class are read as well, with or without the folders `images`:

    train/<class>/<class>_<k>.JPEG              val/<class>/images/val_<k>.JPEG

`val` is the test set: the labels of `test` were never published. What is on disk is used where it is:
`tiny-imagenet-200.zip` or `tiny-imagenet-200/` in `<data>/tiny-imagenet/raw` or in `<data>`. The images are
read straight from the zip: 110,000 small files need not be written.
"""

import hashlib
import logging
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.data import DATA_SETS, decode
from repro.data import download as downloading
from repro.data.decode import NAMED, DecodeRules, ImageFile, ImageRequest, passed_over_note
from repro.data.prepared import Images, membership
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataCorruptError, DataMissingError, printable
from repro.manifest import Manifest

NAME = "tiny-imagenet"
TITLE = DATA_SETS[NAME].title
RULES = DecodeRules(DATA_SETS[NAME].image_size, formats=("JPEG",), exact=True, max_bytes=1_000_000)
LONGEST_TEXT = 10_000_000  # bytes of a text file; the longest is words.txt with 2.6 MB
ANNOTATIONS = "val/val_annotations.txt"
TRAIN = re.compile(r"train/(n[0-9]{8})/(?:images/)?(\1_(0|[1-9][0-9]{0,5})\.JPEG)")
TEST = re.compile(r"val/(?:(n[0-9]{8})/)?(?:images/)?(val_(0|[1-9][0-9]{0,5})\.JPEG)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published(downloading.Published):
    """The archive, and how much a whole copy has."""

    classes: int
    train_per_class: int
    test_per_class: int
    max_members: int


PUBLISHED = Published(
    name=NAME,
    title=TITLE,
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    mirror_variable="REPRO_TINY_IMAGENET_URL",
    archive="tiny-imagenet-200.zip",
    archive_md5="90528d7ca1a48142e341f4ef8d21d0de",
    folder="tiny-imagenet-200",
    max_bytes=600_000_000,
    classes=200,
    train_per_class=500,
    test_per_class=50,
    max_members=130_000,
)

Split = list[tuple[str, int, ImageFile]]
"""Images by their published names, with their labels, in the order of the set."""


def fetch(data_dir: Path, *, url: str | None = None, published: Published = PUBLISHED) -> Path:
    """The published archive, or a whole unpacked copy where there is one; downloaded where neither is.

    `url` or the environment variable REPRO_TINY_IMAGENET_URL names a mirror of the archive.

    Raises FetchError, DataCorruptError or SetupError.
    """
    if archive := published.whole_archive(data_dir):
        return archive
    for folder in filter(Path.is_dir, published.places(data_dir, published.folder)):
        try:
            if (missing := _Copy(folder, published).missing) is None:
                return folder
        except (DataMissingError, DataCorruptError) as error:
            missing = str(error)
        _log.info("%s is not used: it has %s; fetching the whole set", folder, missing)
    return published.download(data_dir, url)


def prepare(
    data_dir: Path,
    *,
    source: Path | None = None,
    save_as: str = NAME,
    title: str = TITLE,
    allow_partial: bool = False,
    published: Published = PUBLISHED,
) -> Manifest:
    """Write the prepared set from files already on disk; whole arrays of the same files that are there stay.

    A copy that lacks images is refused unless `allow_partial`; the manifest then says what it lacks.

    Raises DataMissingError where no source is found or images lack, DataCorruptError naming an image or list
    that is not as it should be, SetupError where the folder cannot be written.
    """
    place = find_source(data_dir, source, published)
    copy = None if place is None else _Copy(place, published)
    if copy is not None and copy.missing and not allow_partial:
        raise DataMissingError(
            f"{place} has {copy.missing}: that is not all of {TITLE}. `repro data fetch {NAME}` gets the "
            "whole set; --allow-partial takes what is there, and every table made from it will say so"
        )
    listing = None if copy is None else copy.listing()

    def wanted(there: Manifest) -> bool:
        same = there.title == title and listing in (None, there.listing)
        return same and (there.partial is None or allow_partial)

    def make(writer: PreparedWriter) -> Manifest:
        if place is None or copy is None:
            raise published.not_found(data_dir, source)
        notes = []
        if place.is_file() and (wrong := published.wrong_md5(place)):
            if source is None:
                raise published.corrupt(wrong)
            notes.append(f"made of an archive that is not the published one: {wrong}")
        notes += passed_over_note(copy.skipped)
        sources = {name: sha256 for name, sha256 in copy.texts.items() if name != "words.txt"}
        for which, split in (("train", copy.train), ("test", copy.test)):
            names = [name for name, _, _ in split]
            labels = np.array([label for _, label, _ in split], dtype=np.int64)
            hashes: list[str] = []
            writer.split(which, labels, membership(names), _decode(split, place, hashes), RULES.size)
            sources[f"{which} images"] = decode.image_digest(names, hashes)
        facts: dict[str, Any] = {"partial": copy.missing, "notes": notes, "listing": listing}
        return writer.finish(copy.class_names, sources, tools=decode.decoder_versions(), **facts)

    return prepare_once(data_dir, save_as, title, make, wanted=wanted)


def find_source(data_dir: Path, source: Path | None = None, published: Published = PUBLISHED) -> Path | None:
    """The archive or folder that `prepare` would read, found by name alone; None where there is none."""
    if source is not None and ((source / "wnids.txt").is_file() or (source / "train").is_dir()):
        return source
    # An archive first, as its checksum is known; a folder that is named is one only by what is in it.
    places = [path for path in published.places(data_dir, published.archive, source) if path.is_file()]
    places += [path for path in published.places(data_dir, published.folder, source) if path.is_dir()]
    return next((path for path in places if path != source or path.is_file()), None)


class _Copy:
    """A copy of the set in a zip or folder, as far as names go: no image is opened.

    Raises DataMissingError for a copy without its text files or with a class that has no image, and
    DataCorruptError for a torn zip and for lists that contradict themselves or the images.
    """

    def __init__(self, place: Path, published: Published) -> None:
        self.place, self.published = place, published
        self.texts: dict[str, str] = {}  # text file → its sha256
        self.skipped: dict[str, str] = {}  # files among the images that are not of the set, and why
        files = self._zipped_files() if place.is_file() else decode.tree_files(place)[0]
        self._files = {file.name: file for file in files}
        lines = [line for line in self._lines("wnids.txt") if line]
        classes = {line for line in lines if re.fullmatch(r"n[0-9]{8}", line)}
        if not len(lines) == len(classes) == published.classes:
            raise self._corrupt(f"wnids.txt: expected {published.classes} different classes like n01443537")
        self.labels = {wnid: label for label, wnid in enumerate(lines)}
        words = dict(line.partition("\t")[::2] for line in self._lines("words.txt"))
        named = {wnid: words.get(wnid, "") for wnid in lines}
        self.class_names = [name if name and name.isprintable() else wnid for wnid, name in named.items()]
        self.train, self.test = self._read_splits()
        self.missing = self._find_missing()  # what a whole copy has and this one lacks

    def listing(self) -> str:
        """One sha256 over the lists and every image's name and size."""
        texts = [f"{name}={sha256}" for name, sha256 in sorted(self.texts.items()) if name != "words.txt"]
        return membership([*texts, decode.listing_digest(file for _, _, file in (*self.train, *self.test))])

    def _zipped_files(self) -> Iterator[ImageFile]:
        published = self.published
        try:
            with zipfile.ZipFile(self.place) as archive:
                members = archive.infolist()
        # zipfile raises all of these on torn or hostile input.
        except (zipfile.BadZipFile, RuntimeError, struct.error, ValueError, OSError, OverflowError) as bad:
            raise self._corrupt(f"not a whole zip archive ({bad})") from bad
        size = sum(each.file_size for each in members)
        if len(members) > published.max_members or size > published.max_bytes:
            limits = f"{published.max_members:,} files or {published.max_bytes:,} bytes"
            raise self._corrupt(f"more than the {limits} that {TITLE} has at most")
        for member in members:
            top, _, name = member.filename.partition("/")
            if (
                top == published.folder
                and not member.is_dir()
                and not decode.passed_over_reason(Path(name).name)
            ):
                yield ImageFile(str(self.place), name, member.file_size, member.filename)

    def _lines(self, path: str) -> list[str]:
        """The lines of a text file; its sha256 goes to `texts`."""
        file = self._files.get(path)
        if file is None:
            found = sorted({name.partition("/")[0] + "/" * ("/" in name) for name in self._files})
            raise DataMissingError(
                f"{self.place} has no {path}: expected TinyImageNet as it is published, with train/, val/, "
                f"wnids.txt and words.txt; found {printable(', '.join(found[:10])) or 'nothing'}"
            )
        try:
            content = file.read(LONGEST_TEXT)
            self.texts[Path(path).name] = hashlib.sha256(content).hexdigest()
            # Only line feeds end a line, with or without a carriage return before.
            return [line.removesuffix("\r") for line in content.decode().split("\n")]
        except ValueError as error:  # of decoding, too
            raise self._corrupt(f"{path} is not whole text ({error})") from None

    def _read_annotations(self) -> dict[str, int]:
        """The label of each test image that is listed."""
        listed: dict[str, int] = {}
        for number, line in enumerate(self._lines(ANNOTATIONS), 1):
            name, wnid = [*line.split("\t"), ""][:2]
            wrong = "" if wnid in self.labels else f"has no class of wnids.txt, but {wnid!r}"
            if name and (wrong or name in listed):
                wrong = wrong or "is listed twice"
                raise self._corrupt(f"{ANNOTATIONS}, line {number}: {printable(name)} {wrong}")
            if name:
                listed[name] = self.labels[wnid]
        return listed

    def _read_splits(self) -> tuple[Split, Split]:
        """Training images by class and number, test images by number; other images go to `skipped`."""
        train: dict[tuple[int, int], tuple[str, int, ImageFile]] = {}
        test: dict[tuple[int, int], tuple[str, int, ImageFile]] = {}
        tests = [match for match in map(TEST.fullmatch, self._files) if match]
        # Folders by class say what the list says, and copies with them often lack it.
        by_class = all(match[1] for match in tests) and bool(tests) and ANNOTATIONS not in self._files
        listed = {} if by_class else self._read_annotations()
        limits = (self.published.classes * self.published.test_per_class, self.published.train_per_class)
        for name, file in sorted(self._files.items()):
            of_train = TRAIN.fullmatch(name)
            match = of_train or TEST.fullmatch(name)
            if not match or int(match[3]) >= limits[bool(of_train)]:
                if re.match(r"(train|val)/.*(?<=/)images/|(train|val)/.*\.jpe?g$", name, re.IGNORECASE):
                    self.skipped[printable(name)] = "not of the set"
                continue
            label, number = self.labels.get(match[1] or ""), int(match[3])
            half, published = train, f"train/{match[1]}/images/{match[2]}"
            if not of_train:
                half, published, named = test, f"val/images/{match[2]}", listed.get(match[2])
                if not by_class and (named is None or named != (label if match[1] else named)):
                    wrong = f"has no class for {name}" if named is None else f"puts {name} in another folder"
                    raise self._corrupt(f"{ANNOTATIONS} {wrong}")
                label = label if by_class else named
            key = (label or 0, number) if of_train else (0, number)
            if label is None or key in half:
                self.skipped[printable(name)] = "not of the set" if label is None else "there twice"
            else:
                half[key] = (published, label, file)
        return [each for _, each in sorted(train.items())], [each for _, each in sorted(test.items())]

    def _find_missing(self) -> str | None:
        whole = (self.published.train_per_class, self.published.test_per_class)
        train, test = (Counter(label for _, label, _ in split) for split in (self.train, self.test))
        for wnid, label in self.labels.items():
            if not train[label] or not test[label]:
                which = "test" if train[label] else "training"
                odd = next((f"; what is there is named {name}" for name in self.skipped), "")
                raise DataMissingError(
                    f"{self.place}: the class {wnid} has no {which} images; every class needs some{odd}"
                )
            if test[label] > whole[1]:
                gives = f"gives the class {wnid} {test[label]} images, expected {whole[1]}"
                raise self._corrupt(f"{ANNOTATIONS} {gives}")
        found, expected = (len(self.train), len(self.test)), [count * len(self.labels) for count in whole]
        if list(found) == expected:
            return None
        return f"{found[0]:,} of {expected[0]:,} training and {found[1]:,} of {expected[1]:,} test images"

    def _corrupt(self, problem: str) -> DataCorruptError:
        return DataCorruptError(f"{self.place}: {problem}; `repro data fetch {NAME}` gets the whole set")


def _decode(split: Split, place: Path, hashes: list[str]) -> Iterator[Images]:
    """The images of a split, in pieces; each file's sha256 is added to `hashes`."""
    for decoded in decode.decode_images([ImageRequest(file) for _, _, file in split], RULES):
        done = split[len(hashes) : len(hashes) + len(decoded.problems)]
        pairs = zip(done, decoded.problems, strict=True)
        if bad := [f"{file.name}: {why}" for (_, _, file), why in pairs if why]:
            raise DataCorruptError(
                f"{place} has images that are not as published ({', '.join(bad[:NAMED])}): `repro data fetch "
                f"{NAME}` gets the set whole"
            )
        hashes += decoded.sha256
        yield decoded.pixels
