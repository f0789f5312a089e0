"""repro.data.files: hostile archives are refused whole, honest ones unpacked."""

import io
import logging
import random
import sys
import tarfile
from pathlib import Path

import pytest

from repro.cli.options import configure_logging
from repro.data import files
from repro.data.files import progress, unpack_tar
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


@pytest.mark.parametrize(("mode", "format"), [("w:gz", tarfile.GNU_FORMAT), ("w", tarfile.PAX_FORMAT)])
def test_an_honest_archive_is_unpacked_byte_for_byte(tmp_path, mode, format):
    long_name = "set/" + "/".join(["folder"] * 30) + "/é.bin"
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


NOISE = random.Random(0).randbytes(3_100_000)
TORN = io.BytesIO()
with tarfile.open(fileobj=TORN, mode="w:gz") as _tar:
    _tar.addfile(member("set/a", NOISE[:20_000])[0], io.BytesIO(NOISE[:20_000]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([member("../evil", b"x")], "'../evil' does not lie below 'set'"),
        ([member("set/../../evil", b"x")], "does not lie below 'set'"),
        ([member("/etc/evil", b"x")], "does not lie below 'set'"),
        ([member("set/good", b"x"), member("other/evil", b"x")], "'other/evil' does not lie below 'set'"),
        ([member("set\\..\\evil", b"x")], "does not lie below 'set'"),
        ([member("set/odd", type=tarfile.SYMTYPE, linkname="/etc"), member("set/odd/evil", b"x")], "is a link or a special"),
        ([member("set/odd", type=tarfile.LNKTYPE, linkname="/etc/passwd")], "is a link or a special file"),
        ([member("set/odd", type=tarfile.FIFOTYPE)], "is a link or a special file"),
        ([member(f"set/{index}") for index in range(11)], "over 10 members"),
        ([member("set/a", NOISE)], "3,000,000 bytes"),
        ([member("set/a", bytes(2_900_000))], "50 times its own size unpacked"),
        ([member("set/a", b"x"), member("set/a/b", b"x")], "not a whole tar archive"),
        ([], "it has no folder 'set'"),
        (b"", "not a whole tar archive"),
        (b"<html>" * 200, "not a whole tar archive"),
        (b"\x1f\x8b\x08\x00\x00", "not a whole tar archive"),
        (TORN.getvalue()[:2000], "not a whole tar archive"),
    ],
)  # fmt: skip
def test_what_is_no_archive_of_this_kind_is_refused_whole(tmp_path, content, message):
    archive = tmp_path / "x.tar.gz"
    if isinstance(content, bytes):
        archive.write_bytes(content)
    else:
        pack(archive, *content)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataCorruptError, match=message) as caught:
        unpack_tar(archive, tmp_path / "out" / "set", **LIMITS)
    assert f"{archive} is not unpacked" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


def test_a_full_disk_leaves_nothing_half_unpacked_and_a_missing_archive_is_named(tmp_path, small_disk):
    archive = pack(tmp_path / "x.tar", member("set/a", bytes(2_000_000)), mode="w")
    for path, says in (
        (archive, "no space left"),
        (tmp_path / "no.tar", r"cannot read .*no\.tar: No such file"),
    ):
        with pytest.raises(SetupError, match=says):
            unpack_tar(path, small_disk / "set", **LIMITS)
        assert list(small_disk.iterdir()) == []


def test_how_far_a_step_is_shows_as_lines_of_the_log_and_as_a_bar_on_a_terminal(said, monkeypatch, capsys):
    monkeypatch.setattr(files, "PAUSE", 0)
    with progress("decoded", 3000, "images") as advance:
        advance(1000)
    assert said == ["decoded 1,000 of 3,000 images"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("decoded", 3, "images") as advance:
        advance(3)
    assert "3/3" in capsys.readouterr().err


def test_a_message_is_a_plain_line_and_one_that_cannot_be_written_is_dropped(monkeypatch, capsys):
    configure_logging()
    logging.getLogger("repro.data").info("%d faces", 3)
    assert capsys.readouterr().err == "3 faces\n"

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    logging.getLogger("repro.data").info("dropped")
