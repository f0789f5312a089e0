"""Preparing a set of faces (or of any classes): decode all, leave out the unusable, split, write.

What can be used is known only when it is decoded, and the split only then; so the images pass once through
a spool in the writer's temporary folder, and each split is gathered from it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from repro.data.arrays import membership
from repro.data.decode import DecodeRules, Wanted, decoder_versions
from repro.data.decode_pool import image_decoder
from repro.data.download import Progress
from repro.data.identity_split import IdentitySplit, Member, SplitRule, split_identities
from repro.data.image_digest import image_digest
from repro.data.prepared import Images
from repro.data.writer import PreparedWriter
from repro.errors import DataMissingError
from repro.manifest import Manifest

CHUNK = 1024
"""Images gathered together."""
NAMED = 5
"""Unusable images that a note names; the manifest's `left_out` names all."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image of the class `identity`; `name` is what the split is drawn by, unique and printable."""

    identity: str
    name: str
    wanted: Wanted


def write_identities(
    writer: PreparedWriter,
    candidates: Sequence[Candidate],
    split_rule: SplitRule,
    rules: DecodeRules,
    *,
    settings: Mapping[str, str],
    left_out: Mapping[str, str],
    sources: Mapping[str, str] = MappingProxyType({}),
    listing: str | None = None,
    notes: Sequence[str] = (),
    partial: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Decode `candidates` by `rules`, split them by `split_rule` and finish the set.

    `left_out` are images that were found unusable before, with the reason; those that cannot be decoded are
    added to them. `settings` of the preparation are completed by those of the split, `sources` (file →
    sha256) by the images of each.

    Raises DataMissingError where fewer than two classes are left, SetupError where a file cannot be read or
    the set not written.
    """
    candidates = sorted(candidates, key=lambda each: (each.identity, each.name))
    spool = writer.folder / "decoded.spool"
    hashes: list[str] = []
    problems: list[str | None] = []
    with writer.spool(spool) as write, image_decoder() as decode:
        for decoded in decode([each.wanted for each in candidates], rules, progress):
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
    unusable = {
        **left_out,
        **{each.name: problem for each, problem in zip(candidates, problems, strict=True) if problem},
    }
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
        class_names=split.class_names,
        sources=sources,
        partial=partial,
        notes=[*notes, *_notes(split, split_rule, unusable)],
        tools=decoder_versions(),
        settings={**settings, **split_rule.settings},
        left_out=dict(sorted(unusable.items())),
        listing=listing,
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
