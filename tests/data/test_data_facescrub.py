"""repro.data.facescrub on a small FaceScrub: fetched from a real server, prepared, or found in another's tree."""

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_facescrub import ACTORS, ACTRESSES, COLOURS, FakeFaceScrub, FakePicture
from local_server import SmallFilesServer, page, status
from pictures import lay as lay_files

from repro.cli import main
from repro.data import facescrub
from repro.data.crawl import picture
from repro.data.decode import tree_files
from repro.data.face_lists import FaceLists, read_face_lists
from repro.data.facescrub import Found, match_tree, prepare
from repro.data.http_get import CrawlPolicy
from repro.data.prepared import open_prepared, verify_prepared
from repro.errors import DataMissingError, UsageError
from repro.manifest import prepared_folder

EAGER = CrawlPolicy(per_host=8, per_second=1e6, host_pause=0, back_off=0.01, unreachable_pause=0.01)
FEW = FakeFaceScrub({"Ada Lovelace": 5, "Grace Hopper": 4})
MANY = FakeFaceScrub({"Ada Lovelace": 72, "Alan Turing": 69, "Kurt Gödel": 80})
BASE = "http://pictures.example"


@pytest.fixture
def lists(site: SmallFilesServer, tmp_path: Path) -> Path:
    """The folder of the lists, whose pictures are on `site`."""
    for each in FEW.pictures:
        site.add(each.path, each.content)
    return FEW.lay_lists(tmp_path / "lists", site.base)


def fetch(data_dir: Path, **options) -> Path:
    return facescrub.fetch(data_dir, allow_private_addresses=True, policy=EAGER, **options)


def missing(raw: Path) -> list[dict[str, str]]:
    with (raw / "missing.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_what_is_not_there_is_counted_by_cause_and_listed_with_its_reason(lists, site, tmp_path, said):
    site.answers["/1.jpg"] = [status(404)]
    site.answers["/2.jpg"] = [page]
    site.files["/3.jpg"] = b"another picture"
    text = (lists / ACTORS).read_text().replace(f"{site.base}/4.jpg", f"file://{tmp_path}/secret.jpg")
    (lists / ACTORS).write_text(text)
    with (lists / ACTRESSES).open("a") as stream:
        stream.write("Grace Hopper\t99\t1099\thttp://a.example/cut-o\n")
        stream.write(FEW.pictures[0].row(site.base).replace("/1.jpg", "/copy.jpg").replace("\t1\t", "\t77\t"))
    site.files["/copy.jpg"] = FEW.pictures[0].content  # a second address of the first picture
    raw = fetch(tmp_path / "data", lists=lists)
    assert (
        said[0]
        == "the lists have 11 rows, 2 of them unusable (truncated 1, duplicate 1): 9 faces at 10 addresses"
    )
    assert said[-1].startswith("6 faces found, 3 missing (by address: page 1, mismatch 1, not-http 1); ")
    rows = missing(raw)
    assert [(row["cause"], row["name"], row["image_id"]) for row in rows] == [
        ("page", "Ada Lovelace", "2"),
        ("mismatch", "Ada Lovelace", "3"),
        ("not-http", "Ada Lovelace", "4"),
        ("row-truncated", "", ""),
        ("row-duplicate", "", ""),
    ]
    assert (rows[0]["url"], rows[0]["detail"]) == (f"{site.base}/2.jpg", "an HTML page instead of a picture")
    assert rows[3]["detail"] == "facescrub_actresses.txt line 5: 4 fields, expected 6"
    site.answers["/2.jpg"] = []
    raw = fetch(tmp_path / "data")
    assert not picture(raw, FEW.pictures[1].sha256).exists()
    fetch(tmp_path / "data", retry_dead=True)
    assert picture(raw, FEW.pictures[1].sha256).exists()


def test_no_name_or_address_of_a_list_becomes_a_path(site, tmp_path):
    evil = FakeFaceScrub({"Ada Lovelace": 1, "Grace Hopper": 1})
    lists = evil.lay_lists(tmp_path / "lists", site.base)
    for path in (lists / ACTORS, lists / ACTRESSES):
        text = path.read_text().replace("Ada Lovelace", "../../../evil")
        path.write_text(text.replace("/1.jpg", "/..%2f..%2fevil"))
    site.files["/..%2f..%2fevil"] = evil.pictures[0].content
    site.files["/2.jpg"] = evil.pictures[1].content
    before = set(tmp_path.rglob("*"))
    raw = fetch(tmp_path / "data", lists=lists)
    assert {each.sha256 for each in evil.pictures} == {path.name for path in raw.glob("images/*/*")}
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "data") and "evil" not in str(path.name) for path in new)


def put(path: Path, content: bytes) -> None:
    lay_files(path.parent, {path.name: content})


def lay(data_dir: Path, pictures: list[FakePicture], more: str = "") -> Path:
    """The data folder as a fetch of `pictures` leaves it."""
    raw = data_dir / "facescrub" / "raw"
    MANY.lay_lists(raw / "lists", BASE, more)
    for each in pictures:
        put(picture(raw, each.sha256), each.content)
    return data_dir


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    data_dir = lay(tmp_path_factory.mktemp("prepared"), MANY.pictures)
    prepare(data_dir)
    return data_dir


def test_people_with_fewer_than_70_images_are_out_and_a_tenth_of_each_ones_boxes_is_for_testing(prepared):
    data = open_prepared(prepared, "facescrub")
    manifest = data.manifest
    assert (manifest.title, manifest.class_names) == ("FaceScrub", ("Ada Lovelace", "Kurt Gödel"))
    assert np.bincount(data.train.labels).tolist() == [65, 72]
    assert np.bincount(data.test.labels).tolist() == [7, 8]
    assert manifest.notes == (
        "the lists have 221 rows: 221 faces",
        "221 faces found",
        "1 classes with fewer than 70 images are left out, 69 images in all",
    )
    assert set(manifest.sources) >= {"facescrub_actors.txt", "facescrub_actresses.txt"}
    assert data.train.images.shape[1:] == (3, 64, 64)
    # Every face is of one colour on gray, so a box that missed would show.
    for part in (data.train, data.test):
        for image, label in zip(part.images, part.labels, strict=True):
            colour = np.array(COLOURS[manifest.class_names[label]])
            inner = image[:, 4:60, 4:60].reshape(3, -1).astype(int)
            assert np.abs(inner - colour[:, None]).max() < 30
    assert verify_prepared(prepared, "facescrub") == manifest


def test_whole_arrays_of_the_same_pictures_stay_and_more_pictures_make_the_same_as_at_once(
    prepared, tmp_path
):
    lay(tmp_path, MANY.pictures[1:])
    assert prepare(tmp_path).train.count == 64 + 72
    folder = prepared_folder(tmp_path, "facescrub")
    made = folder.stat().st_ino
    prepare(tmp_path)
    assert folder.stat().st_ino == made
    prepare(lay(tmp_path, MANY.pictures))
    expected = prepared_folder(prepared, "facescrub")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in expected.iterdir()
    }


def test_what_cannot_be_used_is_left_out_and_named_and_what_is_missing_counted(tmp_path):
    lay(tmp_path, MANY.pictures[:-2], more="Ada Lovelace\t999\n")
    raw = tmp_path / "facescrub" / "raw"
    first, second, third = MANY.pictures[:3]
    damaged = picture(raw, first.sha256)
    damaged.write_bytes(first.content[:-1] + b"x")
    novel = FakePicture(third.name, third.image_id, third.face_id, third.box, b"not an image at all")
    text = (raw / "lists" / ACTORS).read_text().replace(third.row(BASE), novel.row(BASE))
    outside = second.row(BASE).replace(",".join(map(str, second.box)), "900,900,990,990")
    (raw / "lists" / ACTORS).write_text(text.replace(second.row(BASE), outside))
    put(picture(raw, novel.sha256), novel.content)
    lines = [
        {"address": f"{BASE}{each.path}", "cause": cause, "detail": "", "sha256": "", "size": 0}
        for each, cause in zip(MANY.pictures[-2:], ("gone", "mismatch"), strict=True)
    ]
    (raw / "fetched.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = prepare(tmp_path, save_as="faces", min_images=60)
    assert manifest.left_out == {
        "Ada Lovelace/1/1001": "its bytes are not those that were published",
        "Ada Lovelace/2/1002": "its box 900,900,990,990 lies outside of 64 × 48",
        "Ada Lovelace/3/1003": "not an image of the kind JPEG or PNG or GIF or WEBP or BMP",
    }
    assert manifest.notes[:2] == (
        "the lists have 222 rows, 1 of them unusable (truncated 1): 221 faces",
        "219 faces found, 2 missing (by address: gone 1, mismatch 1)",
    )
    assert manifest.notes[-1].startswith("3 files passed over: ")


def test_another_rule_than_the_papers_needs_another_name_and_too_few_pictures_are_no_set(tmp_path):
    lay(tmp_path, [])
    with pytest.raises(DataMissingError, match=r"repro data fetch facescrub --lists DIR.* --from DIR"):
        prepare(tmp_path)
    lay(tmp_path, MANY.pictures[:80])
    with pytest.raises(DataMissingError, match="1 of 2 classes have 70 usable images or more"):
        prepare(tmp_path)
    with pytest.raises(UsageError, match="a set by another rule needs a name of its own, --as NAME"):
        prepare(tmp_path, min_images=69)
    with pytest.raises(UsageError, match="only facescrub itself may be called FaceScrub"):
        prepare(tmp_path, min_images=69, save_as="faces-69", title="Our FaceScrub")
    lay(tmp_path, MANY.pictures)
    manifest = prepare(tmp_path, min_images=69, save_as="faces-69")
    assert (manifest.name, manifest.title, manifest.classes) == ("faces-69", "faces-69", 3)
    assert not prepared_folder(tmp_path, "facescrub").exists()


def folder_of(each: FakePicture) -> str:
    return each.name.replace(" ", "_")


def ids_of(each: FakePicture) -> str:
    return f"{folder_of(each)}_{each.image_id}_{each.face_id}.jpeg"


def test_a_downloaded_tree_of_whole_pictures_gives_the_arrays_of_those_that_were_fetched(prepared, tmp_path):
    for each in MANY.pictures:
        put(tmp_path / "tree" / folder_of(each) / f"{each.image_id}.jpg", each.content)
    source, lists = tmp_path / "tree", MANY.lay_lists(tmp_path / "lists", BASE)
    manifest, other = (
        prepare(tmp_path / "data", source=source, lists=lists),
        verify_prepared(prepared, "facescrub"),
    )
    assert manifest.fingerprint() == other.fingerprint()
    assert (manifest.train, manifest.test) == (other.train, other.test)
    found = "221 faces found in a downloaded tree, 221 in whole pictures and 0 cut out"
    assert manifest.notes[1].startswith(found)


@pytest.fixture
def face_lists(tmp_path: Path) -> FaceLists:
    return read_face_lists(FEW.lay_lists(tmp_path / "lists", BASE))


def match(root: Path, lists: FaceLists) -> tuple[Found, int]:
    return match_tree(root, tree_files(root)[0], lists)


@pytest.mark.parametrize(
    "name",
    [
        "faces/{folder}/{folder}_{image}_{face}.jpeg",
        "{folder}/face/{image}_{face}.jpg",
        "{folder}/face/{sha1}.jpg",
    ],
)
def test_faces_cut_out_are_known_by_name_and_ids_or_by_the_address(face_lists, tmp_path, name):
    for each in FEW.pictures:
        sha1 = hashlib.sha1((BASE + each.path).encode()).hexdigest()
        path = name.format(folder=folder_of(each), image=each.image_id, face=each.face_id, sha1=sha1)
        put(tmp_path / "tree" / path, each.cut_out())
    found, others = match(tmp_path / "tree", face_lists)
    assert (list(found), others) == (list(face_lists.faces), 0)
    assert all(request.box is None for request in found.values())
    assert found[face_lists.faces[0]].sha256 == hashlib.sha256(FEW.pictures[0].cut_out()).hexdigest()


def test_a_whole_picture_counts_before_the_face_cut_out_of_it_and_what_is_no_face_is_counted(
    face_lists, tmp_path
):
    each, tree = FEW.pictures[0], tmp_path / "tree"
    put(tree / "images" / "a.jpg", each.content)
    put(tree / "faces" / folder_of(each) / ids_of(each), each.cut_out())
    put(tree / ids_of(FEW.pictures[1]), FEW.pictures[1].cut_out())  # in no folder of faces
    put(tree / "faces" / "Somebody_Else" / "Somebody_Else_1_1001.jpeg", each.cut_out())
    put(tree / "faces" / folder_of(each) / "notes.txt", b"hello")
    put(tree / ".DS_Store", b"")
    put(tree / "b\x1b.jpg", FEW.pictures[1].content)
    (tree / "again").symlink_to(tree)
    os.mkfifo(tree / "pipe.jpg")
    found, others = match(tree, face_lists)
    first, second = found.values()
    assert (first.file.name, first.box, others) == ("images/a.jpg", each.box, 4)
    assert second.file.name == "b\x1b.jpg"


def test_a_tree_of_something_else_says_what_was_expected(face_lists, tmp_path):
    with pytest.raises(
        DataMissingError, match="is not a folder: expected the top of an unpacked or downloaded tree"
    ):
        match(tmp_path / "tree", face_lists)
    put(tmp_path / "tree" / "cat.jpg", b"meow")
    with pytest.raises(DataMissingError, match=r"none of the 1 files below .*tree is a face of the lists"):
        match(tmp_path / "tree", face_lists)


def test_the_command_goes_from_lists_to_verified_arrays(tmp_path, site):
    def repro(*words: object) -> Result:
        return CliRunner().invoke(main, ["data", *map(str, words), "--data-dir", str(tmp_path / "data")])

    for command in ("fetch", "prepare"):
        done = repro(command, "facescrub")
        assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
        assert "http://vintage.winklerbros.net/facescrub.html" in done.stderr
    fake = FakeFaceScrub({"Ada Lovelace": 5, "Kurt Gödel": 5})
    for each in fake.pictures:
        site.add(each.path, each.content)
    lists = fake.lay_lists(tmp_path / "lists", site.base)
    site.answers |= {"/1.jpg": [status(404)], "/2.jpg": [page]}
    done = repro("fetch", "facescrub", "--lists", lists, "--allow-private-addresses")
    assert done.exit_code == 0, done.stderr
    assert "8 faces found, 2 missing (by address: gone 1, page 1)" in done.stderr
    assert site.most_at_once <= 2
    assert repro("fetch", "facescrub").exit_code == 0
    assert len(site.requests) == 10
    done = repro("prepare", "facescrub", "--as", "faces", "--min-images", 2)
    assert done.exit_code == 0, done.stderr
    assert "faces: 6 training and 2 test images of 2 classes, 64 × 64" in done.stderr
    assert "faces: 8 faces found, 2 missing (by address: gone 1, page 1)" in done.stderr
    assert repro("verify", "faces").exit_code == 0
    listed = json.loads(repro("list", "--json").stdout)
    assert [each["state"] for each in listed if each["name"] == "faces"] == ["prepared"]
