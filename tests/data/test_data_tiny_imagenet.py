"""repro.data.tiny_imagenet on a tiny set in the published layout, and on the real subset where it is."""

import dataclasses
import io
import os
import re
import shutil
import zipfile
from pathlib import Path

import fake_tiny_imagenet as fake
import numpy as np
import pytest
from fake_cifar100 import md5
from pictures import encoded, jpeg, lay, picture

from repro.data import tiny_imagenet
from repro.data.decode import DecodeRules, decode
from repro.data.prepared import open_prepared, verify_prepared
from repro.errors import DataCorruptError, DataMissingError, FetchError
from repro.manifest import prepared_folder

FILES = fake.files()
PACKED = fake.zipped(FILES)
PUBLISHED = fake.published(PACKED)
GOOD = [f"val_{number}.JPEG\t{fake.CLASSES[number % 3]}\t0" for number in range(6)]


def changed(**files: bytes | None) -> dict[str, bytes]:
    """The set's files with some replaced, or left out where None stands for their content."""
    return {name: content for name, content in {**FILES, **files}.items() if content is not None}


def rows(*lines: str) -> dict[str, bytes]:
    return changed(**{"val/val_annotations.txt": "".join(f"{line}\n" for line in lines).encode()})


def prepare(data_dir: Path, contents: dict[str, bytes] | None = FILES, **options):
    """From a folder with these `contents`; from what is there where they are None."""
    if contents is not None:
        lay(data_dir / "tiny-imagenet-200", contents)
    return tiny_imagenet.prepare(data_dir, **{"published": PUBLISHED, **options})


def test_prepared_arrays_hold_the_pixels_labels_and_names_in_the_order_of_the_lists(tmp_path):
    manifest = prepare(tmp_path)
    data = open_prepared(tmp_path, "tiny-imagenet")
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for index, (wnid, number) in enumerate((wnid, number) for wnid in fake.CLASSES for number in range(4)):
        expected = decode(FILES[fake.train_name(wnid, number)], DecodeRules(64))
        assert np.array_equal(data.train.images[index], expected)
    assert np.array_equal(data.test.images[5], decode(FILES["val/images/val_5.JPEG"], DecodeRules(64)))
    assert manifest.class_names == tuple(fake.WORDS[wnid] for wnid in fake.CLASSES)
    assert (manifest.title, manifest.partial, manifest.notes) == ("TinyImageNet", None, ())
    assert set(manifest.sources) == {"wnids.txt", "val_annotations.txt", "train images", "test images"}
    assert "pillow" in manifest.tools


def test_the_zip_the_folder_and_lists_with_carriage_returns_give_the_same_set(tmp_path):
    folder = prepare(tmp_path / "folder")
    archive = lay(tmp_path / "zip", {"tiny-imagenet-200.zip": PACKED})
    assert prepare(archive, None) == folder
    names = ("wnids.txt", "words.txt", "val/val_annotations.txt")
    other = prepare(
        tmp_path / "other", changed(**{name: FILES[name].replace(b"\n", b"\r\n") for name in names})
    )
    assert (other.class_names, other.train, other.test) == (folder.class_names, folder.train, folder.test)


@pytest.mark.parametrize("images", ["images/", ""])
@pytest.mark.parametrize("listed", [True, False])
def test_test_images_in_folders_by_class_are_the_same_set(tmp_path, images, listed):
    contents = {name: content for name, content in FILES.items() if listed or "annotations" not in name}
    contents = {
        re.sub("(train/n[0-9]+/)images/", rf"\1{images}", name): each for name, each in contents.items()
    }
    for number in range(6):
        wnid = fake.CLASSES[number % 3]
        contents[f"val/{wnid}/{images}val_{number}.JPEG"] = contents.pop(f"val/images/val_{number}.JPEG")
    manifest, published = prepare(tmp_path / "other", contents), prepare(tmp_path / "published")
    assert (manifest.train, manifest.test, manifest.notes) == (published.train, published.test, ())
    assert (manifest.fingerprint() == published.fingerprint()) is listed
    if listed:
        contents[f"val/{wnid}/{images}val_0.JPEG"] = contents.pop(f"val/{fake.CLASSES[0]}/{images}val_0.JPEG")
        shutil.rmtree(tmp_path / "other")
        with pytest.raises(
            DataCorruptError, match=r"val_annotations.txt puts val/n00000005/.*in another folder"
        ):
            prepare(tmp_path / "other", contents)


def test_whole_arrays_stay_where_the_source_is_gone_and_are_made_again_where_it_changed(tmp_path, said):
    first, folder = prepare(tmp_path), prepared_folder(tmp_path, "tiny-imagenet")
    made = folder.stat().st_ino
    shutil.move(tmp_path / "tiny-imagenet-200", tmp_path / "elsewhere")
    assert prepare(tmp_path, None) == first
    assert folder.stat().st_ino == made
    assert not said
    again = prepare(tmp_path, changed(**{"val/images/val_3.JPEG": jpeg(7, mode="L")}))
    assert again.sources["test images"] != first.sources["test images"]
    assert "made of another source" in said[0]
    assert prepare(tmp_path) == first


@pytest.mark.parametrize("where", ["", "tiny-imagenet-200", "tiny-imagenet-200.zip"])
def test_a_place_elsewhere_can_be_named_by_the_folder_above_it_or_itself(tmp_path, where):
    lay(tmp_path / "else" / "tiny-imagenet-200", FILES)
    (tmp_path / "else" / "tiny-imagenet-200.zip").write_bytes(PACKED)
    manifest = prepare(
        tmp_path / "data", None, source=tmp_path / "else" / where, save_as="mine", title="Mine"
    )
    assert (manifest.name, manifest.title, manifest.partial) == ("mine", "Mine", None)
    assert verify_prepared(tmp_path / "data", "mine") == manifest


def test_another_archive_than_the_published_one_is_taken_only_when_named(tmp_path):
    archive = tmp_path / "tiny-imagenet-200.zip"
    archive.write_bytes(fake.zipped(dict(reversed(FILES.items()))))
    with pytest.raises(DataCorruptError, match=r"200\.zip has MD5 .* expected .*: delete it and run"):
        prepare(tmp_path, None)
    manifest = prepare(tmp_path, None, source=archive)
    assert "not the published one" in manifest.notes[0]
    assert manifest.fingerprint() == prepare(tmp_path / "folder").fingerprint()


def with_member(name: str, content: bytes) -> bytes:
    """The archive with one member more or another one."""
    buffer = io.BytesIO(fake.zipped({path: each for path, each in FILES.items() if not name.endswith(path)}))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (PACKED[:-100], "not a whole zip archive"),
        (b"<html>" * 100, "not a whole zip archive"),
        (fake.zipped(FILES | {f"{number}": b"" for number in range(90)}), "more than the 100 files or 1,100,000"),
        (with_member("bomb", bytes(2_000_000)), "more than the 100 files or 1,100,000 bytes"),
        (with_member(f"tiny-imagenet-200/{fake.train_name(fake.CLASSES[0], 1)}", b"/etc/passwd"), "not an image"),
    ],
    ids=["torn", "page", "many", "bomb", "no-image"],
)  # fmt: skip
def test_a_zip_that_is_damaged_or_made_to_do_harm_is_refused(tmp_path, packed, message):
    archive = tmp_path / "other.zip"
    archive.write_bytes(packed)
    with pytest.raises(DataCorruptError, match=message):
        prepare(tmp_path / "data", None, source=archive)
    assert not prepared_folder(tmp_path / "data", "tiny-imagenet").exists()


PARTIAL = {
    name: content for name, content in FILES.items() if not name.endswith(("_2.JPEG", "_3.JPEG", "l_4.JPEG"))
}
PARTIAL["val/val_annotations.txt"] = "\n".join(GOOD[number] for number in (0, 1, 5)).encode()


@pytest.mark.parametrize(
    ("contents", "missing"),
    [
        (PARTIAL, "6 of 12 training and 3 of 6 test images"),
        (changed(**{fake.train_name("n00000003", 1): None}), "11 of 12 training and 6 of 6 test images"),
        (changed(**{"val/images/val_5.JPEG": None}), "12 of 12 training and 5 of 6 test images"),
    ],
)
def test_a_partial_set_is_refused_unless_allowed_and_then_says_what_is_missing(tmp_path, contents, missing):
    with pytest.raises(
        DataMissingError, match=f"has {missing}: that is not all of TinyImageNet.*--allow-partial"
    ):
        prepare(tmp_path, contents)
    manifest = prepare(tmp_path, contents, allow_partial=True)
    assert manifest.partial == missing
    assert verify_prepared(tmp_path, "tiny-imagenet") == manifest
    with pytest.raises(DataMissingError, match="not all of TinyImageNet"):
        prepare(tmp_path, contents)


def test_images_that_are_not_of_the_set_are_passed_over_and_named(tmp_path):
    odd = {
        "train/n00000003/images/n00000003_4.JPEG": b"",
        "train/n00000003/images/\u202e.JPEG": b"",
        "val/images/val_6.JPEG": b"",
        "val/n00000007/val_0.JPEG": b"",
        "train/n99999999/images/n99999999_0.JPEG": b"",
        f"val/images/{os.fsdecode(b'val_')}\udcff.JPEG": b"",
    }
    droppings = {"val/images/Thumbs.db": b"", "train/n00000003/images/.DS_Store": b"", "._wnids.txt": b""}
    manifest = prepare(tmp_path, {**FILES, **odd, **droppings})
    assert manifest.notes[0].startswith(
        "6 files passed over: not of the set 5 (train/n00000003/images/\\u202e"
    )
    assert "; there twice 1 (val/n00000007/val_0.JPEG)" in manifest.notes[0]
    assert "\\udcff" in manifest.notes[0]
    assert manifest.train == prepare(tmp_path / "clean").train


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (changed(**{"wnids.txt": None}), "has no wnids.txt: expected .* as it is published.*; found test/, train/, val/, words.txt"),
        (changed(**{"val/val_annotations.txt": None}), "has no val/val_annotations.txt"),
        (changed(**{"wnids.txt": b"n00000003\nn00000005\nn00000003\n"}), "wnids.txt: expected 3 different classes"),
        (changed(**{"wnids.txt": b"n00000003\n../n0000005\nn00000007\n"}), "wnids.txt: expected 3 different classes"),
        (changed(**{"wnids.txt": b"\xff\xfe"}), "wnids.txt is not whole text"),
        (rows(*GOOD[:5], "val_5.JPEG\tn12345678"), "line 6: val_5.JPEG has no class of wnids.txt, but 'n12345678'"),
        (rows(*GOOD, GOOD[0]), "line 7: val_0.JPEG is listed twice"),
        (rows("../images/val_0.JPEG\tn00000003", *GOOD[1:]), "has no class for val/images/val_0.JPEG"),
        (rows(*GOOD[:5], "val_5.JPEG\tn00000007"), "gives the class n00000007 3 images, expected 2"),
        ({name: each for name, each in FILES.items() if "n00000005/" not in name}, "n00000005 has no training images"),
        ({name.replace("images/val_", "pics/"): each for name, each in FILES.items()}, "needs some; what is there is named val/pics/0.JPEG"),
        (changed(**{fake.train_name("n00000003", 2): jpeg(size=80)}), "not as published .*_2.JPEG: 80 × 80, expected 64"),
        (changed(**{fake.train_name("n00000003", 2): encoded(picture(), "PNG")}), "not an image of the kind JPEG"),
        (changed(**{fake.train_name("n00000003", 2): bytes(1_000_001)}), "longer than 1,000,000 bytes"),
    ],
)  # fmt: skip
def test_lists_and_images_that_are_wrong_are_refused_with_their_place(tmp_path, contents, message):
    with pytest.raises((DataCorruptError, DataMissingError), match=message) as caught:
        prepare(tmp_path, contents, allow_partial=True)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (3, False)
    assert not prepared_folder(tmp_path, "tiny-imagenet").exists()


def test_a_whole_unpacked_copy_needs_no_network_and_a_partial_one_fetches_the_archive_once(
    server, tmp_path, said
):
    server.content = PACKED
    folder = lay(tmp_path / "tiny-imagenet-200", FILES)
    assert tiny_imagenet.fetch(tmp_path, published=PUBLISHED) == folder
    (folder / "val" / "images" / "val_0.JPEG").unlink()
    with pytest.raises(FetchError, match="the connection is refused"):
        tiny_imagenet.fetch(tmp_path, published=PUBLISHED)
    for _ in range(2):
        place = tiny_imagenet.fetch(tmp_path, url=server.url, published=PUBLISHED)
    assert place == tmp_path / "tiny-imagenet" / "raw" / "tiny-imagenet-200.zip"
    assert len(server.ranges) == 1
    assert "5 of 6 test images" in said[0]
    assert prepare(tmp_path, None).test.count == 6


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_subset_goes_from_a_server_to_verified_arrays(real_tiny_imagenet, server, tmp_path):
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", strict_timestamps=False) as archive:
        for path in sorted(real_tiny_imagenet.rglob("*")):
            archive.write(path, f"tiny-imagenet-200/{path.relative_to(real_tiny_imagenet)}")
    server.content = packed.read_bytes()
    # The published archive is whole, and not at hand: the checksum is that of this part of it.
    published = dataclasses.replace(tiny_imagenet.PUBLISHED, archive_md5=md5(server.content))
    tiny_imagenet.fetch(tmp_path, url=server.url, published=published)
    manifest = tiny_imagenet.prepare(tmp_path, allow_partial=True, published=published)
    assert manifest.partial == "20,000 of 100,000 training and 4,000 of 10,000 test images"
    assert (manifest.train.count, manifest.test.count, manifest.notes) == (20_000, 4_000, ())
    assert manifest.class_names[0] == "Egyptian cat"
    assert manifest.mean == pytest.approx((0.480, 0.448, 0.398), abs=0.01)
    # The decoder of Pillow 12's wheels; another one may differ in a bit of a few pixels.
    if manifest.tools.get("libjpeg-turbo", "").startswith("3."):
        assert (
            manifest.train.images.sha256 == "d97d7fcc788794984af7dd3a79f29bcd7263ba312af72751bb9e5380c98061e6"
        )
    folder = tiny_imagenet.prepare(tmp_path / "folder", source=real_tiny_imagenet, allow_partial=True)
    assert (folder.train, folder.test) == (manifest.train, manifest.test)
    assert verify_prepared(tmp_path, "tiny-imagenet") == manifest
