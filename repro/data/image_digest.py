"""One sha256 for many images, the same whether they lay in a folder or in an archive."""

import hashlib
from collections.abc import Iterable, Sequence

from repro.data.image_files import ImageFile


def image_digest(names: Sequence[str], hashes: Sequence[str]) -> str:
    """The sha256 over each image's name and the sha256 of its file, in order."""
    digest = hashlib.sha256()
    for name, sha256 in zip(names, hashes, strict=True):
        digest.update(f"{name}\0{sha256}\n".encode())
    return digest.hexdigest()


def listing_digest(files: Iterable[ImageFile]) -> str:
    """The sha256 over each file's name and size, sorted: tells that a source changed without reading it."""
    digest = hashlib.sha256()
    for name, size in sorted((file.name, file.size) for file in files):
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()
