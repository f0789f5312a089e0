"""repro.data.files: hostile archives are refused whole, honest ones unpacked."""

import io
import random
import tarfile
from pathlib import Path

import pytest

from repro.data.files import unpack_tar
from repro.errors import DataCorruptError, SetupError

LIMITS = {"max_members": 10, "max_bytes": 3_000_000}


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz", **options) -> Path:
    with tarfile.open(path, mode, **options) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def refused(archive: Path, message: str) -> None:
    """The archive is refused with this message, and nothing of it is left anywhere in the test's folder."""
    (archive.parent / "out").mkdir()
    with pytest.raises(DataCorruptError, match=message) as caught:
        unpack_tar(archive, archive.parent / "out" / "set", **LIMITS)
    assert f"{archive} is not unpacked" in str(caught.value)
    assert list((archive.parent / "out").iterdir()) == []
    assert not any(path.name in ("evil", "passwd") for path in archive.parent.rglob("*"))


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_honest_archive_is_unpacked_byte_for_byte(tmp_path, mode, format):
    long_name = "set/" + "/".join(["folder"] * 30) + "/é.bin" if format != tarfile.USTAR_FORMAT else "set/b/c"
    contents = {"set/a": b"x" * 1024, "set/empty": b"", long_name: bytes(range(256)) * 4000}
    members = (member(name, content, mode=0o6777, uid=12345) for name, content in contents.items())
    folder = member("set", type=tarfile.DIRTYPE, mode=0o755)
    archive = pack(tmp_path / "set.tar", folder, *members, mode=mode, format=format)
    left = tmp_path / "out" / ".set.unpacking" / "set" / "of-a-killed-process"
    left.mkdir(parents=True)
    unpack_tar(archive, tmp_path / "out" / "set", **LIMITS)
    files = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in files} == contents
    assert all(path.stat().st_uid != 12345 and path.stat().st_mode & 0o7022 == 0 for path in files)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "leads out of the archive's folder"),
        ("set/../../evil", "leads out of the archive's folder"),
        ("/etc/evil", "leads out of the archive's folder"),
        ("other/evil", "'other/evil' does not lie below 'set'"),
        ("evil", "'evil' does not lie below 'set'"),
        ("set/a\nb", "has a control character or a backslash"),
        ("set\\..\\evil", "has a control character or a backslash"),
    ],
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, name, message):
    refused(pack(tmp_path / "x.tar.gz", member("set/good", b"x"), member(name, b"evil")), message)


@pytest.mark.parametrize(
    "type",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z"],
)
def test_links_devices_and_sparse_files_are_refused(tmp_path, type):
    archive = pack(tmp_path / "x.tar.gz", member("set/odd", type=type, linkname="/etc/passwd"))
    refused(archive, "'set/odd' is a link or a special file")


def test_a_link_cannot_lead_a_later_member_outside(tmp_path):
    (tmp_path / "outside").mkdir()
    link = member("set/link", type=tarfile.SYMTYPE, linkname=str(tmp_path / "outside"))
    refused(pack(tmp_path / "x.tar.gz", link, member("set/link/evil", b"x")), "is a link")
    assert list((tmp_path / "outside").iterdir()) == []


def long_name(size: int, content: bytes = b"") -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return header.tobuf(tarfile.GNU_FORMAT) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([member(f"set/{index}") for index in range(11)], "more than the 10 members"),
        ([member("set/a", random.Random(0).randbytes(3_100_000))], "more than the 3,000,000 bytes"),
        ([member("set/a", bytes(2_900_000))], "unpack to over 50 times as many"),
        ([member("set/a", b"x"), member("set/a/b", b"x")], "is both a file and a folder"),
        ([], "it has no folder 'set'"),
        (b"", "not a whole tar archive"),
        (b"<html>" * 200, "not a whole tar archive"),
        (long_name(4 << 30, bytes(4096)), "not a whole tar archive"),
        (long_name(1, b"x" + bytes(511)) * 2500, "not a whole tar archive"),
    ],
    ids=["members", "bytes", "bomb", "file-and-folder", "nothing", "empty", "page", "huge-header", "chain"],
)
def test_what_is_no_archive_of_this_kind_is_refused(tmp_path, content, message):
    archive = tmp_path / "x.tar.gz"
    if isinstance(content, bytes):
        archive.write_bytes(content)
    else:
        pack(archive, *content)
    refused(archive, message)


@pytest.mark.parametrize("type", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, b"Z"])
def test_a_negative_size_does_not_loop(tmp_path, type):
    header = tarfile.TarInfo("set/a")
    header.type, header.size = type, -1024
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    refused(tmp_path / "x.tar", "size|special|whole tar")


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("upto", [5, 200, 2000])
def test_a_torn_archive_is_refused(tmp_path, mode, upto):
    archive = pack(tmp_path / "x.tar", member("set/a", random.Random(0).randbytes(20_000)), mode=mode)
    archive.write_bytes(archive.read_bytes()[:upto])
    refused(archive, "not a whole tar archive")


def test_a_full_disk_leaves_nothing_half_unpacked(tmp_path, small_disk):
    archive = pack(tmp_path / "x.tar", member("set/a", bytes(2_000_000)), mode="w")
    with pytest.raises(SetupError, match="no space left"):
        unpack_tar(archive, small_disk / "set", **LIMITS)
    assert list(small_disk.iterdir()) == []


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"cannot read .*no\.tar: No such file"):
        unpack_tar(tmp_path / "no.tar", tmp_path / "set", **LIMITS)
