"""Sets with a class per person (or anything else): which classes count, which images test, and writing both.

The rule of the paper's FaceScrub: identities with fewer than 70 images are left out, then a tenth of each
one's images, at random, is for testing. The draw depends on the seed and the images' names alone: not on
other classes, on the order in which files are found, or on a library.

What can be used is known only once it is decoded, and the split only then; so the images pass once through
a temporary array in the writer's folder, and each split is gathered from it.

`prepare` makes a set of the user's own by this rule, from a folder of images per class:

    <folder>/Alvaro_Uribe/Alvaro_Uribe_0001.jpg …
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.data import OWN_IMAGE_SIZE
from repro.data.arrays import CHUNK, membership
from repro.data.decode import (
    DecodeRules,
    ImageFile,
    ImageRequest,
    decode_images,
    decoder_versions,
    folder_files,
    image_digest,
    is_os_metadata,
    listing_digest,
)
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataMissingError, SetupError
from repro.manifest import Manifest

NAMED = 5  # unusable images that a note names; the manifest's `left_out` names all
MIN_IMAGES = 70  # of a person, in the paper's FaceScrub


@dataclass(frozen=True)
class SplitRule:
    """`min_images` and more are needed, `test_percent` of them (rounded down, at least one) test."""

    min_images: int = MIN_IMAGES
    test_percent: int = 10
    seed: int = 0

    @property
    def settings(self) -> dict[str, str]:
        """As the manifest names it."""
        return {
            "min_images": str(self.min_images),
            "test_percent": str(self.test_percent),
            "split_seed": str(self.seed),
        }


Members = list[tuple[int, int]]
"""Images by their position among all, each with its label."""


@dataclass(frozen=True)
class IdentitySplit:
    """The classes that count, by name, in order, and the images of each split, class by class."""

    class_names: list[str]
    train: Members
    test: Members
    too_few: dict[str, int]  # each identity that was left out, with its number of images


def split_identities(images: Sequence[tuple[str, str] | None], rule: SplitRule) -> IdentitySplit:
    """Split `images`, each an (identity, image name) or None where it is not usable; names are unique.

    Classes and the images in them are in the order of their names.
    """
    by_identity: dict[str, list[tuple[str, int]]] = {}
    for position, image in enumerate(images):
        if image is not None:
            by_identity.setdefault(image[0], []).append((image[1], position))
    split = IdentitySplit([], [], [], {})
    for identity, found in sorted(by_identity.items()):
        if len(found) < rule.min_images:
            split.too_few[identity] = len(found)
            continue
        drawn = sorted(found, key=lambda image: (_rank_key(rule.seed, image[0]), image))
        held_out = set(drawn[: max(1, len(found) * rule.test_percent // 100)])
        for name, position in sorted(found):
            part = split.test if (name, position) in held_out else split.train
            part.append((position, len(split.class_names)))
        split.class_names.append(identity)
    return split


def _rank_key(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image of the class `identity`; `name` is what the split is drawn by, unique and printable."""

    identity: str
    name: str
    request: ImageRequest


def write_identities(
    writer: PreparedWriter,
    candidates: Sequence[Candidate],
    split_rule: SplitRule,
    rules: DecodeRules,
    *,
    settings: Mapping[str, str],
    sources: Mapping[str, str],
    left_out: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    **facts: Any,
) -> Manifest:
    """Decode `candidates` by `rules`, split them by `split_rule` and finish the set.

    `left_out` are images that were found unusable before, with the reason; those that cannot be decoded are
    added to them. `settings` of the preparation are completed by those of the split, `sources` (file →
    sha256) by the images of each. `facts` go into the manifest as they are.

    Raises DataMissingError where fewer than two classes are left, SetupError where a file cannot be read or
    the set not written.
    """
    candidates = sorted(candidates, key=lambda each: (each.identity, each.name))
    decoded = writer.new_array("decoded.npy", len(candidates), rules.size)
    hashes: list[str] = []
    usable: list[tuple[str, str] | None] = []
    unusable = dict(left_out or {})
    for piece in decode_images([each.request for each in candidates], rules):
        decoded[len(hashes) : len(hashes) + len(piece.pixels)] = piece.pixels
        hashes += piece.sha256
        for each, problem in zip(candidates[len(usable) : len(hashes)], piece.problems, strict=True):
            usable.append(None if problem else (each.identity, each.name))
            if problem:
                unusable[each.name] = problem
    split = split_identities(usable, split_rule)
    named = "; ".join(f"{name}: {reason}" for name, reason in sorted(unusable.items())[:NAMED])
    more = f"; and {len(unusable) - NAMED:,} more" if len(unusable) > NAMED else ""
    unusable_note = f"{len(unusable):,} unusable images are left out ({named}{more})"
    if len(split.class_names) < 2:
        raise DataMissingError(
            f"{len(split.class_names)} of {len({each.identity for each in candidates})} classes have "
            f"{split_rule.min_images} usable images or more, at least two are needed"
            f"{f'; {unusable_note}' if unusable else ''}; --min-images asks for fewer"
        )
    too_few_note = (
        f"{len(split.too_few):,} classes with fewer than {split_rule.min_images} images are left out, "
        f"{sum(split.too_few.values()):,} images in all"
    )
    sources = dict(sources)
    for which, members in (("train", split.train), ("test", split.test)):
        positions = [position for position, _ in members]
        names = [candidates[position].name for position in positions]
        sources[f"{which} images"] = image_digest(names, [hashes[position] for position in positions])
        labels = np.array([label for _, label in members], dtype=np.int64)
        pieces = (decoded[positions[at : at + CHUNK]] for at in range(0, len(positions), CHUNK))
        writer.split(which, labels, membership(names), pieces)
    return writer.finish(
        split.class_names,
        sources,
        notes=[*notes, *([too_few_note] if split.too_few else []), *([unusable_note] if unusable else [])],
        tools=decoder_versions(),
        settings={**settings, **split_rule.settings},
        left_out=dict(sorted(unusable.items())),
        **facts,
    )


def prepare(
    data_dir: Path,
    *,
    save_as: str,
    source: Path,
    title: str | None = None,
    min_images: int = MIN_IMAGES,
    crop: float = 1.0,
) -> Manifest:
    """Write `<data_dir>/<save_as>/prepared`, a set of the user's own, from the folders in `source`.

    Classes with fewer than `min_images` are left out; of each image the central square is kept, its side
    `crop` of the shorter side.

    Raises DataMissingError where there are too few images, SetupError where a folder cannot be read or
    written.
    """
    title, rule = title or save_as, SplitRule(min_images)
    rules = DecodeRules(OWN_IMAGE_SIZE, crop=crop)
    settings = {"crop": f"central square, {crop:g} of the shorter side"}
    files, left_out = _find_images(source)
    listing = listing_digest(file for _, file in files)

    def make(writer: PreparedWriter) -> Manifest:
        candidates = [Candidate(identity, file.name, ImageRequest(file)) for identity, file in files]
        return write_identities(
            writer, candidates, rule, rules, settings=settings, sources={}, left_out=left_out, listing=listing
        )

    def wanted(there: Manifest) -> bool:
        return (there.title, there.settings, there.listing) == (title, {**settings, **rule.settings}, listing)

    return prepare_once(data_dir, save_as, title, make, wanted=wanted)


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
