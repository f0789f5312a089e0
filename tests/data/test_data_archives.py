"""repro.data.archives on archives made to do harm, and on honest ones."""

import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest

from repro.data.archives import Limits, extract
from repro.errors import DataCorruptError, SetupError

LIMITS = Limits(members=10, bytes=3_000_000)


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


def refused(archive: Path, target: Path, message: str, limits: Limits = LIMITS) -> None:
    """The archive is refused with this message, and nothing of it is left below the test's folder."""
    folder = target.parent
    folder.mkdir()
    with pytest.raises(DataCorruptError, match=message) as caught:
        extract(archive, target, limits)
    assert str(archive) in str(caught.value)
    assert "nothing of it was kept" in str(caught.value)
    assert [path for path in folder.rglob("*") if not path.name.endswith(".lock")] == []
    assert not any(path.name in ("evil", "passwd") for path in folder.parent.rglob("*"))


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_honest_archive_is_unpacked_byte_for_byte(tmp_path, mode, format):
    long_name = "set/" + "/".join(["folder"] * 30) + "/é.bin" if format != tarfile.USTAR_FORMAT else "set/b/c"
    contents = {"set/a": b"x" * 1024, "set/empty": b"", long_name: bytes(range(256)) * 4000}
    folder = member("set", type=tarfile.DIRTYPE)
    archive = pack(
        tmp_path / "set.tar",
        folder,
        *(member(name, content) for name, content in contents.items()),
        mode=mode,
        format=format,
    )
    target = extract(archive, tmp_path / "out" / "set", LIMITS)
    assert target == tmp_path / "out" / "set"
    assert {str(path.relative_to(tmp_path / "out")) for path in target.rglob("*") if path.is_file()} == set(
        contents
    )
    for name, content in contents.items():
        assert (tmp_path / "out" / name).read_bytes() == content


def test_owners_and_permissions_of_the_archive_are_not_taken_over(tmp_path):
    archive = pack(tmp_path / "set.tar.gz", member("set/a", b"x", mode=0o6777, uid=12345))
    place = extract(archive, tmp_path / "out" / "set", LIMITS) / "a"
    assert place.stat().st_mode & 0o7111 == 0
    assert place.stat().st_uid != 12345


def test_what_is_there_already_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    assert extract(tmp_path / "no-such-archive", tmp_path / "set", LIMITS) == tmp_path / "set"


def test_what_a_killed_process_left_is_cleared(tmp_path):
    left = tmp_path / "out" / ".set.unpacking" / "set"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    archive = pack(tmp_path / "set.tar.gz", member("set/a", b"x"))
    target = extract(archive, tmp_path / "out" / "set", LIMITS)
    assert [path.name for path in target.iterdir()] == ["a"]
    assert not left.exists()


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
        ("set/\udcff", "has a control character or a backslash"),
    ],
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, name, message):
    archive = pack(tmp_path / "x.tar.gz", member("set/good", b"x"), member(name, b"evil"))
    refused(archive, tmp_path / "out" / "set", message)


@pytest.mark.parametrize(
    ("type", "kind"),
    [
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "special file"),
        (tarfile.BLKTYPE, "special file"),
        (tarfile.FIFOTYPE, "special file"),
        (tarfile.GNUTYPE_SPARSE, "special file"),
        (b"Z", "special file"),
    ],
)
def test_links_devices_and_sparse_files_are_refused(tmp_path, type, kind):
    archive = pack(tmp_path / "x.tar.gz", member("set/odd", type=type, linkname="/etc/passwd"))
    refused(archive, tmp_path / "out" / "set", f"'set/odd' is a {kind}, expected files and folders only")


def test_a_link_cannot_lead_a_later_member_outside(tmp_path):
    (tmp_path / "outside").mkdir()
    archive = pack(
        tmp_path / "x.tar.gz",
        member("set/link", type=tarfile.SYMTYPE, linkname=str(tmp_path / "outside")),
        member("set/link/evil", b"x"),
    )
    refused(archive, tmp_path / "out" / "set", "is a link")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("again", ["set/a", "set//a", "set/./a", "set/A"])
def test_a_name_that_occurs_twice_is_refused(tmp_path, again):
    archive = pack(tmp_path / "x.tar.gz", member("set/a", b"good"), member(again, b"evil"))
    refused(archive, tmp_path / "out" / "set", "occurs twice")


def test_a_file_that_is_also_a_folder_is_refused(tmp_path):
    archive = pack(tmp_path / "x.tar.gz", member("set/a", b"x"), member("set/a/b", b"x"))
    refused(archive, tmp_path / "out" / "set", "'set/a/b' is both a file and a folder")


def test_too_many_members_are_refused(tmp_path):
    archive = pack(tmp_path / "x.tar.gz", *(member(f"set/{index}") for index in range(11)))
    refused(archive, tmp_path / "out" / "set", "more than the 10 members")


def test_too_many_bytes_are_refused(tmp_path):
    archive = pack(
        tmp_path / "x.tar", member("set/a", bytes(2_000_000)), member("set/b", bytes(2_000_000)), mode="w"
    )
    refused(archive, tmp_path / "out" / "set", "more than the 3,000,000 bytes")


def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    archive = pack(tmp_path / "x.tar.gz", member("set/a", bytes(2_900_000)))
    assert archive.stat().st_size < 10_000
    refused(archive, tmp_path / "out" / "set", "unpack to more than 50 times as many")


def test_a_claimed_size_that_is_not_there_is_refused(tmp_path):
    archive = pack(tmp_path / "x.tar", member("set/a", b"x" * 5000), mode="w")
    archive.write_bytes(archive.read_bytes()[:3000])
    refused(archive, tmp_path / "out" / "set", "not a whole tar archive")


def test_a_header_that_claims_gigabytes_is_refused_unread(tmp_path):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    packed = gzip.compress(name.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    (tmp_path / "x.tar.gz").write_bytes(packed)
    refused(tmp_path / "x.tar.gz", tmp_path / "out" / "set", "header of an impossible size")


@pytest.mark.parametrize("type", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, b"Z"])
def test_a_negative_size_does_not_loop(tmp_path, type):
    header = tarfile.TarInfo("set/a")
    header.type, header.size = type, -1024
    packed = header.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    (tmp_path / "x.tar").write_bytes(packed)
    refused(tmp_path / "x.tar", tmp_path / "out" / "set", "size|special|whole tar")


def test_headers_chained_without_end_are_refused(tmp_path):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1
    link = name.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(link * 2500))
    refused(tmp_path / "x.tar.gz", tmp_path / "out" / "set", "make no sense|not a whole tar")


@pytest.mark.parametrize("upto", [0, 5, 200, 2000])
def test_a_torn_archive_is_refused(tmp_path, upto):
    noise = random.Random(0).randbytes(20_000)
    archive = pack(tmp_path / "x.tar.gz", member("set/a", noise))
    archive.write_bytes(archive.read_bytes()[:upto])
    refused(archive, tmp_path / "out" / "set", "not a whole tar archive")


def test_a_page_instead_of_an_archive_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"<html>" * 200)
    refused(tmp_path / "x.tar.gz", tmp_path / "out" / "set", "not a whole tar archive")


def test_an_archive_without_its_folder_is_refused(tmp_path):
    refused(pack(tmp_path / "x.tar.gz"), tmp_path / "out" / "set", "it has no folder 'set'")


def test_a_full_disk_leaves_nothing_half_unpacked(tmp_path, small_disk):
    archive = pack(tmp_path / "x.tar", member("set/a", bytes(2_000_000)), mode="w")
    with pytest.raises(SetupError, match="no space left"):
        extract(archive, small_disk / "set", LIMITS)
    assert [path.name for path in small_disk.iterdir()] == [".set.lock"]


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"cannot read .*no\.tar: No such file"):
        extract(tmp_path / "no.tar", tmp_path / "set", LIMITS)
