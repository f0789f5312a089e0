"""Sets with a class per person (or anything else): which classes count, which images test, and writing both.

The rule of the paper's FaceScrub: identities with fewer than 70 images are left out, then a tenth of each
one's images, at random, is for testing. The draw depends on the seed and the images' names alone: not on
other classes, on the order in which files are found, or on a library.

What can be used is known only once it is decoded, and the split only then; so the images pass once through
a temporary array in the writer's folder, and each split is gathered from it.

`prepare` makes a set of the user's own by this rule, from a folder of images per class, at any depth;
or, where the images are split already, by that split:

    <folder>/Alvaro_Uribe/Alvaro_Uribe_0001.jpg …
    <folder>/train/Alvaro_Uribe/… and <folder>/test/Alvaro_Uribe/… (or val, valid, validation)
"""

import hashlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro.data import OWN_IMAGE_SIZE, decode
from repro.data.decode import DecodeRules, ImageFile, ImageRequest, passed_over_note, passed_over_reason
from repro.data.prepared import CHUNK, membership
from repro.data.writer import PreparedWriter, prepare_once
from repro.errors import DataMissingError, SetupError, printable
from repro.manifest import Manifest

TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first with classes of `train` beside it
MIN_IMAGES = 70  # of a person, in the paper's FaceScrub
TEST_PERCENT = 10  # of an identity's images, rounded down, at least one
SPLIT_SEED = 0


@dataclass(frozen=True)
class SplitRule:
    """`min_images` and more are needed, TEST_PERCENT of them test.

    With `test_folder`, those whose name begins with it test, and nothing is drawn.
    """

    min_images: int = MIN_IMAGES
    test_folder: str = ""

    @property
    def settings(self) -> dict[str, str]:
        """As the manifest names it."""
        drawn = {"test_percent": str(TEST_PERCENT), "split_seed": str(SPLIT_SEED)}
        given = {"split": f"train/ and {self.test_folder}/"}
        return {"min_images": str(self.min_images), **(given if self.test_folder else drawn)}


Members = list[tuple[int, int]]
"""Images by their position among all, each with its label."""


@dataclass(frozen=True)
class IdentitySplit:
    """The classes that count, by name, in order, and the images of each split, class by class."""

    class_names: list[str]
    train: Members
    test: Members
    too_few: dict[str, int]  # each identity that was left out, with its number of images

    def note(self, rule: SplitRule) -> list[str]:
        """A sentence on the identities that were left out; none if there are none."""
        why = f" or none in train/ or {rule.test_folder}/" if rule.test_folder else ""
        wanting, images = f"fewer than {rule.min_images} images{why}", sum(self.too_few.values())
        note = f"{len(self.too_few):,} classes with {wanting} are left out, {images:,} images in all"
        return [note] if self.too_few else []


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
        if rule.test_folder:
            held_out = {image for image in found if image[0].startswith(f"{rule.test_folder}/")}
        else:
            drawn = sorted(found, key=lambda image: (_rank_key(image[0]), image))
            held_out = set(drawn[: max(1, len(found) * TEST_PERCENT // 100)])
        if len(found) < rule.min_images or not 0 < len(held_out) < len(found):
            split.too_few[identity] = len(found)
            continue
        for name, position in sorted(found):
            part = split.test if (name, position) in held_out else split.train
            part.append((position, len(split.class_names)))
        split.class_names.append(identity)
    return split


def _rank_key(name: str) -> bytes:
    return hashlib.sha256(f"{SPLIT_SEED}\0{name}".encode()).digest()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image of the class `identity`; `name` is what the split is drawn by, unique and printable."""

    identity: str
    name: str
    request: ImageRequest


def prepare_identities(
    data_dir: Path,
    name: str,
    title: str,
    rule: SplitRule,
    rules: DecodeRules,
    *,
    crop: str,
    listing: str,
    sources: Mapping[str, str],
    find: Callable[[], tuple[Iterable[Candidate], Mapping[str, str], Sequence[str]]],
) -> Manifest:
    """Write the set `name`: what `find` returns, decoded by `rules` and split by `rule`.

    `find` is called only if the arrays are not there yet. It returns the candidates, what was found unusable
    before, with the reason, and notes; those that cannot be decoded are added. `crop` is the manifest's word
    for it, `listing` the digest of the source; `sources` (file → sha256) are completed by the images.

    Raises DataMissingError where fewer than two classes are left, SetupError where a file cannot be read or
    the set not written.
    """
    settings = {"crop": crop, **rule.settings}
    # A set of the usual size keeps the fingerprint that it had before there were others.
    if rules.size != OWN_IMAGE_SIZE:
        settings["image_size"] = str(rules.size)

    def wanted(there: Manifest) -> bool:
        same = (there.title, there.settings, there.listing) == (title, settings, listing)
        return same and sources.items() <= there.sources.items()

    def make(writer: PreparedWriter) -> Manifest:
        found, left_out, notes = find()
        candidates, unusable = sorted(found, key=lambda each: (each.identity, each.name)), dict(left_out)
        decoded = writer.new_array("decoded.npy", len(candidates), rules.size)
        hashes: list[str] = []
        usable: list[tuple[str, str] | None] = []
        for piece in decode.decode_images([each.request for each in candidates], rules):
            decoded[len(hashes) : len(hashes) + len(piece.pixels)] = piece.pixels
            hashes += piece.sha256
            for each, problem in zip(candidates[len(usable) : len(hashes)], piece.problems, strict=True):
                usable.append(None if problem else (each.identity, each.name))
                unusable |= {each.name: problem} if problem else {}
        split, passed_over = split_identities(usable, rule), passed_over_note(unusable)
        if len(split.class_names) < 2:
            raise DataMissingError(
                f"{len(split.class_names)} of {len({each.identity for each in candidates})} classes have "
                f"{rule.min_images} usable images or more, at least two are needed"
                f"{''.join(f'; {note}' for note in passed_over)}; --min-images asks for fewer"
            )
        images = dict(sources)
        for which, members in (("train", split.train), ("test", split.test)):
            positions = [position for position, _ in members]
            names = [candidates[position].name for position in positions]
            images[f"{which} images"] = decode.image_digest(names, [hashes[each] for each in positions])
            labels = np.array([label for _, label in members], dtype=np.int64)
            pieces = (decoded[positions[at : at + CHUNK]] for at in range(0, len(positions), CHUNK))
            writer.split(which, labels, membership(names), pieces, rules.size)
        return writer.finish(
            split.class_names,
            images,
            notes=[*notes, *split.note(rule), *passed_over],
            tools=decode.decoder_versions(),
            settings=settings,
            left_out=dict(sorted(unusable.items())),
            listing=listing,
        )

    return prepare_once(data_dir, name, title, make, wanted=wanted)


def prepare(
    data_dir: Path,
    *,
    save_as: str,
    source: Path,
    title: str | None = None,
    min_images: int = MIN_IMAGES,
    crop: float = 1.0,
    image_size: int = OWN_IMAGE_SIZE,
) -> Manifest:
    """Write `<data_dir>/<save_as>/prepared`, a set of the user's own, from the folders in `source`.

    Classes with fewer than `min_images` are left out; of each image the central square is kept, its side
    `crop` of the shorter side, and resized to `image_size` pixels per side.

    Raises DataMissingError where there are too few images, SetupError where a folder cannot be read or
    written.
    """
    test_folder, files, left_out = _find_images(source)
    candidates = [Candidate(identity, file.name, ImageRequest(file)) for identity, file in files]
    return prepare_identities(
        data_dir,
        save_as,
        title or save_as,
        SplitRule(min_images, test_folder=test_folder),
        DecodeRules(image_size, crop=crop),
        crop=f"central square, {crop:g} of the shorter side",
        listing=decode.listing_digest(file for _, file in files),
        sources={},
        find=lambda: (candidates, left_out, ()),
    )


def _find_images(root: Path) -> tuple[str, list[tuple[str, ImageFile]], dict[str, str]]:
    """The folder of test images if they are split already, each image with its class, what is passed over."""
    tops, left_out = _folders(root, "")
    test = _test_folder(root, tops) if "train" in tops else ""
    classes = [(name, name) for name in tops]
    if test:
        left_out |= {
            f"{printable(name)}/": f"beside train/ and {test}/"
            for name in tops
            if name not in ("train", test)
        }
        classes = []
        for half in ("train", test):
            names, others = _folders(root, f"{half}/")
            classes += [(name, f"{half}/{name}") for name in names]
            left_out |= others
    found: list[tuple[str, ImageFile]] = []
    for identity, folder in classes:
        files, others = decode.tree_files(root, folder)
        left_out |= others if files else {**others, f"{printable(folder)}/": "a folder without images"}
        for file in files:
            if file.name.isprintable():
                found.append((identity, file))
            else:
                left_out[printable(file.name)] = "its name has a control character or is not UTF-8"
    if not found:
        raise DataMissingError(f"{root} has no folders with images; expected a folder of images per class")
    if len(classes) == 1 and all(file.name.count("/") > 1 for _, file in found):
        raise DataMissingError(
            f"{root} has one folder, {classes[0][0]}/, and the images are in folders of it: if these are the "
            f"classes, name it with --from {shlex.quote(str(root / classes[0][0]))}"
        )
    return test, found, left_out


def _test_folder(root: Path, tops: list[str]) -> str:
    """Which folder beside `train` holds the test images, by class; "" where nothing there is called so.

    Published sets often have a `test` without classes, whose labels nobody has, beside `val`.
    """
    there = [name for name in TEST_FOLDERS if name in tops]
    classes = set(_folders(root, "train/")[0])
    for name in there:
        if classes.intersection(_folders(root, f"{name}/")[0]):
            return name
    if there:
        named = " and ".join(f"{name}/" for name in there)
        raise DataMissingError(
            f"{root}: no class has a folder in train/ and one in {named}; expected a folder of images per "
            f"class in both, as train/cat/ and {there[0]}/cat/"
        )
    return ""


def _folders(root: Path, below: str) -> tuple[list[str], dict[str, str]]:
    """The names of the folders in a folder of classes, and what is passed over there, with the reason."""
    if not (root / below).is_dir():
        raise DataMissingError(f"{root} is not a folder; expected one with a folder of images per class")
    try:
        entries = sorted((root / below).iterdir())
    except OSError as error:
        raise SetupError(f"cannot read {root / below}: {error.strerror or error}") from None
    reasons = {each: passed_over_reason(each.name) for each in entries}
    passed_over = {
        printable(below + each.name): reason or "in no class's folder"
        for each, reason in reasons.items()
        if reason or not each.is_dir()
    }
    return [each.name for each, reason in reasons.items() if each.is_dir() and not reason], passed_over
