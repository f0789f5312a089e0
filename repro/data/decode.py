"""From the bytes of an image file to an array of the set's size, or to the reason why not.

What is accepted is judged by the content alone: a name's ending says nothing. The result is RGB; grey images
get three equal channels, transparency is dropped, and an orientation in the metadata is not applied, as boxes
and labels refer to the pixels as stored. Needs numpy and Pillow, never torch.
"""

import hashlib
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from repro.data.image_files import ImageFile
from repro.data.prepared import Images

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels, the last two exclusive; rounded to whole pixels."""

MIN_INSIDE = 0.5
"""How much of a box's area must lie in the image; the part outside is cut off."""

_ADMITTED_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_KINDS = (
    (b"\xff\xd8\xff", "a JPEG"),
    (b"\x89PNG", "a PNG"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"RIFF", "a WebP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"PK\3\4", "a zip"),
)


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
class Wanted:
    """One image to decode, with the part of it that is wanted, where that is not its central square."""

    file: ImageFile
    box: Box | None = None
    sha256: str | None = None
    """What the file must hash to, where that is known."""


@dataclass(frozen=True)
class Decoded:
    """Images in the order asked for: pixels (n, 3, S, S), and each file's sha256 and problem, or None.

    The pixels of an image with a problem are zero.
    """

    pixels: Images
    sha256: list[str]
    problems: list[str | None]


def decode_batch(wanted: Sequence[Wanted], rules: DecodeRules) -> Decoded:
    """Reads and decodes each image. Raises SetupError for a file that cannot be read at all."""
    pixels = np.zeros((len(wanted), 3, rules.size, rules.size), dtype=np.uint8)
    hashes: list[str] = []
    problems: list[str | None] = []
    with warnings.catch_warnings():
        # Pillow warns of what is checked or dropped here anyway: size, metadata, transparency.
        warnings.simplefilter("ignore")
        for index, each in enumerate(wanted):
            content = b""
            problem = None
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
        raise _UnfitError(f"{_kind(content)}, expected {' or '.join(rules.formats)}") from None
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
    whole = (round(inside[0]), round(inside[1]), round(inside[2]), round(inside[3]))
    if whole[0] == whole[2] or whole[1] == whole[3]:
        raise _UnfitError("its box has no area")
    return whole


def _kind(content: bytes) -> str:
    """What the bytes look like, for the message alone."""
    start = content[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "a web page"
    for magic, kind in _KINDS:
        if content.startswith(magic):
            return kind
    return "not an image"
