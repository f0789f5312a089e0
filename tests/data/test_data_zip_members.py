"""repro.data.zip_members on zips made to do harm, and on honest ones."""

import io
import random
import stat
import struct
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from repro.data.archives import Limits
from repro.data.zip_members import open_zip
from repro.errors import DataCorruptError, SetupError

LIMITS = Limits(members=10, bytes=3_000_000)
NOISE = random.Random(0).randbytes(5000)


def entry(name: str, mode: int = 0, **fields) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def pack(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members:
            info = info if isinstance(info, zipfile.ZipInfo) else entry(info)
            archive.writestr(info, content, None if info.filename.endswith("/") else method)
    return path


def refused(archive: Path, message: str, limits: Limits = LIMITS) -> None:
    with pytest.raises(DataCorruptError, match=f"{archive.name} is not read: .*{message}"):
        open_zip(archive, "set", limits)


def patched(archive: Path, *changes: tuple[bytes, bytes]) -> Path:
    """The archive with each first part of its bytes replaced by one of the same length, wherever it occurs."""
    content = archive.read_bytes()
    for old, new in changes:
        assert old in content
        assert len(old) == len(new)
        content = content.replace(old, new)
    archive.write_bytes(content)
    return archive


def central(archive: Path, number: int, offset: int, form: str, value: int) -> Path:
    """Overwrites a field of the directory's entry `number`, at `offset` in it."""
    content = bytearray(archive.read_bytes())
    at = -1
    for _ in range(number + 1):
        at = content.index(b"PK\1\2", at + 1)
    struct.pack_into(form, content, at + offset, value)
    archive.write_bytes(content)
    return archive


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_honest_zip_is_read_byte_for_byte(tmp_path, method):
    contents = {"set/a": b"x" * 1024, "set/empty": b"", "set/é/ü.bin": NOISE, "set/b/c": b"text"}
    archive = pack(tmp_path / "x.zip", ("set/", b""), *contents.items(), method=method)
    tree = open_zip(archive, "set", LIMITS)
    found = {f"set/{file.name}": file for folder in ("", "b", "é") for file in tree.files(folder)}
    assert {name: file.read(10_000) for name, file in found.items()} == contents
    assert [file.name for file in tree.files("")] == ["a", "empty"]
    assert tree.files("nowhere") == []
    assert {name: file.size for name, file in found.items()} == {
        name: len(content) for name, content in contents.items()
    }


def test_a_zip64_written_to_a_stream_is_read_too(tmp_path):
    class Stream(io.RawIOBase):
        """Cannot seek, so sizes follow the content."""

        def __init__(self):
            self.content = b""

        def writable(self):
            return True

        def write(self, part):
            self.content += part
            return len(part)

    stream = Stream()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made,
        made.open("set/a", "w", force_zip64=True) as part,
    ):
        part.write(NOISE)
    (tmp_path / "x.zip").write_bytes(stream.content)
    (file,) = open_zip(tmp_path / "x.zip", "set", LIMITS).files("")
    assert file.read(10_000) == NOISE


@pytest.mark.slow
def test_more_members_than_a_plain_zip_can_count_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        for number in range(66_000):
            made.writestr(f"set/{number}", b"")
    assert len(open_zip(tmp_path / "x.zip", "set", Limits(members=70_000, bytes=0)).files("")) == 66_000


def test_the_names_of_info_zip_and_of_file_managers_are_no_obstacle(tmp_path):
    archive = pack(tmp_path / "x.zip", ("set/.DS_Store", b"x"), ("set/b", b"y"))
    assert [file.name for file in open_zip(archive, "set", LIMITS).files("")] == ["b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "leads out of the archive's folder"),
        ("set/../../evil", "leads out of the archive's folder"),
        ("/etc/evil", "leads out of the archive's folder"),
        ("other/evil", "does not lie below 'set'"),
        ("set\\..\\evil", "control character or a backslash"),
        ("C:\\evil", "control character or a backslash"),
        ("set/a\nb", "control character or a backslash"),
        ("set/\u202egpj.exe", "control character or a backslash"),
        ("set/GOOD", "'set/GOOD' occurs twice"),
        ("set/good", "'set/good' occurs twice"),
        ("set//good", "occurs twice"),
        ("set/good/x", "'set/good' is both a file and a folder"),
    ],
)
def test_a_name_that_no_honest_zip_has_is_refused(tmp_path, name, message):
    with pytest.warns(UserWarning, match="Duplicate") if name == "set/good" else nullcontext():
        archive = pack(tmp_path / "x.zip", ("set/good", b"x"), (name, b"evil"))
    refused(archive, message)


def test_two_unicode_forms_of_one_name_are_refused(tmp_path):
    refused(pack(tmp_path / "x.zip", ("set/\u00e9", b"x"), ("set/e\u0301", b"y")), "occurs twice")


def test_a_name_cut_off_by_a_zero_byte_is_refused(tmp_path):
    archive = patched(pack(tmp_path / "x.zip", ("set/good.txt", b"x")), (b"good.txt", b"good\0txt"))
    refused(archive, "control character")


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    refused(
        pack(tmp_path / "x.zip", (entry("set/odd", kind | 0o777), b"/etc/passwd")), "is a link or a device"
    )


@pytest.mark.parametrize("flag", [0x1, 0x1 | 0x40, 0x2000])
def test_an_encrypted_member_is_refused(tmp_path, flag):
    refused(central(pack(tmp_path / "x.zip", ("set/a", b"x")), 0, 8, "<H", flag), "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_packing_is_refused(tmp_path, method):
    refused(pack(tmp_path / "x.zip", ("set/a", NOISE), method=method), "packed in a way")


def test_too_many_members_are_refused(tmp_path):
    refused(
        pack(tmp_path / "x.zip", *((f"set/{n}", b"") for n in range(11))),
        "it has 11 members, expected 10 at most",
    )


def test_too_many_bytes_are_refused(tmp_path):
    members = [(f"set/{n}", bytes(2_000_000)) for n in "ab"]
    refused(pack(tmp_path / "x.zip", *members, method=zipfile.ZIP_STORED), "more than the 3,000,000 bytes")


def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    archive = pack(tmp_path / "x.zip", ("set/a", bytes(2_900_000)))
    assert archive.stat().st_size < 10_000
    refused(archive, "unpack to more than 50 times as many")


def test_a_directory_of_a_size_that_cannot_be_is_refused_unread(tmp_path):
    huge = tmp_path / "x.zip"
    with huge.open("wb") as stream:
        stream.truncate(3_000_000)
        stream.seek(0, 2)
        stream.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2_999_000, 1000, 0))
    refused(huge, "its directory is far larger than the data set's")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    archive = pack(tmp_path / "x.zip", ("set/a", NOISE), ("set/b", NOISE))
    refused(central(archive, 1, 42, "<L", 0), "overlaps what follows it")


def test_something_before_the_zip_is_refused(tmp_path):
    archive = pack(tmp_path / "x.zip", ("set/a", b"x"))
    archive.write_bytes(b"MZ" * 50 + archive.read_bytes())
    refused(archive, "100 bytes of something else stand before it")


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [(24, "<L", 4000), (24, "<L", 6000), (16, "<L", 1234), (20, "<L", 4000)],
    ids=["smaller", "larger", "another checksum", "packed shorter"],
)
def test_a_directory_that_lies_about_a_member_is_found_out(tmp_path, offset, form, value):
    archive = central(pack(tmp_path / "x.zip", ("set/a", NOISE)), 0, offset, form, value)
    (file,) = open_zip(archive, "set", LIMITS).files("")
    with pytest.raises(ValueError, match="damaged in its archive"):
        file.read(10_000)


def test_a_member_whose_own_header_has_another_name_is_found_out(tmp_path):
    archive = pack(tmp_path / "x.zip", ("set/a", NOISE))
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"set/a", b"set/b", 1))
    (file,) = open_zip(archive, "set", LIMITS).files("")
    with pytest.raises(ValueError, match="something else in its archive"):
        file.read(10_000)


def test_a_member_that_unpacks_to_far_more_than_claimed_is_stopped(tmp_path):
    archive = central(pack(tmp_path / "x.zip", ("set/a", bytes(50_000_000))), 0, 24, "<L", 1000)
    script = (
        "import resource, sys; from pathlib import Path; from repro.data.archives import Limits\n"
        "from repro.data.zip_members import open_zip\n"
        "(file,) = open_zip(Path(sys.argv[1]), 'set', Limits(10, 3_000_000)).files('')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: file.read(10_000)\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, archive], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines() == [
        "damaged in its archive (size or CRC-32 are not what its directory says)",
        "True",
    ]


def test_a_member_longer_than_asked_for_is_not_read(tmp_path):
    (file,) = open_zip(pack(tmp_path / "x.zip", ("set/a", NOISE)), "set", LIMITS).files("")
    with pytest.raises(ValueError, match="5,000 bytes, more than 100"):
        file.read(100)


@pytest.mark.parametrize("upto", [0, 3, 200, 5000])
def test_a_torn_zip_is_refused(tmp_path, upto):
    archive = pack(tmp_path / "x.zip", ("set/a", NOISE), ("set/b", NOISE))
    archive.write_bytes(archive.read_bytes()[:upto])
    refused(archive, "not a whole zip archive")


def test_an_empty_zip_and_a_page_are_refused(tmp_path):
    refused(pack(tmp_path / "x.zip"), "it is empty")
    (tmp_path / "page.zip").write_bytes(b"<html>" * 200)
    refused(tmp_path / "page.zip", "not a whole zip archive")


def test_any_flipped_byte_is_refused_or_leaves_the_contents(tmp_path):
    archive = pack(tmp_path / "x.zip", ("set/a", b"first"), ("set/b", NOISE[:50]))
    honest = archive.read_bytes()
    for position in range(len(honest)):
        damaged = bytearray(honest)
        damaged[position] ^= 0xA5
        archive.write_bytes(damaged)
        try:
            found = {file.name: file.read(10_000) for file in open_zip(archive, "set", LIMITS).files("")}
        except (DataCorruptError, ValueError):
            continue
        assert set(found.values()) <= {b"first", NOISE[:50]}, position


def test_a_missing_zip_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"cannot read .*no\.zip: No such file"):
        open_zip(tmp_path / "no.zip", "set", LIMITS)
