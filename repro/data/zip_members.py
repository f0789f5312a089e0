"""Reading files out of a zip from elsewhere, without unpacking it.

Nothing is written, so no name can lead anywhere; still the archive is refused whole for a name, kind or size
that no honest one has. The directory at its end only claims things: each member's own header, size and
checksum are compared with it when the member is read.
"""

import errno
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from repro.data.archives import BLOCK, AdmittedNames, Limits, RefusedError
from repro.data.image_files import ImageFile, is_droppings
from repro.errors import DataCorruptError, SetupError

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
ENCRYPTED = 0x1 | 0x40 | 0x2000
UTF8 = 0x800
DIRECTORY_ENTRY = 160
"""Bytes that an entry of the directory has on average at most: bounds the memory before it is read."""


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file in the zip at `archive`, as the zip's directory tells it; `stored_name` is its name there."""

    archive: str
    name: str
    size: int
    stored_name: bytes
    offset: int
    packed: int
    deflated: bool
    crc: int

    def read(self, limit: int) -> bytes:
        """See `ImageFile`; ValueError where the content is not what the zip's directory says."""
        if self.size > limit:
            raise ValueError(f"{self.size:,} bytes, more than {limit:,}")
        try:
            with open(self.archive, "rb", buffering=0) as stream:  # noqa: PTH123 a hundred thousand times
                stream.seek(self.offset)
                header = stream.read(LOCAL_HEADER.size + len(self.stored_name))
                if len(header) < LOCAL_HEADER.size + len(self.stored_name):
                    raise ValueError("not whole in its archive")
                magic, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(header)
                if magic != b"PK\3\4" or header[LOCAL_HEADER.size :][:name_length] != self.stored_name:
                    raise ValueError("something else in its archive than the archive's directory says")
                stream.seek(self.offset + LOCAL_HEADER.size + name_length + extra_length)
                packed = stream.read(self.packed)
        except OSError as error:
            raise SetupError(f"cannot read {self.archive}: {error.strerror or error}") from None
        content = packed
        if self.deflated:
            unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                # One byte more than claimed is enough to see that the claim is wrong.
                content = unpacking.decompress(packed, self.size + 1)
            except zlib.error as error:
                raise ValueError(f"damaged in its archive ({error})") from None
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise ValueError("damaged in its archive (size or CRC-32 are not what its directory says)")
        return content


class ZipTree:
    """The files of a zip by folder."""

    def __init__(self, members: Sequence[ZipMember]) -> None:
        self._by_folder: dict[str, list[ZipMember]] = {}
        for member in sorted(members, key=lambda member: member.name):
            folder, _, name = member.name.rpartition("/")
            if not is_droppings(name):
                self._by_folder.setdefault(folder, []).append(member)

    def files(self, folder: str) -> Sequence[ImageFile]:
        """See `SourceTree`."""
        return self._by_folder.get(folder, [])


def open_zip(archive: Path, top: str, limits: Limits) -> ZipTree:
    """The files below the folder `top` of the zip at `archive`, all of whose members lie there.

    Raises DataCorruptError for a zip that is torn or has bytes before it; for members that overlap, are
    encrypted, links or devices, or packed otherwise than deflated; for names that `AdmittedNames` refuses;
    for more members or bytes than `limits`. Raises SetupError where it cannot be read.
    """
    try:
        size = archive.stat().st_size
        with _directory(archive, limits) as entries:
            members = list(_members(entries, archive, top, size, limits))
        _check_places(members, size)
    except RefusedError as refusal:
        raise DataCorruptError(
            f"{archive} is not read: {refusal}. Expected the publisher's own archive: delete this one and "
            "fetch it again"
        ) from None
    except OSError as error:
        raise SetupError(f"cannot read {archive}: {error.strerror or error}") from None
    return ZipTree([member for member in members if member.name])


@contextmanager
def _directory(archive: Path, limits: Limits) -> Iterator[list[zipfile.ZipInfo]]:
    try:
        with (
            _SmallReads(archive, DIRECTORY_ENTRY * limits.members) as stream,
            zipfile.ZipFile(stream) as opened,
        ):
            entries = opened.infolist()
    # zipfile raises all of these on torn or hostile input.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        struct.error,
        ValueError,
        OverflowError,
        EOFError,
    ) as error:
        raise RefusedError(f"it is not a whole zip archive ({error or type(error).__name__})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise RefusedError("it is not a whole zip archive (an offset that cannot be)") from error
    yield entries


def _members(
    entries: Sequence[zipfile.ZipInfo], archive: Path, top: str, size: int, limits: Limits
) -> Iterator[ZipMember]:
    if len(entries) > limits.members:
        raise RefusedError(f"it has {len(entries):,} members, expected {limits.members:,} at most")
    names = AdmittedNames(top)
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    total = 0
    for entry in entries:
        # zipfile cuts a name at its first zero byte; what was cut away may be what matters.
        path = names.admit(entry.orig_filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        folder = entry.orig_filename.endswith("/")
        if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
            raise RefusedError(
                f"{entry.orig_filename!r} is a link or a device, expected files and folders only"
            )
        if entry.flag_bits & ENCRYPTED:
            raise RefusedError(f"{entry.orig_filename!r} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.volume:
            raise RefusedError(f"{entry.orig_filename!r} is packed in a way that the publisher's are not")
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        if (not deflated and entry.compress_size != entry.file_size) or (folder and entry.file_size):
            raise RefusedError(f"the sizes of {entry.orig_filename!r} make no sense")
        total += entry.file_size
        if total > limits.bytes:
            raise RefusedError(f"it unpacks to more than the {limits.bytes:,} bytes expected at most")
        if total > max(BLOCK, limits.ratio * size):
            raise RefusedError(f"its {size:,} bytes unpack to more than {limits.ratio:g} times as many")
        (folders if folder else files).add(path)
        folders.update(path.parents)
        yield ZipMember(
            archive=str(archive),
            name="" if folder else "/".join(path.parts[1:]),
            size=entry.file_size,
            stored_name=entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8 else "cp437"),
            offset=entry.header_offset,
            packed=entry.compress_size,
            deflated=deflated,
            crc=entry.CRC,
        )
    if both := files & folders:
        raise RefusedError(f"{str(min(both))!r} is both a file and a folder")


def _check_places(members: Sequence[ZipMember], size: int) -> None:
    """Members lie one behind the other from the first byte on: none inside another, nothing before them."""
    ordered = sorted(members, key=lambda member: member.offset)
    if not ordered:
        raise RefusedError("it is empty")
    if ordered[0].offset:
        raise RefusedError(f"{ordered[0].offset:,} bytes of something else stand before it")
    ends = [each.offset + LOCAL_HEADER.size + len(each.stored_name) + each.packed for each in ordered]
    for (member, end), start in zip(
        zip(ordered, ends, strict=True), [*(each.offset for each in ordered[1:]), size], strict=True
    ):
        if end > start:
            raise RefusedError(f"{member.stored_name.decode(errors='replace')!r} overlaps what follows it")


class _SmallReads(io.FileIO):
    """A file that is never read more than `largest` bytes at once: zipfile reads a directory whole."""

    def __init__(self, path: Path, largest: int) -> None:
        super().__init__(path)
        self._largest = max(largest, BLOCK)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        if size > self._largest:
            raise RefusedError("its directory is far larger than the data set's")
        return super().read(size) or b""
