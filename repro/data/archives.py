"""Unpacking an archive from elsewhere, whole or not at all.

Nothing of the standard library's own extraction is used: its filters have been bypassed before. The members
are read one after the other, only plain files and folders are admitted, their bytes are written by this
module below a temporary folder, and every resolved path is checked to lie inside it. The folder gets its
real name only when the last member is written; an archive with one bad member leaves nothing.
"""

import gzip
import io
import shutil
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, cast

from repro.data.download import Notify, explain_write_failure, one_at_a_time
from repro.errors import DataCorruptError, SetupError

BLOCK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most; its publisher's own figures with room to spare."""

    members: int
    bytes: int
    """Of all the files together, unpacked."""
    ratio: float = 50.0
    """Unpacked bytes to the archive's own; counted from the first mebibyte on."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive, whatever the format."""

    name: str
    kind: Literal["file", "folder", "link", "special file"]
    size: int
    open: Callable[[], IO[bytes]]


class RefusedError(Exception):
    """Why an archive is not taken."""


class AdmittedNames:
    """Checks the names of an archive's members, all of which must lie below one folder, one after another."""

    def __init__(self, top: str) -> None:
        self._top = top
        self._seen: set[str] = set()

    def admit(self, name: str) -> PurePosixPath:
        """The member's path, its first part the archive's folder.

        Raises RefusedError for a path that is absolute, has `..`, a control character or a backslash, or lies
        elsewhere, and for a name that came before, be it in other letters or another Unicode form: on some
        file systems the two are one.
        """
        if not name.isprintable() or "\\" in name:
            raise RefusedError(f"the name {name!r} has a control character or a backslash")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise RefusedError(f"the path {name!r} leads out of the archive's folder")
        if not path.parts or path.parts[0] != self._top:
            raise RefusedError(f"{name!r} does not lie below {self._top!r}")
        folded = unicodedata.normalize("NFC", str(path)).casefold()
        if folded in self._seen:
            raise RefusedError(f"the name {name!r} occurs twice")
        self._seen.add(folded)
        return path


def extract(
    archive: Path,
    target: Path,
    limits: Limits,
    notify: Notify | None = None,
    expected: str = "the publisher's own archive: delete this one and fetch it again",
) -> Path:
    """Unpack `archive`, all of whose members lie below one folder named like `target`, and return `target`.

    Where `target` exists, or another process makes it meanwhile, nothing is done.

    Raises DataCorruptError, naming the member, for a path that is absolute, has `..`, a control character
    or leaves the folder; a link, device or sparse file; a name that occurs twice; more members or bytes than
    `limits`; an archive that is torn. The message ends with what was `expected`. Raises SetupError where the
    folder cannot be written.
    """
    with one_at_a_time(target.with_name(f".{target.name}.lock"), f"unpacking {archive.name}", notify):
        if target.exists():
            return target
        temporary = target.with_name(f".{target.name}.unpacking")
        try:
            # What a killed process left; its lock is ours now.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            with _open_members(archive, limits) as members:
                _write_members(members, temporary, target.name, archive.stat().st_size, limits)
            (temporary / target.name).rename(target)
        except RefusedError as refusal:
            raise DataCorruptError(
                f"{archive} is not unpacked: {refusal}; nothing of it was kept. Expected {expected}"
            ) from None
        except OSError as error:
            if error.filename == str(archive):
                raise SetupError(f"cannot read {archive}: {error.strerror}") from error
            raise SetupError(explain_write_failure(target, error)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write_members(
    members: Iterator[Member], root: Path, top: str, archive_bytes: int, limits: Limits
) -> None:
    root = root.resolve()
    names = AdmittedNames(top)
    total = 0
    for count, member in enumerate(members, start=1):
        if count > limits.members:
            raise RefusedError(f"it has more than the {limits.members:,} members expected at most")
        path = names.admit(member.name)
        if member.kind not in ("file", "folder"):
            raise RefusedError(f"{member.name!r} is a {member.kind}, expected files and folders only")
        place = (root / path).resolve()
        if not place.is_relative_to(root):
            raise RefusedError(f"{member.name!r} would be written outside of the folder")
        if member.size < 0:
            raise RefusedError(f"{member.name!r} has a negative size")
        total += member.size
        if total > limits.bytes:
            raise RefusedError(f"it unpacks to more than the {limits.bytes:,} bytes expected at most")
        if total > max(BLOCK, limits.ratio * archive_bytes):
            raise RefusedError(
                f"its {archive_bytes:,} bytes unpack to more than {limits.ratio:g} times as many"
            )
        try:
            if member.kind == "folder":
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                _write_file(member, place)
        except (FileExistsError, NotADirectoryError):
            raise RefusedError(f"{member.name!r} is both a file and a folder") from None
    if not (root / top).is_dir():
        raise RefusedError(f"it has no folder {top!r}")


def _write_file(member: Member, place: Path) -> None:
    left = member.size
    with place.open("xb") as stream, member.open() as source:
        while left and (block := source.read(min(BLOCK, left))):
            stream.write(block)
            left -= len(block)
    if left:
        raise RefusedError(f"it ends in the middle of {member.name!r}")


@contextmanager
def _open_members(archive: Path, limits: Limits) -> Iterator[Iterator[Member]]:
    """The archive's members in order, each readable until the next is asked for."""
    # Headers and padding are at most three blocks a member, and tar pads its end to 20.
    ceiling = limits.bytes + 1536 * limits.members + 20 * 512 + BLOCK
    try:
        with archive.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            plain: IO[bytes] = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]
            with tarfile.open(fileobj=_Bounded(plain, ceiling), mode="r:") as tar:
                yield _tar_members(tar)
    # tarfile and zlib raise all of these on torn or hostile input; RecursionError on chained headers.
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RefusedError(f"it is not a whole tar archive ({error or type(error).__name__})") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise RefusedError(f"its headers make no sense ({error})") from error


def _tar_members(tar: tarfile.TarFile) -> Iterator[Member]:
    while (info := tar.next()) is not None:
        kind: Literal["file", "folder", "link", "special file"]
        if info.islnk() or info.issym():
            kind = "link"
        elif info.isdir():
            kind = "folder"
        elif info.isreg() and not info.issparse():
            kind = "file"
        else:
            kind = "special file"
        yield Member(info.name, kind, info.size, partial(_open_tar_member, tar, info))


def _open_tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    return cast(IO[bytes], tar.extractfile(info))  # None for folders and devices alone


class _Bounded(io.RawIOBase):
    """A stream that refuses to be read past `ceiling`, backwards, or in pieces larger than a block.

    tarfile reads a long name or an extended header whole, whatever size it claims, and follows a negative
    size backwards for ever.
    """

    def __init__(self, stream: IO[bytes], ceiling: int) -> None:
        self._stream, self._ceiling = stream, ceiling

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._stream.tell():
            raise RefusedError("it has a header of an impossible size")
        if offset > self._ceiling:
            raise RefusedError("it unpacks to far more than the data set has")
        return self._stream.seek(offset)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise RefusedError("it has a header of an impossible size")
        if self._stream.tell() + size > self._ceiling:
            raise RefusedError("it unpacks to far more than the data set has")
        return self._stream.read(size)
