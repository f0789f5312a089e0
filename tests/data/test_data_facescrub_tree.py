"""repro.data.facescrub on trees as the usual download scripts leave them."""

import hashlib
import os
from pathlib import Path

import pytest
from fake_facescrub import FakeFaceScrub

from repro.data.face_lists import FaceLists, read_face_lists
from repro.data.facescrub import FaceTree, match_tree, tree_files
from repro.errors import DataMissingError

FAKE = FakeFaceScrub({"Ada Lovelace": 3, "Kurt Gödel": 2})
BASE = "http://pictures.example"


@pytest.fixture
def lists(tmp_path: Path) -> FaceLists:
    return read_face_lists(FAKE.lay_lists(tmp_path / "lists", BASE))


def lay(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def match(root: Path, lists: FaceLists) -> FaceTree:
    return match_tree(root, tree_files(root), lists)


def folder_of(picture) -> str:
    return picture.name.replace(" ", "_")


def test_whole_pictures_are_known_by_their_bytes_whatever_they_are_called(lists, tmp_path):
    for number, picture in enumerate(FAKE.pictures):
        lay(tmp_path / "tree" / "somewhere" / f"{number}", picture.content)
    tree = match(tmp_path / "tree", lists)
    assert [(file.face.key, file.box, file.sha256) for file in tree.found] == [
        (face.key, face.box, face.sha256) for face in lists.faces
    ]
    assert tree.others == 0


def test_faces_cut_out_are_known_by_name_and_ids(lists, tmp_path):
    for picture in FAKE.pictures:
        name = f"{folder_of(picture)}_{picture.image_id}_{picture.face_id}.jpeg"
        lay(tmp_path / "tree" / "faces" / folder_of(picture) / name, picture.cut_out())
    tree = match(tmp_path / "tree", lists)
    assert [file.face for file in tree.found] == list(lists.faces)
    assert all(file.box is None for file in tree.found)
    assert tree.found[0].sha256 == hashlib.sha256(FAKE.pictures[0].cut_out()).hexdigest()


@pytest.mark.parametrize("name", ["{image}_{face}.jpg", "{sha1}.jpg"])
def test_faces_cut_out_in_a_persons_folder_are_known_by_ids_or_by_the_address(lists, tmp_path, name):
    for picture in FAKE.pictures:
        sha1 = hashlib.sha1((BASE + picture.path).encode()).hexdigest()
        file = name.format(image=picture.image_id, face=picture.face_id, sha1=sha1)
        lay(tmp_path / "tree" / folder_of(picture) / "face" / file, picture.cut_out())
    assert [file.face for file in match(tmp_path / "tree", lists).found] == list(lists.faces)


def test_a_whole_picture_counts_before_the_face_cut_out_of_it(lists, tmp_path):
    picture = FAKE.pictures[0]
    lay(tmp_path / "tree" / "images" / "a.jpg", picture.content)
    name = f"{folder_of(picture)}_{picture.image_id}_{picture.face_id}.jpeg"
    lay(tmp_path / "tree" / "faces" / folder_of(picture) / name, picture.cut_out())
    (only,) = match(tmp_path / "tree", lists).found
    assert (only.file.name, only.box) == ("images/a.jpg", picture.box)


def test_what_is_no_face_of_the_lists_is_counted(lists, tmp_path):
    picture, tree = FAKE.pictures[0], tmp_path / "tree"
    lay(tree / "a.jpg", picture.content)
    lay(tree / f"{folder_of(picture)}_2_1002.jpeg", picture.cut_out())  # in no folder of faces
    lay(tree / "faces" / "Somebody_Else" / "Somebody_Else_1_1001.jpeg", picture.cut_out())
    lay(tree / "faces" / folder_of(picture) / "notes.txt", b"hello")
    lay(tree / "_bboxes.txt", b"")
    lay(tree / ".DS_Store", b"")
    found = match(tree, lists)
    assert (len(found.found), found.others) == (1, 4)


def test_links_that_lead_around_in_circles_do_not(lists, tmp_path):
    lay(tmp_path / "tree" / "a.jpg", FAKE.pictures[0].content)
    (tmp_path / "tree" / "again").symlink_to(tmp_path / "tree")
    assert len(match(tmp_path / "tree", lists).found) == 1


def test_what_is_no_plain_file_or_has_an_unprintable_name_is_passed_over(lists, tmp_path):
    lay(tmp_path / "tree" / "a.jpg", FAKE.pictures[0].content)
    lay(tmp_path / "tree" / "b\x1b.jpg", FAKE.pictures[1].content)
    os.mkfifo(tmp_path / "tree" / "pipe.jpg")
    found = match(tmp_path / "tree", lists)
    assert (len(found.found), found.others) == (1, 1)


def test_a_tree_of_something_else_says_what_was_expected(lists, tmp_path):
    lay(tmp_path / "tree" / "cat.jpg", b"meow")
    with pytest.raises(DataMissingError, match=r"none of the 1 files below .*tree is a face of the lists"):
        match(tmp_path / "tree", lists)


def test_a_tree_that_is_not_there_is_named(lists, tmp_path):
    with pytest.raises(DataMissingError, match="is not a folder: --from names the top of a downloaded tree"):
        match(tmp_path / "tree", lists)
