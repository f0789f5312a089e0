"""repro.data.identities: who counts and which images are held out, and sets of your own made by that rule."""

import os
import random

import numpy as np
import pytest
from pictures import encoded, jpeg, lay, picture

from repro import data
from repro.data.decode import DecodeRules, decode
from repro.data.identities import SplitRule, split_identities
from repro.data.prepared import open_prepared, verify_prepared
from repro.errors import DataMissingError, SetupError, UsageError
from repro.manifest import prepared_folder


def people(**counts: int) -> list[tuple[str, str]]:
    return [(name, f"{name}/{number:03}.jpg") for name, count in counts.items() for number in range(count)]


def names(images, members) -> list[str]:
    return [images[position][1] for position, _ in members]


def test_a_tenth_of_each_is_held_out_and_those_with_too_few_are_left_out():
    images = people(anna=70, ben=99, cora=69, dora=100)
    split = split_identities([None, *images[1:], ("anna", "anna/070.jpg")], SplitRule())
    assert (split.class_names, split.too_few) == (["anna", "ben", "dora"], {"cora": 69})
    assert np.bincount([label for _, label in split.test]).tolist() == [7, 9, 10]
    assert np.bincount([label for _, label in split.train]).tolist() == [63, 90, 90]
    positions = {position for position, _ in split.train + split.test}
    assert (len(positions), 0 in positions) == (269, False)
    assert [label for _, label in split_identities(people(anna=3, ben=2), SplitRule(2)).test] == [0, 1]


def test_the_order_in_which_images_are_found_and_other_people_change_nothing():
    images = people(anna=75, ben=80)
    shuffled = random.Random(1).sample([*images, *people(zoe=90)], 245)
    first, second = split_identities(images, SplitRule()), split_identities(shuffled, SplitRule())
    assert names(images, first.test) == [name for name in names(shuffled, second.test) if "zoe" not in name]
    assert names(images, first.train) == [name for name in names(shuffled, second.train) if "zoe" not in name]


def test_the_draw_is_this_one_in_every_version():
    # A change here changes FaceScrub's and every folder set's split: raise PREPARATION_VERSION with it.
    split = split_identities(people(anna=70), SplitRule())
    assert [position for position, _ in split.test] == [9, 12, 18, 21, 42, 53, 64]


def test_every_image_is_as_likely_as_another_to_be_held_out():
    counts = [0] * 100
    for person in range(1000):
        for position, _ in split_identities(people(**{f"person{person}": 100}), SplitRule()).test:
            counts[position] += 1
    # Binomial(1000, 0.1): five standard deviations are 47.
    assert all(53 <= count <= 147 for count in counts)


def faces(**counts: int) -> dict[str, bytes]:
    return {
        f"{name}/{name}_{number:04}.jpg": jpeg(100 * index + number, size=80)
        for index, (name, count) in enumerate(counts.items())
        for number in range(count)
    }


def prepare(data_dir, folder, called="friends", **options):
    return data.prepare(
        called, data_dir, **{"source": folder, "min_images": 5, "title": "Friends", **options}
    )


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_a_folder_per_class_becomes_a_set_under_its_own_name(tmp_path, crop):
    contents = faces(ben=12, anna=5, cora=4)
    manifest = prepare(tmp_path, lay(tmp_path / "source", contents), crop=crop)
    assert (manifest.name, manifest.title, manifest.partial) == ("friends", "Friends", None)
    assert manifest.class_names == ("anna", "ben")
    assert (manifest.train.count, manifest.test.count, manifest.image_size) == (15, 2, 64)
    assert manifest.notes == ("1 classes with fewer than 5 images are left out, 4 images in all",)
    assert manifest.settings == {
        "crop": f"central square, {crop:g} of the shorter side",
        "min_images": "5",
        "test_percent": "10",
        "split_seed": "0",
    }
    opened = open_prepared(tmp_path, "friends")
    rules = DecodeRules(64, crop=crop)
    expected = [decode(contents[name], rules).tobytes() for name in sorted(contents) if "cora" not in name]
    places = [expected.index(image.tobytes()) for image in opened.train.images]
    assert places == sorted(places)
    held_out = [expected.index(image.tobytes()) for image in opened.test.images]
    assert sorted(places + held_out) == list(range(17))
    assert opened.train.labels.tolist() == [0] * 4 + [1] * 11


def test_what_cannot_be_used_is_left_out_counted_and_named(tmp_path):
    bad = {
        "anna/page.jpg": b"<html>404</html>",
        "anna/torn.jpg": jpeg(size=200)[:3000],
        "anna/moving.jpg": encoded(picture(), "GIF"),
        "cora/cora_0000.jpg": b"",
    }
    droppings = {"anna/.DS_Store": b"x", "anna/Thumbs.db": b"x", ".git/config": b"x", "README": b"x"}
    folder = lay(tmp_path / "source", {**faces(anna=6, ben=6, cora=5), **bad, **droppings})
    (folder / "anna" / os.fsdecode(b"\xff.jpg")).write_bytes(jpeg())
    os.mkfifo(folder / "anna" / "pipe.jpg")
    (folder / "dora").mkdir()
    manifest = prepare(tmp_path, folder)
    assert (manifest.train.count + manifest.test.count, manifest.class_names) == (12, ("anna", "ben"))
    assert "truncated" in manifest.left_out["anna/torn.jpg"]
    assert {name: why for name, why in manifest.left_out.items() if "torn" not in name} == {
        ".git": "hidden",
        "README": "in no class's folder",
        "anna/.DS_Store": "left behind by a file manager",
        "anna/Thumbs.db": "left behind by a file manager",
        "dora/": "a folder without images",
        "anna/\\udcff.jpg": "its name has a control character or is not UTF-8",
        "anna/moving.jpg": "not an image of the kind JPEG or PNG",
        "anna/page.jpg": "not an image of the kind JPEG or PNG",
        "anna/pipe.jpg": "not a plain file",
        "cora/cora_0000.jpg": "empty",
    }
    assert manifest.notes[-1].startswith("11 files passed over: left behind by a file manager 2 (anna/.DS_S")
    assert "; not an image of the kind JPEG or PNG 2 (anna/moving.jpg, anna/page.jpg); " in manifest.notes[-1]
    assert verify_prepared(tmp_path, "friends") == manifest


def test_images_count_at_any_depth_in_their_classs_folder_and_links_to_such_folders_are_followed(tmp_path):
    contents = faces(anna=6, ben=6)
    flat = prepare(tmp_path / "flat", lay(tmp_path / "one", contents))
    deep = {name.replace("ben/", "ben/2001/summer/"): content for name, content in contents.items()}
    folder = lay(tmp_path / "two", deep)
    (folder / "anna").rename(tmp_path / "elsewhere")
    (folder / "anna").symlink_to(tmp_path / "elsewhere")
    (folder / "ben" / "again").symlink_to(folder / "ben")
    manifest = prepare(tmp_path / "deep", folder)
    assert (manifest.class_names, manifest.train.count) == (flat.class_names, flat.train.count)
    assert manifest.left_out == {"ben/again": "a link to a folder"}
    with pytest.raises(DataMissingError, match=r"one folder, one/, .* name it with --from .*/source/one"):
        prepare(tmp_path / "wrapped", lay(tmp_path / "source" / "one", contents).parent)


@pytest.mark.parametrize("half", ["val", "test"])
def test_a_folder_that_is_split_already_keeps_its_split(tmp_path, half):
    contents = {f"train/{name}": content for name, content in faces(anna=6, ben=7, dora=6).items()}
    contents |= {f"{half}/{name}": content for name, content in faces(anna=2, ben=1, cora=6).items()}
    extra = {"extra/x.jpg": b"", "train/notes.txt": b"", "validation/anna/1.jpg": b""}
    manifest = prepare(tmp_path, lay(tmp_path / "source", {**contents, **extra}))
    opened = open_prepared(tmp_path, "friends")
    assert manifest.class_names == ("anna", "ben")
    assert np.bincount(opened.train.labels).tolist() == [6, 7]
    assert np.bincount(opened.test.labels).tolist() == [2, 1]
    assert manifest.settings["split"] == f"train/ and {half}/"
    assert manifest.left_out == {
        "extra/": f"beside train/ and {half}/",
        "validation/": f"beside train/ and {half}/",
        "train/notes.txt": "in no class's folder",
    }
    assert manifest.notes[0] == (
        f"2 classes with fewer than 5 images or none in train/ or {half}/ are left out, 12 images in all"
    )


@pytest.mark.parametrize("without_classes", ["test/0001.jpg", "test/images/0001.jpg"])
def test_of_two_folders_of_test_images_the_first_with_the_classes_is_used(tmp_path, without_classes):
    contents = {f"train/{name}": content for name, content in faces(anna=6, ben=6).items()}
    contents |= {f"val/{name}": content for name, content in faces(anna=2, ben=2).items()}
    folder = lay(tmp_path / "source", {**contents, without_classes: jpeg()})
    manifest = prepare(tmp_path, folder)
    assert (manifest.settings["split"], manifest.test.count) == ("train/ and val/", 4)
    assert manifest.left_out == {"test/": "beside train/ and val/"}
    lay(folder, {"test/anna/1.jpg": jpeg(), "test/ben/1.jpg": jpeg()})
    manifest = prepare(tmp_path, folder)
    assert (manifest.settings["split"], manifest.test.count) == ("train/ and test/", 2)
    assert any(note.endswith("beside train/ and test/ 1 (val/)") for note in manifest.notes)


def test_a_set_may_have_another_image_size_which_is_part_of_what_it_is(tmp_path):
    folder = lay(tmp_path / "source", faces(anna=6, ben=6))
    usual, small = prepare(tmp_path, folder), prepare(tmp_path, folder, image_size=32)
    assert (usual.image_size, small.image_size) == (64, 32)
    assert (usual.fingerprint() != small.fingerprint(), "image_size" in usual.settings) == (True, False)
    assert open_prepared(tmp_path, "friends").train.images.shape == (10, 3, 32, 32)


def test_the_same_options_keep_what_is_there_and_others_make_it_again(tmp_path):
    folder = lay(tmp_path / "source", faces(anna=6, ben=6))
    first = prepare(tmp_path, folder)
    made = prepared_folder(tmp_path, "friends").stat().st_ino
    assert prepare(tmp_path, folder) == first
    assert prepared_folder(tmp_path, "friends").stat().st_ino == made
    assert prepare(tmp_path, folder, min_images=6).settings["min_images"] == "6"
    assert prepare(tmp_path, folder, title="Other").title == "Other"
    lay(folder, faces(anna=7))
    assert prepare(tmp_path, folder, title="Other").train.count == first.train.count + 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("friends", {"title": "My FaceScrub"}, "only facescrub itself may be called FaceScrub"),
        ("../friends", {}, "'../friends' cannot be a data set's name"),
        ("friends", {"save_as": "others"}, "--as means nothing for this set"),
        ("cifar100", {"title": None}, "--min-images means nothing for this set"),
    ],
)
def test_a_name_title_or_option_that_cannot_be_is_a_usage_error(tmp_path, name, options, message):
    with pytest.raises(UsageError, match=message):
        prepare(tmp_path, lay(tmp_path / "source", faces(anna=6, ben=6)), name, **options)


def test_a_folder_that_makes_no_set_says_what_was_found_and_leaves_nothing(tmp_path):
    def refused(folder, says: str, error: type[SetupError] = DataMissingError) -> None:
        with pytest.raises(error, match=says):
            prepare(tmp_path, folder)
        assert not prepared_folder(tmp_path, "friends").exists()

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "none", "none is not a folder")
    refused(tmp_path / "empty", "empty has no folders with images")
    split = lay(
        tmp_path / "split", {"train/anna/1.jpg": jpeg(), "val/1.jpg": jpeg(), "test/ben/1.jpg": jpeg()}
    )
    refused(
        split, r"no class has a folder in train/ and one in test/ and val/; expected .* train/cat/ and test/"
    )
    folder = lay(tmp_path / "source", {**faces(anna=6, ben=4), "ben/page.jpg": b"<html>"})
    refused(
        folder,
        r"1 of 2 classes have 5 usable images or more, at least two are needed; 1 file passed over: not an "
        r"image of the kind JPEG or PNG 1 \(ben/page.jpg\); --min-images asks for fewer",
    )
    (folder / "anna" / "broken.jpg").symlink_to(tmp_path / "gone")
    refused(folder, r"cannot read .*broken\.jpg: No such file", SetupError)


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_faces_are_prepared_under_their_own_name(real_lfw, tmp_path):
    options = {"source": real_lfw, "title": "LFW, deep-funneled", "min_images": 20, "crop": 0.6}
    manifest = data.prepare("lfw", tmp_path, **options)
    assert (manifest.title, manifest.classes) == ("LFW, deep-funneled", 62)
    assert (manifest.train.count, manifest.test.count) == (2164, 219)
    assert (manifest.left_out, manifest.notes) == ({}, ())
    assert np.bincount(open_prepared(tmp_path, "lfw").test.labels).min() >= 2
    assert manifest.test.membership == "55da878941c79fcfc64f8d7d6744a2e0fcda7aca1b4b49dea6540261cac1983d"
    assert verify_prepared(tmp_path, "lfw") == manifest
