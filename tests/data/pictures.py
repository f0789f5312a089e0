"""Image files made in memory, honest and otherwise."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(width: int = 64, height: int = 64, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0, size: int = 64, mode: str = "RGB") -> bytes:
    return encoded(picture(size, size, seed, mode))


def png_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of a kilobyte that claims, and would unpack to, a gigabyte of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000)))


def lay(folder: Path, contents: dict[str, bytes]) -> Path:
    """Writes files, by their path below `folder`."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
