"""FaceScrub's two published lists: which face is where, row by row.

A row is `name, image_id, face_id, url, bbox, sha256`, separated by tabs; the first row may be a header.
Rows that cannot be used (they occur in every copy) are refused with their reason and the rest is read:
what a list says is never trusted, and no name or address in it ever becomes a path.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repro.errors import DataCorruptError, DataMissingError, SetupError

LISTS = ("facescrub_actors.txt", "facescrub_actresses.txt")
PAGE = "http://vintage.winklerbros.net/facescrub.html"
LONGEST_NAME = 100
BOX = re.compile(r"-?[0-9]{1,7}(,-?[0-9]{1,7}){3}")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Face:
    """One face: a person, and a box in a picture that was published at an address in 2014.

    `image_id` is that of the picture, which may show one person more than once. `box` is x1, y1, x2, y2 in
    pixels: the face is rows y1..y2 − 1, columns x1..x2 − 1, and may reach out of the picture.
    """

    name: str
    image_id: int
    face_id: int
    url: str
    box: Box
    sha256: str  # of the picture's file

    @property
    def key(self) -> tuple[str, int, int]:
        """What is unique."""
        return self.name, self.image_id, self.face_id


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot be used; `cause` is one word for counting, `reason` the sentence."""

    list: str
    line: int
    cause: str
    reason: str


@dataclass(frozen=True)
class FaceLists:
    """Both lists together, in their order."""

    faces: tuple[Face, ...]
    refused: tuple[RefusedRow, ...]
    addresses: dict[str, tuple[str, ...]]  # sha256 of a picture → its addresses; duplicate rows' too
    sources: dict[str, str]  # file → its sha256

    @property
    def rows(self) -> int:
        """How many rows the lists have, used or not."""
        return len(self.faces) + len(self.refused)


def read_face_lists(folder: Path) -> FaceLists:
    """The lists in `folder`.

    Raises DataMissingError, saying how the publishers hand them out, DataCorruptError for a file without a
    single usable row, SetupError for one that cannot be read.
    """
    missing = [name for name in LISTS if not (folder / name).is_file()]
    if missing:
        raise DataMissingError(
            f"no {' and no '.join(missing)} in {folder}. FaceScrub's publishers send the lists on request: "
            f"fill in the form at {PAGE}, unpack what they send, and name its folder with --lists DIR or "
            "copy both files there"
        )
    faces: dict[tuple[str, int, int], Face] = {}
    seen: set[tuple[str, str, Box]] = set()
    addresses: dict[str, dict[str, None]] = {}
    refused: list[RefusedRow] = []
    sources = {}
    for name in LISTS:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise SetupError(f"cannot read {folder / name}: {error.strerror}") from error
        sources[name] = hashlib.sha256(content).hexdigest()
        before = len(faces)
        for line, text in _rows(content):
            try:
                face = _parse(text)
                addresses.setdefault(face.sha256, {})[face.url] = None
                # The published lists do that: the same pixels must not get into both splits.
                if face.key in faces or (face.name, face.sha256, face.box) in seen:
                    raise _RowError("duplicate", "the same face is listed above")
            except _RowError as error:
                refused.append(RefusedRow(name, line, *error.args))
                continue
            faces[face.key] = face
            seen.add((face.name, face.sha256, face.box))
        if len(faces) == before:
            raise DataCorruptError(
                f"{folder / name} has no usable row, expected name, image_id, face_id, url, bbox and sha256 "
                "with tabs between: is it the list that FaceScrub's publishers sent?"
            )
    by_picture = {sha256: tuple(urls) for sha256, urls in addresses.items()}
    return FaceLists(tuple(faces.values()), tuple(refused), by_picture, sources)


class _RowError(Exception):
    """A row's cause and reason."""


def _rows(content: bytes) -> Iterator[tuple[int, str]]:
    """Each row's line number and text; the header and empty lines are no rows."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError:  # some copies have names in Latin-1
            text = line.decode("latin-1")
        if text.strip() and not (number == 1 and text.split("\t")[0].strip().lower() == "name"):
            yield number, text


def _parse(text: str) -> Face:
    fields = [field.strip() for field in text.split("\t")]
    if len(fields) != 6:
        raise _RowError("truncated", f"{len(fields)} fields, expected 6")
    name, image_id, face_id, url, box, sha256 = fields
    x1, y1, x2, y2 = map(int, box.split(",")) if BOX.fullmatch(box) else (0, 0, 0, 0)
    for cause, fine, reason in (
        ("name", name and name.isprintable() and len(name) <= LONGEST_NAME,
         f"the name {name[:LONGEST_NAME]!r} is empty, too long or has control characters"),
        ("address", url.isprintable(), f"the address {url!r} has control characters"),
        ("sha256", re.fullmatch(r"[0-9a-fA-F]{64}", sha256),
         f"expected 64 hexadecimal digits as sha256, got {sha256[:80]!r}"),
        ("number", re.fullmatch(r"[0-9]{1,12} [0-9]{1,12}", f"{image_id} {face_id}"),
         f"expected numbers as ids, got {image_id[:40]!r} and {face_id[:40]!r}"),
        ("box", BOX.fullmatch(box), f"expected a box x1,y1,x2,y2, got {box[:60]!r}"),
        ("box", x2 > max(x1, 0) and y2 > max(y1, 0), f"the box {box} is empty or outside of every picture"),
    ):  # fmt: skip
        if not fine:
            raise _RowError(cause, reason)
    return Face(name, int(image_id), int(face_id), url, (x1, y1, x2, y2), sha256.lower())
