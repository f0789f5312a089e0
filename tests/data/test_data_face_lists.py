"""repro.data.face_lists on rows as they are published, as they occur in copies, and as an enemy writes them."""

from pathlib import Path

import pytest

from repro.data.face_lists import LISTS, Face, read_face_lists
from repro.errors import DataCorruptError, DataMissingError

SHA = "ab" * 32
HEADER = "name\timage_id\tface_id\turl\tbbox\tsha256\n"


def row(
    name="Ada Lovelace", image="1", face="2", url="http://a.example/1.jpg", box="1,2,11,12", sha=SHA
) -> str:
    return "\t".join((name, image, face, url, box, sha)) + "\n"


OTHER = row(name="Grace Hopper", sha="cd" * 32)


def lay(folder: Path, actors: str | bytes, actresses: str | bytes = OTHER) -> Path:
    for name, text in zip(LISTS, (actors, actresses), strict=True):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def read_one(folder: Path, text: str | bytes):
    """What is read of a list that also has one good row of another picture."""
    good = row(name="Good", image="9", face="9", sha="ef" * 32)
    lists = read_face_lists(lay(folder, (text if isinstance(text, bytes) else text.encode()) + good.encode()))
    assert [face.name for face in lists.faces][-2:] == ["Good", "Grace Hopper"]
    return lists


@pytest.mark.parametrize(
    "text",
    [
        row().encode(),
        (HEADER + row()).replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + (HEADER + "\n" + row(sha=SHA.upper()) + "\n\n").encode(),
    ],
)
def test_rows_are_read_with_a_header_or_without_and_with_any_line_end(tmp_path, text):
    lists = read_face_lists(lay(tmp_path, text))
    assert lists.faces[0] == Face("Ada Lovelace", 1, 2, "http://a.example/1.jpg", (1, 2, 11, 12), SHA)
    assert (lists.rows, lists.refused, set(lists.sources)) == (2, (), set(LISTS))


def test_odd_rows_that_can_be_used_are_used(tmp_path):
    """A name in Latin-1 beside others in UTF-8, a box that reaches out, one person twice in a picture."""
    text = row(name="Zoë").encode("latin-1") + row(box="-5,-6,10,9000").encode() + row(face="3").encode()
    lists = read_one(tmp_path, text)
    assert [face.name for face in lists.faces[:2]] == ["Zoë", "Ada Lovelace"]
    assert [face.box for face in lists.faces[1:3]] == [(-5, -6, 10, 9000), (1, 2, 11, 12)]
    assert not lists.refused


@pytest.mark.parametrize(
    ("text", "cause", "reason"),
    [
        ("Ada Lovelace\t1\t2\thttp://a.example/", "truncated", "4 fields, expected 6"),
        (row(name="Ada\x1b[31m"), "name", r"'Ada\\x1b\[31m' is empty, too long or has control"),
        (row(name="Ada\u202egpj"), "name", "control characters"),
        (row(name="A" * 101), "name", "too long"),
        (row(image="1e3"), "number", "got '1e3'"),
        (row(face="٣"), "number", "expected numbers as ids"),
        (row(url="http://a.example/\x00"), "address", "control characters"),
        (row(box="1,2,3"), "box", "expected a box x1,y1,x2,y2, got '1,2,3'"),
        (row(box="5,5,5,9"), "box", "the box 5,5,5,9 is empty"),
        (row(box="-9,-9,-1,5"), "box", "outside of every picture"),
        (row(box="1,2,99999999,3"), "box", "expected a box"),
        (row(sha=SHA[:-1]), "sha256", "expected 64 hexadecimal digits"),
    ],
)
def test_a_row_that_cannot_be_used_is_set_aside_with_its_line_and_reason(tmp_path, text, cause, reason):
    lists = read_one(tmp_path, HEADER + text.rstrip("\n") + "\n")
    (refused,) = lists.refused
    assert (refused.list, refused.line, refused.cause) == (LISTS[0], 2, cause)
    assert refused.reason.isprintable()
    with pytest.raises(ValueError, match=reason):
        raise ValueError(refused.reason)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "-rf"])
def test_a_name_that_looks_like_a_path_is_a_name_like_any_other(tmp_path, name):
    assert read_one(tmp_path, row(name=name)).faces[0].name == name


def test_the_same_face_under_another_id_counts_once_and_gives_a_second_address(tmp_path):
    """The published lists have these; in two splits they would be the same pixels."""
    lists = read_one(tmp_path, row() + row(image="7", face="8", url="http://b.example/2.jpg"))
    assert [refused.cause for refused in lists.refused] == ["duplicate"]
    assert lists.addresses[SHA] == ("http://a.example/1.jpg", "http://b.example/2.jpg")


def test_missing_lists_say_who_hands_them_out_and_where_they_go(tmp_path):
    (tmp_path / LISTS[0]).write_text(row())
    with pytest.raises(DataMissingError) as caught:
        read_face_lists(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no facescrub_actresses.txt in {tmp_path}. ")
    assert "http://vintage.winklerbros.net/facescrub.html" in message
    assert "--lists DIR" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", HEADER, "<html>\n<body>not found</body>\n", "\x00" * 500])
def test_a_file_without_a_usable_row_is_named(tmp_path, text):
    with pytest.raises(DataCorruptError, match=r"facescrub_actors\.txt has no usable row"):
        read_face_lists(lay(tmp_path, text))
