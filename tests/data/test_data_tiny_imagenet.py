"""repro.data.tiny_imagenet on a tiny set in the published layout, and on the real subset where it is."""

import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import fake_tiny_imagenet as fake
import numpy as np
import pytest
from fake_cifar100 import md5
from pictures import encoded, jpeg, lay, picture, png_bomb

from repro.data import FetchOptions, PrepareOptions, tiny_imagenet
from repro.data.arrays import open_prepared, verify_prepared
from repro.data.decode import DecodeRules, decode
from repro.errors import DataCorruptError, DataMissingError, FetchError, SetupError
from repro.manifest import prepared_folder

FILES = fake.files()
PACKED = fake.zipped(FILES)
SOURCE = fake.source(PACKED)
PARTIAL = PrepareOptions(allow_partial=True)


def changed(**files: bytes | None) -> dict[str, bytes]:
    """The set's files with some replaced, or left out where None stands for their content."""
    contents = {**FILES, **files}
    return {name: content for name, content in contents.items() if content is not None}


def prepare(
    data_dir: Path, contents: dict[str, bytes] = FILES, options: PrepareOptions | None = None, **more
):
    lay(data_dir / "tiny-imagenet-200", contents)
    return tiny_imagenet.prepare(data_dir, options, source=SOURCE, **more)


def refused(
    data_dir: Path, contents: dict[str, bytes], message: str, options: PrepareOptions = PARTIAL
) -> None:
    with pytest.raises((DataCorruptError, DataMissingError), match=message) as caught:
        prepare(data_dir, contents, options)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert not prepared_folder(data_dir, "tiny-imagenet").exists()


def test_prepared_arrays_hold_the_pixels_labels_and_names_in_the_order_of_the_lists(tmp_path):
    manifest = prepare(tmp_path)
    data = open_prepared(tmp_path, "tiny-imagenet")
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    rules = DecodeRules(64)
    for index, (wnid, number) in enumerate((wnid, number) for wnid in fake.CLASSES for number in range(4)):
        assert np.array_equal(data.train.images[index], decode(FILES[fake.train_name(wnid, number)], rules))
    assert np.array_equal(data.test.images[5], decode(FILES["val/images/val_5.JPEG"], rules))
    assert manifest.class_names == tuple(fake.WORDS[wnid] for wnid in fake.CLASSES)
    assert (manifest.title, manifest.partial, manifest.notes) == ("TinyImageNet", None, ())
    assert set(manifest.sources) == {"wnids.txt", "val_annotations.txt", "train images", "test images"}
    assert "pillow" in manifest.tools


def test_a_grey_image_has_three_equal_channels(tmp_path):
    prepare(tmp_path)
    grey = open_prepared(tmp_path, "tiny-imagenet").train.images[0]
    assert np.array_equal(grey, np.stack([grey[0]] * 3))


def test_the_zip_and_the_unpacked_folder_give_the_same_set(tmp_path):
    folder = prepare(tmp_path / "folder")
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "tiny-imagenet-200.zip").write_bytes(PACKED)
    assert tiny_imagenet.prepare(tmp_path / "zip", source=SOURCE) == folder


def test_preparing_twice_gives_the_same_bytes_and_whole_arrays_stay(tmp_path):
    prepare(tmp_path)
    folder = prepared_folder(tmp_path, "tiny-imagenet")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    number = folder.stat().st_ino
    tiny_imagenet.prepare(tmp_path, source=SOURCE)
    assert folder.stat().st_ino == number
    shutil.rmtree(folder)
    tiny_imagenet.prepare(tmp_path, source=SOURCE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_whole_arrays_stay_where_the_source_is_gone_and_are_made_anew_where_it_changed(tmp_path, said):
    first = prepare(tmp_path)
    shutil.move(tmp_path / "tiny-imagenet-200", tmp_path / "elsewhere")
    assert tiny_imagenet.prepare(tmp_path, source=SOURCE) == first
    contents = changed(**{"val/images/val_3.JPEG": jpeg(7, mode="L")})
    again = prepare(tmp_path, contents)
    assert again.sources["test images"] != first.sources["test images"]
    assert "made of another source" in said[0]


@pytest.mark.parametrize("where", ["", "tiny-imagenet-200", "tiny-imagenet-200.zip"])
def test_a_place_elsewhere_can_be_named_by_the_folder_above_it_or_itself(tmp_path, where):
    lay(tmp_path / "else" / "tiny-imagenet-200", FILES)
    (tmp_path / "else" / "tiny-imagenet-200.zip").write_bytes(PACKED)
    options = PrepareOptions(source=tmp_path / "else" / where, name="mine", title="Mine")
    manifest = tiny_imagenet.prepare(tmp_path / "data", options, source=SOURCE)
    assert (manifest.name, manifest.title, manifest.partial) == ("mine", "Mine", None)
    assert verify_prepared(tmp_path / "data", "mine") == manifest


def test_another_archive_than_the_published_one_is_taken_only_when_named(tmp_path):
    other = fake.zipped(dict(reversed(FILES.items())))
    archive = tmp_path / "tiny-imagenet-200.zip"
    archive.write_bytes(other)
    with pytest.raises(
        DataCorruptError, match=r"tiny-imagenet-200\.zip has MD5 .* expected .*: delete it and run"
    ):
        tiny_imagenet.prepare(tmp_path, source=SOURCE)
    manifest = tiny_imagenet.prepare(tmp_path, PrepareOptions(source=archive), source=SOURCE)
    assert "not the published one" in manifest.notes[0]
    assert manifest.fingerprint() == prepare(tmp_path / "folder").fingerprint()


def with_member(name: str, content: bytes, **fields) -> bytes:
    """The archive with one member more, whose entry in the directory is changed where `fields` say so."""
    others = {path: each for path, each in FILES.items() if not name.endswith(path)}
    buffer = io.BytesIO(fake.zipped(others))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        for field, value in fields.items():
            setattr(archive.infolist()[-1], field, value)
    return buffer.getvalue()


IMAGE = f"tiny-imagenet-200/{fake.train_name(fake.CLASSES[0], 1)}"


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (PACKED[:-100], "not a whole zip archive"),
        (b"<html>" * 100, "not a whole zip archive"),
        (b"", "not a whole zip archive"),
        (
            fake.zipped(FILES | {f"{number}": b"" for number in range(90)}),
            "more than the 100 files or 1,100,000",
        ),
        (with_member("bomb", bytes(2_000_000)), "more than the 100 files or 1,100,000 bytes"),
        (with_member(IMAGE, bytes(1_050_000)), "longer than 1,000,000 bytes"),
        (with_member(IMAGE, jpeg(), CRC=1), "damaged in its archive"),
        (with_member(IMAGE, bytes(1_050_000), file_size=10), "damaged in its archive"),
        (with_member(IMAGE, jpeg(), flag_bits=1), "damaged in its archive"),
        (with_member(IMAGE, jpeg(), header_offset=3), "damaged in its archive"),
        (with_member(IMAGE, b"/etc/passwd", external_attr=0o120777 << 16), "not an image"),
    ],
    ids=[
        "torn",
        "page",
        "empty",
        "many",
        "bomb",
        "long",
        "crc",
        "lied-size",
        "encrypted",
        "misplaced",
        "link",
    ],
)
def test_a_zip_that_is_damaged_or_made_to_do_harm_is_refused(tmp_path, packed, message):
    archive = tmp_path / "other.zip"
    archive.write_bytes(packed)
    with pytest.raises(DataCorruptError, match=message):
        tiny_imagenet.prepare(tmp_path / "data", PrepareOptions(source=archive), source=SOURCE)
    assert not prepared_folder(tmp_path / "data", "tiny-imagenet").exists()


def test_a_path_that_leads_out_of_the_zip_is_never_written(tmp_path):
    archive = tmp_path / "other.zip"
    archive.write_bytes(with_member("tiny-imagenet-200/../../evil", b"x"))
    manifest = tiny_imagenet.prepare(tmp_path / "data", PrepareOptions(source=archive), source=SOURCE)
    assert manifest.train.count == 12
    assert not list(tmp_path.rglob("evil"))


def test_a_partial_set_is_refused_unless_allowed_and_then_says_what_is_missing(tmp_path):
    contents = {name: content for name, content in FILES.items() if not name.endswith(("_2.JPEG", "_3.JPEG"))}
    contents["val/val_annotations.txt"] = "\n".join(
        f"val_{number}.JPEG\t{fake.CLASSES[number % 3]}" for number in (0, 1, 5)
    ).encode()
    del contents["val/images/val_4.JPEG"]
    missing = "2 of 4 training and 1 of 2 test images a class"
    refused(
        tmp_path,
        contents,
        f"has {missing}: that is not all of TinyImageNet.*--allow-partial",
        PrepareOptions(),
    )
    manifest = prepare(tmp_path, contents, PARTIAL)
    assert manifest.partial == missing
    assert (manifest.train.count, manifest.test.count) == (6, 3)
    with pytest.raises(DataMissingError, match="not all of TinyImageNet"):
        prepare(tmp_path, contents)


def test_a_set_that_lacks_a_few_images_says_which_class_lacks_most(tmp_path):
    contents = changed(**{fake.train_name("n00000003", 1): None})
    manifest = prepare(tmp_path, contents, PARTIAL)
    assert manifest.partial == (
        "11 of 12 training and 6 of 6 test images; 1 of 3 classes lack some, n00000003 most with 3 training and 2 "
        "test images"
    )


def test_images_that_are_not_of_the_set_are_passed_over_and_named(tmp_path):
    odd = {
        "train/n00000003/images/n00000003_4.JPEG": b"",
        "train/n00000003/images/n00000003_01.JPEG": b"",
        "train/n00000003/images/notes.txt": b"",
        "train/n00000003/images/\u202e.JPEG": b"",
        "val/images/val_6.JPEG": b"",
        "train/n99999999/images/n99999999_0.JPEG": b"",
    }
    droppings = {"val/images/Thumbs.db": b"", "train/n00000003/images/.DS_Store": b"", "._wnids.txt": b""}
    manifest = prepare(tmp_path, {**FILES, **odd, **droppings})
    assert len(manifest.notes) == 1
    assert manifest.notes[0].startswith(
        "5 files that are not of the set are passed over: train/n00000003/images/n"
    )
    assert "\\u202e" in manifest.notes[0]
    assert manifest.train == prepare(tmp_path / "clean").train


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (jpeg()[:300], "damaged|a JPEG"),
        (encoded(picture(), "GIF"), "a GIF, expected JPEG"),
        (encoded(picture(), "PNG"), "a PNG, expected JPEG"),
        (b"<!DOCTYPE html><html><body>404", "a web page, expected JPEG"),
        (png_bomb(), "a PNG, expected JPEG"),
        (jpeg(size=80), "80 × 80, expected 64 × 64"),
        (bytes(1_000_001), "longer than 1,000,000 bytes"),
    ],
)
def test_an_image_that_is_not_as_published_is_named(tmp_path, content, problem):
    name = fake.train_name("n00000003", 2)
    refused(tmp_path, changed(**{name: content}), f"images that are not as published .{name}: ({problem})")


def test_a_file_name_that_is_not_text_is_passed_over(tmp_path):
    lay(tmp_path / "tiny-imagenet-200", FILES)
    (tmp_path / "tiny-imagenet-200" / "val" / "images" / os.fsdecode(b"val_\xff.JPEG")).touch()
    manifest = tiny_imagenet.prepare(tmp_path, source=SOURCE)
    assert "'val/images/val_\\udcff.JPEG'" in manifest.notes[0]
    assert verify_prepared(tmp_path, "tiny-imagenet") == manifest


def rows(*lines: str) -> dict[str, bytes]:
    return changed(**{"val/val_annotations.txt": "".join(f"{line}\n" for line in lines).encode()})


GOOD = [f"val_{number}.JPEG\t{fake.CLASSES[number % 3]}\t0" for number in range(6)]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (changed(**{"wnids.txt": None}), "has no wnids.txt: expected TinyImageNet as it is published"),
        (changed(**{"words.txt": None}), "has no words.txt"),
        (changed(**{"val/val_annotations.txt": None}), "has no val/val_annotations.txt"),
        (
            changed(**{"wnids.txt": b"n00000003\nn00000005\n"}),
            "wnids.txt has 2 different classes on 2 lines, expected 3",
        ),
        (changed(**{"wnids.txt": b"n00000003\nn00000005\nn00000003\n"}), "2 different classes on 3 lines"),
        (
            changed(**{"wnids.txt": b"n00000003\n../n0000005\nn00000007\n"}),
            "line 2: ../n0000005 is not a class's name",
        ),
        (
            changed(**{"wnids.txt": b"n00000003\n\x1b[2J\nn00000007\n"}),
            r"line 2: '.x1b\[2J' is not a class's name",
        ),
        (changed(**{"wnids.txt": b"\xff\xfe"}), "wnids.txt is not whole text"),
        (
            rows(*GOOD[:5], "val_5.JPEG\tn12345678"),
            "line 6: val_5.JPEG is of the class n12345678, which wnids.txt lacks",
        ),
        (rows(*GOOD[:5], "val_5.JPEG"), "line 6: val_5.JPEG is of the class '', which wnids.txt lacks"),
        (rows(*GOOD, GOOD[0]), "line 7: val_0.JPEG is listed twice"),
        (
            rows("../images/val_0.JPEG\tn00000003", *GOOD[1:]),
            "has no class for val/images/val_0.JPEG",
        ),
        (
            rows("val_0.JPEG\x07\tn00000003", *GOOD[1:]),
            "has no class for val/images/val_0.JPEG",
        ),
        (
            rows(*GOOD[:4]),
            "val_annotations.txt has no class for val/images/val_4.JPEG, val/images/val_5.JPEG",
        ),
        (rows(*GOOD[:5], "val_5.JPEG\tn00000007"), "gives the class n00000007 3 images, expected 2"),
        (
            {name: content for name, content in FILES.items() if "n00000005/" not in name},
            "the class n00000005 has no training images; every class needs some",
        ),
        ({}, "has no wnids.txt"),
    ],
)
def test_lists_that_are_wrong_are_refused_with_the_line(tmp_path, contents, message):
    (tmp_path / "tiny-imagenet-200").mkdir()
    refused(tmp_path, contents, message)


def test_lists_with_carriage_returns_mean_the_same(tmp_path):
    names = ("wnids.txt", "words.txt", "val/val_annotations.txt")
    contents = {name: FILES[name].replace(b"\n", b"\r\n") for name in names}
    manifest = prepare(tmp_path, changed(**contents))
    plain = prepare(tmp_path / "plain")
    assert (manifest.class_names, manifest.train, manifest.test) == (
        plain.class_names,
        plain.train,
        plain.test,
    )


def test_a_listed_image_that_is_missing_makes_the_set_partial(tmp_path):
    contents = changed(**{"val/images/val_5.JPEG": None})
    refused(tmp_path, contents, "5 of 6 test images; 1 of 3 classes lack some", PrepareOptions())
    assert prepare(tmp_path, contents, PARTIAL).test.count == 5


def test_a_set_that_is_nowhere_names_every_place_that_was_looked_at(tmp_path):
    with pytest.raises(DataMissingError, match="repro data fetch tiny-imagenet") as caught:
        tiny_imagenet.prepare(tmp_path, source=SOURCE)
    for place in ("tiny-imagenet/raw/tiny-imagenet-200.zip", "tiny-imagenet-200.zip", "tiny-imagenet-200"):
        assert str(tmp_path / place) in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataMissingError, match="empty is not TinyImageNet: expected"):
        tiny_imagenet.prepare(tmp_path, PrepareOptions(source=tmp_path / "empty"), source=SOURCE)


@pytest.fixture
def mirror(server):
    server.content = PACKED
    return server


def test_the_archive_is_fetched_once_and_prepared_from(mirror, tmp_path):
    for _ in range(2):
        place = tiny_imagenet.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)
    assert place == tmp_path / "tiny-imagenet" / "raw" / "tiny-imagenet-200.zip"
    assert len(mirror.ranges) == 1
    assert tiny_imagenet.prepare(tmp_path, source=SOURCE).train.count == 12


def test_a_mirror_can_be_named_in_the_environment(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_TINY_IMAGENET_URL", mirror.url)
    tiny_imagenet.fetch(tmp_path, source=SOURCE)
    assert len(mirror.ranges) == 1


def test_a_whole_unpacked_copy_needs_no_network_and_a_partial_one_does(mirror, tmp_path, said):
    folder = lay(tmp_path / "tiny-imagenet-200", FILES)
    # Port 9 refuses connections: fetching must find the files without a network.
    assert tiny_imagenet.fetch(tmp_path, source=SOURCE) == folder
    (folder / "val" / "images" / "val_0.JPEG").unlink()
    with pytest.raises(FetchError, match="refuses the connection"):
        tiny_imagenet.fetch(tmp_path, source=SOURCE)
    tiny_imagenet.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)
    assert "5 of 6 test images" in said[0]
    assert tiny_imagenet.prepare(tmp_path, source=SOURCE).test.count == 6


def test_the_published_address_and_checksum_are_the_known_ones():
    published = tiny_imagenet.PUBLISHED
    assert published.url == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert published.archive_md5 == "90528d7ca1a48142e341f4ef8d21d0de"


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, small_disk):
    place = lay(tmp_path / "source", FILES)
    with (small_disk / "filler").open("wb") as filler:
        filler.write(bytes(900_000))
    with pytest.raises(SetupError, match=r"no space left for .*free some on that disk"):
        tiny_imagenet.prepare(small_disk, PrepareOptions(source=place), source=SOURCE)
    assert [path.name for path in (small_disk / "tiny-imagenet").iterdir()] == [".prepared.lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, read_only):
    place = lay(tmp_path / "source", FILES)
    with pytest.raises(SetupError, match="no permission to write"):
        tiny_imagenet.prepare(read_only, PrepareOptions(source=place), source=SOURCE)


SCRIPT = textwrap.dedent(
    """
    import logging, os, sys
    from pathlib import Path
    import fake_tiny_imagenet as fake
    from repro.data import PrepareOptions, tiny_imagenet

    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)

    def say(done, total, unit="bytes"):
        print("under way", flush=True)
        if len(sys.argv) > 2:
            sys.stdin.readline()

    try:
        tiny_imagenet.prepare(
            Path(sys.argv[1]), progress=say,
            source=fake.source(fake.zipped(fake.files())),
        )
    except KeyboardInterrupt:
        sys.exit(130)
    """
)


def start(data_dir: Path, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(data_dir), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, -15)]
)
def test_stopped_in_the_middle_nothing_looks_finished_and_the_next_one_succeeds(tmp_path, number, code):
    lay(tmp_path / "tiny-imagenet-200", FILES)
    process = start(tmp_path, "wait")
    assert process.stdout.readline() == "under way\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not prepared_folder(tmp_path, "tiny-imagenet").exists()
    tiny_imagenet.prepare(tmp_path, source=SOURCE)
    verify_prepared(tmp_path, "tiny-imagenet")
    assert sorted(path.name for path in (tmp_path / "tiny-imagenet").iterdir()) == [
        ".prepared.lock",
        "prepared",
    ]


def test_of_two_preparations_at_once_one_waits_and_finds_it_done(tmp_path):
    lay(tmp_path / "tiny-imagenet-200", FILES)
    first = start(tmp_path, "wait")
    assert first.stdout.readline() == "under way\n"
    second = start(tmp_path)
    assert second.stdout.readline() == "another process is preparing TinyImageNet; waiting for it to finish\n"
    first.communicate("\n\n", timeout=60)
    out, err = second.communicate(timeout=60)
    assert (first.returncode, second.returncode, out, err) == (0, 0, "", "")
    verify_prepared(tmp_path, "tiny-imagenet")


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_subset_is_prepared_as_what_it_is(real_tiny_imagenet, tmp_path):
    options = PrepareOptions(source=real_tiny_imagenet, allow_partial=True, name="tiny-imagenet-subset")
    manifest = tiny_imagenet.prepare(tmp_path, options)
    assert manifest.partial == "100 of 500 training and 20 of 50 test images a class"
    assert (manifest.train.count, manifest.test.count, manifest.classes) == (20_000, 4_000, 200)
    assert manifest.notes == ()
    assert manifest.class_names[0] == "Egyptian cat"
    assert manifest.mean == pytest.approx((0.480, 0.448, 0.398), abs=0.01)
    assert manifest.std == pytest.approx((0.277, 0.269, 0.282), abs=0.01)
    assert verify_prepared(tmp_path, "tiny-imagenet-subset") == manifest


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_subset_goes_from_a_server_to_verified_arrays(real_tiny_imagenet, server, tmp_path):
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", strict_timestamps=False) as archive:
        for path in sorted(real_tiny_imagenet.rglob("*")):
            archive.write(path, f"tiny-imagenet-200/{path.relative_to(real_tiny_imagenet)}")
    server.content = packed.read_bytes()
    # The published archive is whole, and not at hand: the checksum is that of this part of it.
    source = dataclasses.replace(tiny_imagenet.PUBLISHED, archive_md5=md5(server.content))
    tiny_imagenet.fetch(tmp_path, FetchOptions(url=server.url), source=source)
    with pytest.raises(DataMissingError, match="100 of 500 training and 20 of 50 test images a class"):
        tiny_imagenet.prepare(tmp_path, source=source)
    manifest = tiny_imagenet.prepare(tmp_path, PrepareOptions(allow_partial=True), source=source)
    assert (manifest.train.count, manifest.test.count, manifest.notes) == (20_000, 4_000, ())
    assert verify_prepared(tmp_path, "tiny-imagenet") == manifest
