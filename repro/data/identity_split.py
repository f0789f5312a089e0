"""Which classes of a face set count, and which of their images are for testing.

The rule of the paper's FaceScrub, for any set with a folder a class: identities with fewer than 70 images are
left out, then a tenth of each one's images, at random, is for testing. What is drawn depends on the seed and
the images' names alone: not on other classes, on the order in which files are found, or on a library.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


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
    too_few: Mapping[str, int]
    """Each identity that was left out, with its number of images."""


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
        drawn = sorted(found, key=lambda image: (_lot(rule.seed, image[0]), image))
        held_out = {name for name, _ in drawn[: max(1, len(found) * rule.test_percent // 100)]}
        for name, position in found:
            (test if name in held_out else train).append(Member(position, label))
    too_few = {name: len(found) for name, found in sorted(by_identity.items()) if name not in set(kept)}
    return IdentitySplit(tuple(kept), tuple(train), tuple(test), too_few)


def _lot(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
