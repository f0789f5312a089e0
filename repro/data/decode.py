"""Image files → arrays of the set's size, or the reason why not, on every core.

What is accepted is judged by the content alone: a file name's ending says nothing. The result is RGB; grey
images get three equal channels, transparency is dropped, and an orientation in the metadata is not applied,
as boxes and labels refer to the pixels as stored.
"""

import hashlib
import os
import stat
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from repro.data.files import progress
from repro.data.prepared import Images
from repro.errors import DataMissingError, SetupError, printable
from repro.system import usable_cores

BATCH = 128  # images decoded together
AHEAD = 6  # batches per thread that are under way or wait to be taken: bounds the memory
NAMED = 5  # files that a sentence names of each kind
MIN_INSIDE = 0.5  # how much of a box's area must lie in the image; the part outside is cut off

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels, the last two exclusive; rounded to whole pixels."""

_ADMITTED_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})


@dataclass(frozen=True)
class DecodeRules:
    """How every image of a set becomes (3, `size`, `size`) uint8.

    The central square, its side `crop` of the shorter side, or the image's own box, is resized by Pillow's
    bilinear filter, which averages over all pixels where it shrinks. `exact` sets take no image of another
    size instead.
    """

    size: int
    formats: tuple[str, ...] = ("JPEG", "PNG")
    exact: bool = False
    crop: float = 1.0
    max_pixels: int = 50_000_000
    max_bytes: int = 50_000_000


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of a source.

    `name` is its path below the folder `root`, unique and with slashes. In a zip, `root` is the archive and
    `member` the file's whole name there. `size` is in bytes, as listed.
    """

    root: str
    name: str
    size: int
    member: str = ""

    def read(self, limit: int) -> bytes:
        """The content, but of a file longer than `limit` only `limit` + 1 bytes.

        Raises SetupError where it cannot be read, ValueError saying why it is not whole.
        """
        path = self.root if self.member else os.path.join(self.root, self.name)  # noqa: PTH118 100,000 times
        try:
            if self.member:
                with _zip_opening:
                    archive = _open_zip(path, os.stat(path).st_mtime_ns)  # noqa: PTH116
                with archive.open(self.member) as stream:
                    return stream.read(limit + 1)
            # Without O_NONBLOCK a pipe that poses as an image would never open.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as stream:  # noqa: PTH123 of a descriptor
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise ValueError("not a plain file")
                return stream.read(limit + 1)
        except OSError as error:
            raise SetupError(f"cannot read {path}: {error.strerror or error}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
            raise ValueError(f"damaged in its archive ({error or type(error).__name__})") from None


_zip_opening = threading.Lock()  # or each thread would read the directory, while one is enough


@lru_cache(maxsize=1)
def _open_zip(path: str, changed: int) -> zipfile.ZipFile:
    """One per version of the file, for all threads: reading the directory of 110,000 files takes a second."""
    return zipfile.ZipFile(path)


def tree_files(root: Path, below: str = "") -> tuple[list[ImageFile], dict[str, str]]:
    """Every plain file in the folder `below` of `root`, by name, and what is passed over, with the reason.

    Hidden files and folders, what a file manager left behind and links to folders are passed over.

    Raises DataMissingError where there is no such folder, SetupError where a part of it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise SetupError(f"cannot read {error.filename}: {error.strerror}") from error

    if not (root / below).is_dir():
        raise DataMissingError(
            f"{root / below} is not a folder: expected the top of an unpacked or downloaded tree"
        )
    files, passed_over = [], {}
    for folder, folders, names in os.walk(root / below, onerror=refuse):
        inside = Path(folder).relative_to(root).as_posix().removeprefix(".")
        for name in sorted([*folders, *names]):
            path, reason = os.path.join(folder, name), passed_over_reason(name)  # noqa: PTH118 100,000 times
            relative = f"{inside}/{name}" if inside else name
            if not reason and name in folders and os.path.islink(path):  # noqa: PTH114
                reason = "a link to a folder"
            if reason:
                passed_over[printable(relative)] = reason
            elif name not in folders:
                try:
                    files.append(ImageFile(str(root), relative, os.stat(path).st_size))  # noqa: PTH116
                except OSError as error:
                    refuse(error)
        folders[:] = [name for name in folders if not passed_over_reason(name)]
    return sorted(files, key=lambda file: file.name), passed_over


def passed_over_reason(name: str) -> str:
    """Why a file or folder of this name is no one's image; empty where it may be one."""
    if name.startswith("._") or name.lower() in (".ds_store", "thumbs.db", "desktop.ini"):
        return "left behind by a file manager"
    return "hidden" if name.startswith(".") else ""


def passed_over_note(passed_over: Mapping[str, str]) -> list[str]:
    """One sentence on what was passed over, by reason, with the first few names; none if nothing was."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in sorted(passed_over.items()):
        by_reason.setdefault(reason.partition(" (")[0], []).append(name)
    parts = [
        f"{reason} {len(names):,} ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})"
        for reason, names in sorted(by_reason.items(), key=lambda each: -len(each[1]))
    ]
    files = "1 file" if len(passed_over) == 1 else f"{len(passed_over):,} files"
    return [f"{files} passed over: {'; '.join(parts)}"] if passed_over else []


def image_digest(names: Sequence[str], hashes: Sequence[str]) -> str:
    """The sha256 over each image's name and the sha256 of its file, in order: the same for folder and zip."""
    return _digest(zip(names, hashes, strict=True))


def listing_digest(files: Iterable[ImageFile]) -> str:
    """The sha256 over each file's name and size, sorted: tells that a source changed without reading it."""
    return _digest(sorted((file.name, file.size) for file in files))


def _digest(pairs: Iterable[tuple[str, object]]) -> str:
    digest = hashlib.sha256()
    for name, value in pairs:
        digest.update(f"{name}\0{value}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to decode, and the part of it to take, where that is not its central square."""

    file: ImageFile
    box: Box | None = None
    sha256: str | None = None  # what the file must hash to, where that is known


@dataclass(frozen=True)
class Decoded:
    """Images in the order asked for: pixels (n, 3, S, S), and each file's sha256 and problem, or None.

    The pixels of an image with a problem are zero.
    """

    pixels: Images
    sha256: list[str]
    problems: list[str | None]


def decode_images(
    requests: Sequence[ImageRequest], rules: DecodeRules, threads: int | None = None
) -> Iterator[Decoded]:
    """The images in pieces, in order, decoded on `threads` (default: one per usable core).

    Threads are enough: Pillow and hashlib let go of the interpreter's lock while they work.

    Raises SetupError for a file that cannot be read at all.
    """
    threads = threads or usable_cores()
    wave = BATCH * AHEAD * threads
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(threads) as pool,
        progress("prepared", len(requests), "images") as advance,
    ):
        # Pillow warns of what is checked or dropped here anyway: size, metadata, transparency.
        warnings.simplefilter("ignore")
        # Executor.map would queue every batch, and keep every result until it is taken.
        for start in range(0, len(requests), wave):
            batches = [
                requests[at : at + BATCH] for at in range(start, min(start + wave, len(requests)), BATCH)
            ]
            for piece in pool.map(partial(_decode_batch, rules=rules), batches):
                advance(len(piece.problems))
                yield piece


def _decode_batch(requests: Sequence[ImageRequest], rules: DecodeRules) -> Decoded:
    pixels = np.zeros((len(requests), 3, rules.size, rules.size), dtype=np.uint8)
    hashes: list[str] = []
    problems: list[str | None] = []
    for index, each in enumerate(requests):
        content, problem = b"", None
        try:
            content = each.file.read(rules.max_bytes)
            if each.sha256 is None or each.sha256 == hashlib.sha256(content).hexdigest():
                pixels[index] = decode(content, rules, each.box)
            else:
                problem = "its bytes are not those that were published"
        except ValueError as error:
            problem = str(error)
        hashes.append(hashlib.sha256(content).hexdigest())
        problems.append(problem)
    return Decoded(pixels, hashes, problems)


def decode(content: bytes, rules: DecodeRules, box: Box | None = None) -> NDArray[np.uint8]:
    """(3, S, S) uint8. Raises ValueError saying what the image is instead, in words that follow its name."""
    if not content:
        raise ValueError("empty")
    if len(content) > rules.max_bytes:
        raise ValueError(f"longer than {rules.max_bytes:,} bytes")
    try:
        with Image.open(BytesIO(content), formats=rules.formats) as image:
            width, height = image.size
            if width * height > rules.max_pixels:
                raise _UnfitError(f"{width} × {height}, more than {rules.max_pixels:,} pixels")
            if image.mode not in _ADMITTED_MODES:
                raise _UnfitError(f"pixels of the kind {image.mode}, expected 8 bits a channel")
            if rules.exact and image.size != (rules.size, rules.size):
                raise _UnfitError(f"{width} × {height}, expected {rules.size} × {rules.size}")
            area = _area(width, height, rules.crop, box)
            # Cut out before it is resized, or the filter would see what lies around it.
            part = image.convert("RGB").crop(area)
        if part.size != (rules.size, rules.size):
            part = part.resize((rules.size, rules.size), Image.Resampling.BILINEAR)
    except _UnfitError:
        raise
    except Image.UnidentifiedImageError:
        raise _UnfitError(f"not an image of the kind {' or '.join(rules.formats)}") from None
    except Image.DecompressionBombError:
        raise _UnfitError(f"more than {rules.max_pixels:,} pixels") from None
    # All of these come out of Pillow's decoders on torn or hostile input.
    except (
        OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError,
        RuntimeError, MemoryError, struct.error, zlib.error,
    ) as error:  # fmt: skip
        raise _UnfitError(f"damaged ({' '.join(str(error).split()) or type(error).__name__})") from None
    return np.asarray(part).transpose(2, 0, 1)


def decoder_versions() -> dict[str, str]:
    """What decides the decoded bytes, for the manifest's `tools`."""
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    version = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
    return {"pillow": PIL.__version__, library: str(version), "numpy": np.__version__}


class _UnfitError(ValueError):
    """Why an image is not taken."""


def _area(width: int, height: int, crop: float, box: Box | None) -> tuple[int, int, int, int]:
    """Whole pixels."""
    if box is None:
        side = max(round(min(width, height) * crop), 1)
        left, top = (width - side) // 2, (height - side) // 2
        return (left, top, left + side, top + side)
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        raise _UnfitError("its box has no area")
    inside = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
    covered = max(inside[2] - inside[0], 0) * max(inside[3] - inside[1], 0)
    if covered < MIN_INSIDE * (x2 - x1) * (y2 - y1):
        raise _UnfitError(f"its box {x1:g},{y1:g},{x2:g},{y2:g} lies outside of {width} × {height}")
    left, top, right, bottom = map(round, inside)
    if left == right or top == bottom:
        raise _UnfitError("its box has no area")
    return left, top, right, bottom
