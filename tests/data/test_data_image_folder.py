"""repro.data.image_folder: sets of one's own, prepared by FaceScrub's rule and never called so."""

import json
import os

import numpy as np
import pytest
from pictures import encoded, jpeg, lay, picture, png_bomb

from repro import data
from repro.data import PrepareOptions
from repro.data.arrays import open_prepared, verify_prepared
from repro.data.decode import DecodeRules, decode
from repro.errors import DataMissingError, SetupError, UsageError
from repro.manifest import prepared_folder, read_manifest

RULES = DecodeRules(64)


def faces(**counts: int) -> dict[str, bytes]:
    return {
        f"{name}/{name}_{number:04}.jpg": jpeg(100 * index + number, size=80)
        for index, (name, count) in enumerate(counts.items())
        for number in range(count)
    }


def prepare(data_dir, folder, called="friends", **options):
    options = {"min_images": 5, "title": "Friends", **options}
    return data.prepare(called, data_dir, PrepareOptions(source=folder, **options))


def test_a_folder_a_class_becomes_a_set_under_its_own_name(tmp_path):
    contents = faces(ben=12, anna=5, cora=4)
    manifest = prepare(tmp_path, lay(tmp_path / "source", contents))
    assert (manifest.name, manifest.title, manifest.partial) == ("friends", "Friends", None)
    assert manifest.class_names == ("anna", "ben")
    assert (manifest.train.count, manifest.test.count, manifest.image_size) == (15, 2, 64)
    assert manifest.notes == ("1 classes with fewer than 5 images are left out, 4 images in all",)
    assert manifest.settings == {
        "crop": "central square, 1 of the shorter side",
        "min_images": "5",
        "test_percent": "10",
        "split_seed": "0",
    }
    opened = open_prepared(tmp_path, "friends")
    of_train = {image.tobytes() for image in opened.train.images}
    of_test = {image.tobytes() for image in opened.test.images}
    assert of_train | of_test == {
        decode(content, RULES).tobytes() for name, content in contents.items() if "cora" not in name
    }
    assert not of_train & of_test
    assert opened.train.labels.tolist() == [0] * 4 + [1] * 11


def test_the_images_stand_in_the_order_of_their_names(tmp_path):
    contents = faces(anna=6, ben=6)
    prepare(tmp_path, lay(tmp_path / "source", contents))
    expected = [decode(contents[name], RULES).tobytes() for name in sorted(contents)]
    places = [expected.index(image.tobytes()) for image in open_prepared(tmp_path, "friends").train.images]
    assert places == sorted(places)


def test_what_cannot_be_used_is_left_out_counted_and_named(tmp_path):
    bad = {
        "anna/bomb.png": png_bomb(),
        "anna/page.jpg": b"<html>404</html>",
        "anna/empty.jpg": b"",
        "anna/torn.jpg": jpeg(size=200)[:3000],
        "anna/moving.jpg": encoded(picture(), "GIF"),
        "anna/notes.txt": b"hello",
    }
    droppings = {"anna/.DS_Store": b"x", "anna/Thumbs.db": b"x", ".git/config": b"x", "README": b"x"}
    folder = lay(tmp_path / "source", {**faces(anna=6, ben=6), **bad, **droppings})
    (folder / "anna" / os.fsdecode(b"\xff.jpg")).write_bytes(jpeg())
    (folder / "anna" / "a\nb.jpg").write_bytes(jpeg())
    os.mkfifo(folder / "anna" / "pipe.jpg")
    manifest = prepare(tmp_path, folder)
    assert manifest.train.count + manifest.test.count == 12
    assert manifest.left_out["anna/page.jpg"] == "a web page, expected JPEG or PNG"
    assert manifest.left_out["anna/empty.jpg"] == "empty"
    assert manifest.left_out["anna/moving.jpg"] == "a GIF, expected JPEG or PNG"
    assert manifest.left_out["anna/pipe.jpg"] == "not a plain file"
    assert "pixels" in manifest.left_out["anna/bomb.png"]
    assert "truncated" in manifest.left_out["anna/torn.jpg"]
    assert manifest.left_out["'anna/\\udcff.jpg'"] == "its name has a control character or is not UTF-8"
    assert len(manifest.left_out) == 9
    assert manifest.notes[-1].startswith("9 unusable images are left out ('anna/\\udcff.jpg': its name has a")
    assert manifest.notes[-1].endswith("and 4 more)")
    assert verify_prepared(tmp_path, "friends") == manifest


def test_an_identity_that_its_bad_images_bring_below_the_minimum_is_left_out(tmp_path):
    contents = {**faces(anna=6, ben=6, cora=5), "cora/cora_0000.jpg": b"torn"}
    assert prepare(tmp_path, lay(tmp_path / "source", contents)).class_names == ("anna", "ben")


def test_the_central_square_is_taken_and_recorded(tmp_path):
    contents = faces(anna=6, ben=6)
    folder = lay(tmp_path / "source", contents)
    manifest = prepare(tmp_path, folder, crop=0.5)
    assert manifest.settings["crop"] == "central square, 0.5 of the shorter side"
    expected = {decode(content, DecodeRules(64, crop=0.5)).tobytes() for content in contents.values()}
    assert {image.tobytes() for image in open_prepared(tmp_path, "friends").train.images} <= expected
    assert manifest.fingerprint() != prepare(tmp_path / "other", folder).fingerprint()


def test_the_same_options_keep_what_is_there_and_others_make_it_anew(tmp_path):
    folder = lay(tmp_path / "source", faces(anna=6, ben=6))
    first = prepare(tmp_path, folder)
    made = prepared_folder(tmp_path, "friends").stat().st_ino
    assert prepare(tmp_path, folder) == first
    assert prepared_folder(tmp_path, "friends").stat().st_ino == made
    assert prepare(tmp_path, folder, min_images=6).settings["min_images"] == "6"
    assert prepare(tmp_path, folder, title="Other").title == "Other"
    lay(folder, faces(anna=7))
    assert prepare(tmp_path, folder, title="Other").train.count == first.train.count + 1


def test_preparing_twice_gives_the_same_bytes_wherever_the_folder_lies(tmp_path):
    contents = faces(anna=6, ben=6)
    kept = []
    for place in ("one", "two"):
        prepare(tmp_path / place, lay(tmp_path / place / "source", contents))
        folder = prepared_folder(tmp_path / place, "friends")
        kept.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("friends", {"title": "My FaceScrub"}, "only facescrub itself may be called FaceScrub"),
        ("friends", {"title": "facescrub, cropped"}, "only facescrub itself may be called FaceScrub"),
        ("friends", {"title": "CIFAR-100"}, "only cifar100 itself may be called CIFAR-100"),
        ("../friends", {}, "'../friends' cannot be a data set's name"),
        ("Friends", {}, "'Friends' cannot be a data set's name"),
        ("friends", {"name": "others"}, "--as means nothing for this set"),
        ("friends", {"allow_partial": True}, "--allow-partial means nothing for this set"),
        ("cifar100", {"title": None}, "--min-images means nothing for this set"),
    ],
)
def test_a_name_title_or_option_that_cannot_be_is_a_usage_error(tmp_path, name, options, message):
    with pytest.raises(UsageError, match=message):
        prepare(tmp_path, lay(tmp_path / "source", faces(anna=6, ben=6)), name, **options)


def test_a_folder_without_enough_people_says_what_was_found(tmp_path):
    folder = lay(tmp_path / "source", {**faces(anna=6, ben=4), "ben/page.jpg": b"<html>"})
    with pytest.raises(
        DataMissingError,
        match=r"1 of 2 classes have 5 usable images or more, at least two are needed; 1 unusable images are left "
        r"out \(ben/page.jpg: a web page, .*\); --min-images asks for fewer",
    ):
        prepare(tmp_path, folder)
    assert not prepared_folder(tmp_path, "friends").exists()


def test_a_place_without_images_is_named(tmp_path):
    for place, message in (("none", "is not a folder"), ("source", "has no folders with images")):
        (tmp_path / "source").mkdir(exist_ok=True)
        with pytest.raises(DataMissingError, match=f"{place} {message}"):
            prepare(tmp_path, tmp_path / place)


def test_a_file_that_goes_away_meanwhile_is_named_and_nothing_is_kept(tmp_path):
    folder = lay(tmp_path / "source", faces(anna=6, ben=6))
    (folder / "anna" / "broken.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(SetupError, match=r"cannot read .*broken\.jpg: No such file"):
        prepare(tmp_path, folder)
    assert not prepared_folder(tmp_path, "friends").exists()


def test_the_listing_and_verify_know_a_set_of_ones_own(tmp_path):
    folder = lay(tmp_path / "source", faces(anna=6, ben=6))
    with pytest.raises(UsageError, match="unknown data set 'friends'; known: cifar100, tiny-imagenet"):
        data.verify("friends", tmp_path)
    manifest = prepare(tmp_path, folder)
    assert data.verify("friends", tmp_path) == manifest == read_manifest(tmp_path, "friends")
    state = data.listing(tmp_path)[-1]
    assert (state.name, state.title, state.state, state.images, state.classes) == (
        "friends",
        "Friends",
        "prepared",
        12,
        2,
    )
    with pytest.raises(UsageError, match="known: cifar100, tiny-imagenet, facescrub, friends"):
        data.verify("others", tmp_path)
    (prepared_folder(tmp_path, "friends") / "manifest.json").write_text(json.dumps({}))
    assert data.listing(tmp_path)[-1].state == "corrupt"


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_faces_are_prepared_under_their_own_name(real_lfw, tmp_path):
    options = PrepareOptions(source=real_lfw, title="LFW, deep-funneled", min_images=20, crop=0.6)
    manifest = data.prepare("lfw", tmp_path, options)
    assert (manifest.title, manifest.classes) == ("LFW, deep-funneled", 62)
    assert (manifest.train.count, manifest.test.count) == (2164, 219)
    assert (manifest.left_out, manifest.notes) == ({}, ())
    opened = open_prepared(tmp_path, "lfw")
    assert np.bincount(opened.test.labels).min() >= 2
    assert verify_prepared(tmp_path, "lfw") == manifest
