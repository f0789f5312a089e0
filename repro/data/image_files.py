"""Where the bytes of one image lie: small values that another process can be handed, and read from."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from repro.errors import SetupError


class ImageFile(Protocol):
    """One image of a source, by its name there (parts joined by slashes) and size in bytes."""

    @property
    def name(self) -> str:
        """Unique in its source, printable."""

    @property
    def size(self) -> int:
        """As listed; what is read may differ where the file changed meanwhile."""

    def read(self, limit: int) -> bytes:
        """The content, but of a file longer than `limit` only `limit` + 1 bytes.

        Raises SetupError where it cannot be read, ValueError saying why it is not whole.
        """


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file below the folder `root`; symbolic links are followed, the folder being the user's own."""

    root: str
    name: str
    size: int

    def read(self, limit: int) -> bytes:
        """See `ImageFile`."""
        path = os.path.join(self.root, self.name)  # noqa: PTH118 a hundred thousand times
        try:
            # Without O_NONBLOCK a pipe that poses as an image would never open.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as stream:  # noqa: PTH123 of a descriptor
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise ValueError("not a plain file")
                return stream.read(limit + 1)
        except OSError as error:
            raise SetupError(f"cannot read {path}: {error.strerror or error}") from None


class SourceTree(Protocol):
    """The files of a source by folder, be it a folder on disk or an archive."""

    def files(self, folder: str) -> Sequence[ImageFile]:
        """The files in `folder` ("" for the topmost), not in folders below it, sorted by name."""


@dataclass(frozen=True)
class FolderTree:
    """What lies below the folder `root`; a folder that is not there has no files."""

    root: Path

    def files(self, folder: str) -> Sequence[ImageFile]:
        """See `SourceTree`; raises SetupError where the folder cannot be read."""
        return plain_files(self.root, folder) if (self.root / folder).is_dir() else []


def plain_files(root: Path, folder: str) -> list[PlainFile]:
    """The plain files in `root`/`folder`, without the folders below it, sorted by name.

    What a file manager leaves behind (`.DS_Store`, `Thumbs.db`, `desktop.ini`, `._*`) is passed over.

    Raises SetupError where the folder cannot be read.
    """
    found = []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if not is_droppings(entry.name) and not entry.is_dir():
                    size = entry.stat().st_size
                    found.append(
                        PlainFile(str(root), f"{folder}/{entry.name}" if folder else entry.name, size)
                    )
    except OSError as error:
        raise SetupError(
            f"cannot read {error.filename or root / folder}: {error.strerror or error}"
        ) from None
    return sorted(found, key=lambda file: file.name)


def is_droppings(name: str) -> bool:
    """Whether a file manager left the file `name`."""
    return name.startswith("._") or name.lower() in (".ds_store", "thumbs.db", "desktop.ini")
