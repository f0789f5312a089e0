"""A small FaceScrub: pictures of people who do not exist, and the two lists that say where they are."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from repro.data.face_lists import LISTS, Box

ACTORS, ACTRESSES = LISTS
COLOURS = {
    "Ada Lovelace": (200, 40, 40),
    "Grace Hopper": (40, 200, 40),
    "Alan Turing": (40, 40, 200),
    "Kurt Gödel": (200, 200, 40),
}
"""Each person's face is one colour on a noisy gray picture, so that a crop shows whether it hit."""


@dataclass(frozen=True)
class FakePicture:
    """One picture with one face."""

    name: str
    image_id: int
    face_id: int
    box: Box
    content: bytes

    @property
    def path(self) -> str:
        """Where a server has it."""
        return f"/{self.image_id}.jpg"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def row(self, base: str) -> str:
        box = ",".join(map(str, self.box))
        ids = f"{self.image_id}\t{self.face_id}"
        return f"{self.name}\t{ids}\t{base}{self.path}\t{box}\t{self.sha256}\n"

    def cut_out(self) -> bytes:
        """The face alone, encoded anew, as download scripts do."""
        stream = io.BytesIO()
        Image.open(io.BytesIO(self.content)).crop(self.box).save(stream, "JPEG", quality=95)
        return stream.getvalue()


@dataclass
class FakeFaceScrub:
    """`counts` says how many pictures each person has."""

    counts: dict[str, int]
    pictures: list[FakePicture] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pictures = list(_pictures(self.counts))

    def lay_lists(self, folder: Path, base: str, more: str = "") -> Path:
        """Write both lists; `more` are further rows, after those of the first."""
        folder.mkdir(parents=True, exist_ok=True)
        half = list(self.counts)[: len(self.counts) // 2]
        rows = {ACTORS: "", ACTRESSES: ""}
        for picture in self.pictures:
            rows[ACTORS if picture.name in half else ACTRESSES] += picture.row(base)
        (folder / ACTORS).write_text("name\timage_id\tface_id\turl\tbbox\tsha256\n" + rows[ACTORS] + more)
        (folder / ACTRESSES).write_text(rows[ACTRESSES])
        return folder


def _pictures(counts: dict[str, int]) -> Iterator[FakePicture]:
    generator = np.random.Generator(np.random.PCG64(1))
    number = 0
    for name, count in counts.items():
        for _ in range(count):
            number += 1
            pixels = generator.integers(90, 160, size=(48, 64, 3), dtype=np.uint8)
            x, y = (int(value) for value in generator.integers(0, 24, size=2))
            pixels[y : y + 24, x : x + 24] = COLOURS[name]
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
            yield FakePicture(name, number, 1000 + number, (x, y, x + 24, y + 24), stream.getvalue())
