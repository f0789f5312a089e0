"""What a copy of TinyImageNet holds: its classes, images and labels, and what is missing of them.

    wnids.txt                                   one class a line, in the order of the labels
    words.txt                                   class, tab, what it is called
    train/<class>/images/<class>_<k>.JPEG       k from 0 to 499
    val/images/val_<k>.JPEG                     k from 0 to 9999
    val/val_annotations.txt                     image, tab, class, tab, a box that is not used here

`val` is the test set: the labels of `test` were never published. Only names are looked at here, no image is
opened.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repro.data.image_files import ImageFile, SourceTree
from repro.errors import DataCorruptError, DataMissingError

LONGEST_TEXT = 10_000_000
"""Bytes of a text file; the longest is words.txt with 2.6 MB."""
NAMED = 5
"""Files that a sentence names before it counts the rest."""

_CLASS = re.compile(r"n\d{8}")
_NUMBER = r"(0|[1-9]\d{0,5})"


@dataclass(frozen=True)
class Expected:
    """How much a whole copy has."""

    classes: int
    train_per_class: int
    test_per_class: int


@dataclass(frozen=True)
class Split:
    """Images with their labels, in the order of the set."""

    images: tuple[ImageFile, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """A copy of the set, as far as names go. `texts` maps each file that decides labels to its sha256."""

    class_names: tuple[str, ...]
    train: Split
    test: Split
    texts: Mapping[str, str]
    missing: str | None
    """What a whole copy has and this one lacks."""
    passed_over: tuple[str, ...]
    """Files among the images that are not of the set."""


def read_contents(tree: SourceTree, place: str, expected: Expected) -> Contents:
    """The contents of the copy in `tree`; `place` is what messages call it.

    Raises DataMissingError for a copy without its text files or with a class that has no image, and
    DataCorruptError for lists that contradict themselves or the images.
    """
    texts: dict[str, bytes] = {}
    for folder, name in (("", "wnids.txt"), ("", "words.txt"), ("val", "val_annotations.txt")):
        texts[name] = _text(tree, place, folder, name)
    classes = _classes(texts["wnids.txt"], place, expected.classes)
    passed_over: list[str] = []
    train = _training(tree, classes, expected.train_per_class, passed_over)
    test = _testing(tree, place, classes, texts["val_annotations.txt"], expected, passed_over)
    return Contents(
        class_names=_class_names(texts["words.txt"], classes, place),
        train=train,
        test=test,
        texts={
            name: hashlib.sha256(texts[name]).hexdigest() for name in ("wnids.txt", "val_annotations.txt")
        },
        missing=_missing(train, test, classes, place, expected),
        passed_over=tuple(passed_over),
    )


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(_shown, names[:NAMED])) + more


def _text(tree: SourceTree, place: str, folder: str, name: str) -> bytes:
    path = f"{folder}/{name}" if folder else name
    for file in tree.files(folder):
        if file.name == path:
            try:
                content = file.read(LONGEST_TEXT)
            except ValueError as error:
                raise DataCorruptError(f"{place}: {path}: {error}") from None
            if len(content) > LONGEST_TEXT:
                raise DataCorruptError(f"{place}: {path} is longer than {LONGEST_TEXT:,} bytes")
            return content
    raise DataMissingError(
        f"{place} has no {path}: expected TinyImageNet as it is published, with train/, val/, wnids.txt and "
        "words.txt"
    )


def _lines(content: bytes, place: str, path: str) -> list[str]:
    try:
        # Only line feeds end a line, with or without a carriage return; other separators are part of it.
        return [line.removesuffix("\r") for line in content.decode().split("\n")]
    except UnicodeDecodeError as error:
        raise DataCorruptError(f"{place}: {path} is not text ({error})") from None


def _classes(content: bytes, place: str, expected: int) -> dict[str, int]:
    """Each class's label."""
    lines = [line for line in _lines(content, place, "wnids.txt") if line]
    for number, line in enumerate(lines, 1):
        if not _CLASS.fullmatch(line):
            raise DataCorruptError(f"{place}: wnids.txt, line {number}: {_shown(line)} is not a class's name")
    classes = {name: label for label, name in enumerate(lines)}
    if len(lines) != expected or len(classes) != expected:
        raise DataCorruptError(
            f"{place}: wnids.txt has {len(classes)} different classes on {len(lines)} lines, "
            f"expected {expected}"
        )
    return classes


def _class_names(content: bytes, classes: Mapping[str, int], place: str) -> tuple[str, ...]:
    """What words.txt calls each class; its own name where it is not there."""
    names = dict.fromkeys(classes, "")
    for line in _lines(content, place, "words.txt"):
        wnid, _, words = line.partition("\t")
        if wnid in names and words.isprintable():
            names[wnid] = words
    return tuple(words or wnid for wnid, words in names.items())


def _training(tree: SourceTree, classes: Mapping[str, int], per_class: int, passed_over: list[str]) -> Split:
    images: list[ImageFile] = []
    labels: list[int] = []
    for wnid, label in classes.items():
        numbered = _numbered(tree.files(f"train/{wnid}/images"), wnid, per_class, passed_over)
        images += numbered.values()
        labels += [label] * len(numbered)
    return Split(tuple(images), tuple(labels))


def _testing(
    tree: SourceTree,
    place: str,
    classes: Mapping[str, int],
    annotations: bytes,
    expected: Expected,
    passed_over: list[str],
) -> Split:
    where = "val/val_annotations.txt"
    limit = expected.classes * expected.test_per_class
    listed: dict[int, int] = {}
    for number, line in enumerate(_lines(annotations, place, where), 1):
        if not line:
            continue
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        index = _number(name, "val", limit)
        if index is None:
            reason = f"{_shown(name)} is not the name of one of the {limit:,} images"
        elif wnid not in classes:
            reason = f"{name} is of the class {_shown(wnid)}, which wnids.txt lacks"
        elif index in listed:
            reason = f"{name} is listed twice"
        else:
            listed[index] = classes[wnid]
            continue
        raise DataCorruptError(f"{place}: {where}, line {number}: {reason}")
    found = _numbered(tree.files("val/images"), "val", limit, passed_over)
    if unlisted := [file.name for index, file in found.items() if index not in listed]:
        raise DataCorruptError(f"{place}: {where} has no class for {named(unlisted)}")
    return Split(tuple(found.values()), tuple(listed[index] for index in found))


def _numbered(
    files: Sequence[ImageFile], prefix: str, limit: int, passed_over: list[str]
) -> dict[int, ImageFile]:
    """The files called `<prefix>_<k>.JPEG`, k below `limit`, by k, ascending; others go to `passed_over`."""
    found = {}
    for file in files:
        index = _number(file.name.rpartition("/")[2], prefix, limit)
        if index is None:
            passed_over.append(file.name)
        else:
            found[index] = file
    return dict(sorted(found.items()))


def _number(name: str, prefix: str, limit: int) -> int | None:
    match = re.fullmatch(rf"{prefix}_{_NUMBER}\.JPEG", name, re.ASCII)
    return int(match[1]) if match and int(match[1]) < limit else None


def _missing(
    train: Split, test: Split, classes: Mapping[str, int], place: str, expected: Expected
) -> str | None:
    train_counts, test_counts = Counter(train.labels), Counter(test.labels)
    short = []
    for wnid, label in classes.items():
        counts = (train_counts[label], test_counts[label])
        if 0 in counts:
            which = "training" if not counts[0] else "test"
            raise DataMissingError(f"{place}: the class {wnid} has no {which} images; every class needs some")
        if counts[1] > expected.test_per_class:
            raise DataCorruptError(
                f"{place}: val/val_annotations.txt gives the class {wnid} {counts[1]} images, "
                f"expected {expected.test_per_class}"
            )
        if counts != (expected.train_per_class, expected.test_per_class):
            short.append((counts, wnid))
    if not short:
        return None
    if len(short) == len(classes) and len({counts for counts, _ in short}) == 1:
        (have_train, have_test), _ = short[0]
        return (
            f"{have_train} of {expected.train_per_class} training and {have_test} of "
            f"{expected.test_per_class} test images a class"
        )
    (fewest_train, fewest_test), wnid = min(short)
    return (
        f"{len(train.labels):,} of {expected.train_per_class * len(classes):,} training and "
        f"{len(test.labels):,} of {expected.test_per_class * len(classes):,} test images; {len(short)} of "
        f"{len(classes)} classes lack some, {wnid} most with {fewest_train} training and {fewest_test} test "
        "images"
    )


def _shown(text: str) -> str:
    """A name from elsewhere, made fit for a message."""
    return text if text.isprintable() and text else ascii(text)
