"""repro.data.facescrub's preparation: the paper's rule on a small FaceScrub, from its own files or another's."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_facescrub import ACTORS, COLOURS, FakeFaceScrub, FakePicture
from local_server import status
from small_files_server import SmallFilesServer, page

from repro.data import PrepareOptions, decode, facescrub
from repro.data.arrays import open_prepared, verify_prepared
from repro.data.crawl import picture
from repro.errors import DataMissingError, UsageError
from repro.manifest import Manifest, prepared_folder

FAKE = FakeFaceScrub({"Ada Lovelace": 72, "Alan Turing": 69, "Kurt Gödel": 80})
BASE = "http://pictures.example"


@pytest.fixture(scope="module", autouse=True)
def _decoded_here() -> Iterator[None]:
    """In this process: starting others takes longer than decoding so few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "BATCH", 1000)
        yield


def lay(data_dir: Path, pictures: list[FakePicture], more: str = "") -> Path:
    """The data folder as a fetch of `pictures` leaves it."""
    raw = data_dir / "facescrub" / "raw"
    FAKE.lay_lists(raw / "lists", BASE, more)
    for each in pictures:
        path = picture(raw, each.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each.content)
    return data_dir


def prepare(data_dir: Path, **options) -> Manifest:
    return facescrub.prepare(data_dir, PrepareOptions(**options))


def contents(data_dir: Path, name: str = "facescrub") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in prepared_folder(data_dir, name).iterdir()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    data_dir = lay(tmp_path_factory.mktemp("prepared"), FAKE.pictures)
    prepare(data_dir)
    return data_dir


def test_people_with_fewer_than_70_images_are_out_and_a_tenth_of_each_ones_is_for_testing(prepared):
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
    assert verify_prepared(prepared, "facescrub") == manifest


def test_the_listed_box_is_what_is_cut_out(prepared):
    """Every face is of one colour on gray, so a box that missed would show."""
    data = open_prepared(prepared, "facescrub")
    assert data.train.images.shape[1:] == (3, 64, 64)
    for part in (data.train, data.test):
        for image, label in zip(part.images, part.labels, strict=True):
            colour = np.array(COLOURS[data.manifest.class_names[label]])
            inner = image[:, 4:60, 4:60].reshape(3, -1).astype(int)
            assert np.abs(inner - colour[:, None]).max() < 30


def test_prepared_twice_the_bytes_are_equal(prepared, tmp_path):
    prepare(lay(tmp_path, FAKE.pictures))
    assert contents(tmp_path) == contents(prepared)


def test_the_split_of_a_person_does_not_depend_on_what_else_was_found(prepared, tmp_path):
    fewer = [each for each in FAKE.pictures if each.name != "Alan Turing"]
    prepare(lay(tmp_path, fewer))
    for each in ("train", "test"):
        assert contents(tmp_path)[f"{each}-images.npy"] == contents(prepared)[f"{each}-images.npy"]


def test_whole_arrays_of_the_same_pictures_stay_and_more_pictures_make_new_ones(tmp_path):
    most = [each for each in FAKE.pictures if each.image_id != 1]
    lay(tmp_path, most)
    assert prepare(tmp_path).train.count == 64 + 72
    made = prepared_folder(tmp_path, "facescrub").stat().st_ino
    prepare(tmp_path)
    assert prepared_folder(tmp_path, "facescrub").stat().st_ino == made
    lay(tmp_path, FAKE.pictures)
    assert prepare(tmp_path).train.count == 65 + 72


def test_a_damaged_picture_is_left_out_and_named(tmp_path):
    lay(tmp_path, FAKE.pictures)
    path = picture(tmp_path / "facescrub" / "raw", FAKE.pictures[0].sha256)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    manifest = prepare(tmp_path)
    assert manifest.train.count == 64 + 72
    assert manifest.left_out == {"Ada Lovelace/1/1001": "its bytes are not those that were published"}


def test_a_box_outside_of_its_picture_and_a_picture_that_is_none_are_left_out_and_named(tmp_path):
    lay(tmp_path, FAKE.pictures)
    lists = tmp_path / "facescrub" / "raw" / "lists"
    first, second = FAKE.pictures[:2]
    text = (lists / ACTORS).read_text()
    text = text.replace(
        first.row(BASE), first.row(BASE).replace(",".join(map(str, first.box)), "900,900,990,990")
    )
    novel = b"not an image at all"
    fake = FakePicture(second.name, second.image_id, second.face_id, second.box, novel)
    text = text.replace(second.row(BASE), fake.row(BASE))
    (lists / ACTORS).write_text(text)
    path = picture(tmp_path / "facescrub" / "raw", fake.sha256)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(novel)
    manifest = prepare(tmp_path)
    assert manifest.left_out["Ada Lovelace/1/1001"] == "its box 900,900,990,990 lies outside of 64 × 48"
    assert "not an image" in manifest.left_out["Ada Lovelace/2/1002"]
    assert manifest.train.count == 63 + 72
    assert "2 unusable images are left out" in manifest.notes[-1]


def test_what_is_missing_is_counted_in_the_manifest(tmp_path):
    lay(tmp_path, FAKE.pictures[2:], more="Ada Lovelace\t999\n")
    lines = [
        {"address": f"{BASE}{each.path}", "cause": cause, "detail": "", "sha256": "", "size": 0}
        for each, cause in zip(FAKE.pictures[:2], ("gone", "mismatch"), strict=True)
    ]
    journal = tmp_path / "facescrub" / "raw" / "fetched.jsonl"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert prepare(tmp_path).notes[:2] == (
        "the lists have 222 rows, 1 of them unusable (truncated 1): 221 faces",
        "219 faces found, 2 missing (by address: gone 1, mismatch 1)",
    )


def test_a_downloaded_tree_gives_the_same_arrays_as_the_pictures_that_were_fetched(prepared, tmp_path):
    lists = FAKE.lay_lists(tmp_path / "lists", BASE)
    for each in FAKE.pictures:
        path = tmp_path / "tree" / each.name.replace(" ", "_") / f"{each.image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each.content)
    manifest = prepare(tmp_path / "data", source=tmp_path / "tree", lists=lists)
    other = verify_prepared(prepared, "facescrub")
    assert manifest.fingerprint() == other.fingerprint()
    assert (manifest.train, manifest.test) == (other.train, other.test)
    assert manifest.notes[1].startswith(
        "221 faces found in a downloaded tree, 221 in whole pictures and 0 cut out"
    )


def test_a_tree_of_faces_cut_out_is_taken_whole(tmp_path):
    lists = FAKE.lay_lists(tmp_path / "lists", BASE)
    for each in FAKE.pictures:
        person = each.name.replace(" ", "_")
        path = tmp_path / "tree" / "faces" / person / f"{person}_{each.image_id}_{each.face_id}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each.cut_out())
    manifest = prepare(tmp_path / "data", source=tmp_path / "tree", lists=lists)
    assert (manifest.train.count, manifest.test.count) == (137, 15)
    assert "221 cut out by others, whose bytes cannot be checked" in manifest.notes[1]
    data = open_prepared(tmp_path / "data", "facescrub")
    colour = np.array(COLOURS["Ada Lovelace"])[:, None, None]
    assert np.abs(data.train.images[0].astype(int) - colour).mean() < 12


def test_another_rule_than_the_papers_needs_another_name(tmp_path):
    lay(tmp_path, FAKE.pictures)
    with pytest.raises(UsageError, match="a set by another rule needs a name of its own, --as NAME"):
        prepare(tmp_path, min_images=69)
    with pytest.raises(UsageError, match="only facescrub itself may be called FaceScrub"):
        prepare(tmp_path, min_images=69, name="faces-69", title="Our FaceScrub")
    manifest = prepare(tmp_path, min_images=69, name="faces-69")
    assert (manifest.name, manifest.title, manifest.classes) == ("faces-69", "faces-69", 3)
    assert not prepared_folder(tmp_path, "facescrub").exists()


def test_without_pictures_it_is_said_how_to_get_them(tmp_path):
    lay(tmp_path, [])
    with pytest.raises(DataMissingError, match=r"repro data fetch facescrub --lists DIR.* --from DIR"):
        prepare(tmp_path)


def test_too_few_pictures_are_no_data_set(tmp_path):
    lay(tmp_path, FAKE.pictures[:80])
    with pytest.raises(DataMissingError, match="1 of 2 classes have 70 usable images or more"):
        prepare(tmp_path)
    assert not prepared_folder(tmp_path, "facescrub").exists()


def test_the_command_goes_from_lists_to_verified_arrays(tmp_path):
    fake = FakeFaceScrub({"Ada Lovelace": 72, "Kurt Gödel": 72})
    hosts = [SmallFilesServer() for _ in range(16)]
    try:
        lists = fake.lay_lists(tmp_path / "lists", BASE)
        for file in lists.iterdir():
            for each in fake.pictures:  # a host for every sixteenth picture: none may be asked often
                host = hosts[each.image_id % len(hosts)]
                url = host.add(each.path, each.content)
                file.write_text(file.read_text().replace(f"{BASE}{each.path}\t", f"{url}\t"))
        for number, answer in ((1, status(404)), (2, page)):
            hosts[number].answers[fake.pictures[number - 1].path] = [answer]

        def repro(*words: object) -> subprocess.CompletedProcess:
            command = [
                sys.executable,
                "-m",
                "repro",
                "data",
                *map(str, words),
                "--data-dir",
                str(tmp_path / "data"),
            ]
            environment = {**os.environ, "NO_PROXY": "*"}
            return subprocess.run(command, capture_output=True, text=True, env=environment)

        done = repro("fetch", "facescrub", "--lists", lists, "--allow-private-addresses")
        assert done.returncode == 0, done.stderr
        assert "142 faces found, 2 missing (by address: gone 1, page 1)" in done.stderr
        assert all(host.most_at_once <= 2 for host in hosts)
        asked = sum(len(host.requests) for host in hosts)
        assert repro("fetch", "facescrub").returncode == 0
        assert sum(len(host.requests) for host in hosts) == asked == 144
    finally:
        for host in hosts:
            host.stop()
    done = repro("prepare", "facescrub")
    assert done.returncode == 0, done.stderr
    assert "facescrub: 128 training and 14 test images of 2 classes, 64 × 64" in done.stderr
    assert "facescrub: 142 faces found, 2 missing (by address: gone 1, page 1)" in done.stderr
    assert repro("verify", "facescrub").returncode == 0
    listed = json.loads(repro("list", "--json").stdout)
    assert [each["state"] for each in listed if each["name"] == "facescrub"] == ["prepared"]


def test_the_command_without_lists_is_exit_code_3_in_one_line(tmp_path):
    for command in ("fetch", "prepare"):
        done = subprocess.run(
            [sys.executable, "-m", "repro", "data", command, "facescrub", "--data-dir", str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)
        assert "http://vintage.winklerbros.net/facescrub.html" in done.stderr
