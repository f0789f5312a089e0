"""Sets with a class per person (or anything else): which classes count, which images test, and writing both.

The rule of the paper's FaceScrub: identities with fewer than 70 images are left out, then a tenth of each
one's images, at random, is for testing. The draw depends on the seed and the images' names alone: not on
other classes, on the order in which files are found, or on a library.

What can be used is known only once it is decoded, and the split only then; so the images pass once through
a temporary file in the writer's folder, and each split is gathered from it.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repro.data.arrays import membership
from repro.data.decode import DecodeRules, ImageDecoder, ImageRequest, decoder_versions, image_digest
from repro.data.download import Progress
from repro.data.prepared import Images
from repro.data.writer import PreparedWriter
from repro.errors import DataMissingError
from repro.manifest import Manifest

CHUNK = 1024  # images gathered together
NAMED = 5  # unusable images that a note names; the manifest's `left_out` names all


@dataclass(frozen=True)
class SplitRule:
    """`min_images` and more are needed, `test_percent` of them (rounded down, at least one) test."""

    min_images: int = 70
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


class Member(NamedTuple):
    """An image by its position among all, with its class."""

    position: int
    label: int


@dataclass(frozen=True)
class IdentitySplit:
    """The classes that count, by name, in order, and the images of each split, class by class."""

    class_names: tuple[str, ...]
    train: tuple[Member, ...]
    test: tuple[Member, ...]
    too_few: Mapping[str, int]  # each identity that was left out, with its number of images


def split_identities(images: Sequence[tuple[str, str] | None], rule: SplitRule) -> IdentitySplit:
    """Split `images`, each an (identity, image name) or None where it is not usable; names are unique.

    Classes and the images in them are in the order of their names.
    """
    by_identity: dict[str, list[tuple[str, int]]] = {}
    for position, image in enumerate(images):
        if image is not None:
            identity, name = image
            by_identity.setdefault(identity, []).append((name, position))
    kept = sorted(name for name, found in by_identity.items() if len(found) >= rule.min_images)
    train: list[Member] = []
    test: list[Member] = []
    for label, identity in enumerate(kept):
        found = sorted(by_identity[identity])
        drawn = sorted(found, key=lambda image: (_rank_key(rule.seed, image[0]), image))
        held_out = {name for name, _ in drawn[: max(1, len(found) * rule.test_percent // 100)]}
        for name, position in found:
            (test if name in held_out else train).append(Member(position, label))
    too_few = {name: len(found) for name, found in sorted(by_identity.items()) if name not in set(kept)}
    return IdentitySplit(tuple(kept), tuple(train), tuple(test), too_few)


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
    left_out: Mapping[str, str],
    sources: Mapping[str, str],
    notes: Sequence[str] = (),
    progress: Progress | None = None,
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
    spool = writer.folder / "decoded.spool"
    hashes: list[str] = []
    problems: list[str | None] = []
    with writer.spool(spool) as write, ImageDecoder() as decoder:
        for decoded in decoder.decode([each.request for each in candidates], rules, progress):
            write(decoded.pixels)
            hashes += decoded.sha256
            problems += decoded.problems
    split = split_identities(
        [
            (each.identity, each.name) if problem is None else None
            for each, problem in zip(candidates, problems, strict=True)
        ],
        split_rule,
    )
    damaged = {each.name: problem for each, problem in zip(candidates, problems, strict=True) if problem}
    unusable = {**left_out, **damaged}
    if len(split.class_names) < 2:
        raise DataMissingError(
            f"{len(split.class_names)} of {len({each.identity for each in candidates})} classes have "
            f"{split_rule.min_images} usable images or more, at least two are needed"
            f"{_unusable_note(unusable, '; ')}; --min-images asks for fewer"
        )
    sources = dict(sources)
    for which, members in (("train", split.train), ("test", split.test)):
        names = [candidates[member.position].name for member in members]
        sources[f"{which} images"] = image_digest(names, [hashes[member.position] for member in members])
        labels = np.array([member.label for member in members], dtype=np.int64)
        writer.split(which, labels, membership(names), _gathered(spool, members, rules.size))
    return writer.finish(
        split.class_names,
        sources,
        notes=[*notes, *_notes(split, split_rule, unusable)],
        tools=decoder_versions(),
        settings={**settings, **split_rule.settings},
        left_out=dict(sorted(unusable.items())),
        **facts,
    )


def _gathered(spool: Path, members: Sequence[Member], size: int) -> Iterator[Images]:
    """The images of a split from the spool, a few at a time."""
    shape = (3, size, size)
    length = 3 * size * size
    with spool.open("rb", buffering=0) as stream:
        for start in range(0, len(members), CHUNK):
            chunk = members[start : start + CHUNK]
            images = np.empty((len(chunk), *shape), dtype=np.uint8)
            for row, member in enumerate(chunk):
                content = os.pread(stream.fileno(), length, member.position * length)
                images[row] = np.frombuffer(content, dtype=np.uint8).reshape(shape)
            yield images


def _notes(split: IdentitySplit, rule: SplitRule, unusable: Mapping[str, str]) -> Iterator[str]:
    if split.too_few:
        yield (
            f"{len(split.too_few):,} classes with fewer than {rule.min_images} images are left out, "
            f"{sum(split.too_few.values()):,} images in all"
        )
    if note := _unusable_note(unusable):
        yield note


def _unusable_note(unusable: Mapping[str, str], before: str = "") -> str:
    if not unusable:
        return ""
    named = "; ".join(f"{name}: {reason}" for name, reason in sorted(unusable.items())[:NAMED])
    more = f"; and {len(unusable) - NAMED:,} more" if len(unusable) > NAMED else ""
    return f"{before}{len(unusable):,} unusable images are left out ({named}{more})"
