"""repro.data.prepared: what is written is what is opened, or the damage is named."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_arrays import arrays, write
from smoke_project import wait_for

from repro.data.files import one_at_a_time
from repro.data.prepared import (
    Arrays,
    first_of_each_class,
    membership,
    open_prepared,
    statistics,
    verify_prepared,
)
from repro.data.writer import prepare_once
from repro.errors import DataCorruptError, DataMissingError, SetupError
from repro.manifest import prepared_folder, read_manifest

FILES = ("train-images.npy", "train-labels.npy", "test-images.npy", "test-labels.npy")


def hidden(data_dir) -> list[str]:
    """What lies beside the prepared folder but the lock."""
    kept = ("prepared", ".prepared.lock")
    return [path.name for path in (data_dir / "set").iterdir() if path.name not in kept]


def resealed(text: str) -> str:
    """The manifest's text with a checksum that fits again."""
    content = json.loads(text)
    del content["sha256"]
    whole = json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    return json.dumps({**content, "sha256": hashlib.sha256(whole).hexdigest()})


def edit(**changes):
    return lambda text: resealed(json.dumps({**json.loads(text), **changes}))


def without_checksum(text: str) -> str:
    return json.dumps({key: value for key, value in json.loads(text).items() if key != "sha256"})


def test_arrays_come_back_as_they_were_written(tmp_path):
    manifest = write(tmp_path, notes=["one", "two"], partial="half of it", tools={"numpy": "2"})
    data = open_prepared(tmp_path, "set")
    assert np.array_equal(data.train.images, arrays(20, 1).images)
    assert np.array_equal(data.test.labels, arrays(8, 2).labels)
    assert isinstance(data.train.images, np.memmap)
    assert not data.train.images.flags.writeable
    assert data.train.labels.dtype == np.int64
    assert data.manifest == manifest == read_manifest(tmp_path, "set")
    assert sorted(path.name for path in prepared_folder(tmp_path, "set").iterdir()) == [
        "manifest.json",
        *sorted(FILES),
    ]
    assert (manifest.notes, manifest.partial, manifest.image_size) == (("one", "two"), "half of it", 8)


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_the_pieces_and_the_memory_layout_that_images_come_in_leave_no_trace(tmp_path, piece):
    train = Arrays(np.asfortranarray(arrays(20, 1).images), arrays(20, 1).labels)
    for place, changes in (("one", {"piece": piece, "train": train}), ("two", {})):
        write(tmp_path / place, **changes)
    folders = (prepared_folder(tmp_path / place, "set") for place in ("one", "two"))
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second


def test_statistics_are_exact():
    images = arrays(3000, 5, size=4).images  # more than one chunk
    exact = images.astype(np.float64) / 255
    mean, std = statistics(images)
    assert mean == pytest.approx(exact.mean(axis=(0, 2, 3)), abs=1e-14)
    assert std == pytest.approx(exact.std(axis=(0, 2, 3)), abs=1e-14)
    assert statistics(images[::-1]) == (mean, std)
    plain = np.full((5, 3, 4, 4), 51, dtype=np.uint8)
    assert statistics(plain) == ((0.2, 0.2, 0.2), (0.0, 0.0, 0.0))


def images(count: int, *shape: int, dtype: type = np.uint8, labels: type = np.int64) -> Arrays:
    return Arrays(np.zeros((count, *shape), dtype), np.zeros(count, labels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": images(4, 8, 8, 3)}, "broadcast"),
        ({"train": images(4, 3, 8, 8, dtype=np.float32)}, "of uint8, got float32"),
        ({"train": images(4, 3, 8, 9)}, "broadcast"),
        ({"test": images(0, 3, 8, 8)}, "expected labels"),
        ({"test": Arrays(images(4, 3, 8, 8).images, np.zeros(3, np.int64))}, "broadcast"),
        ({"test": Arrays(images(4, 3, 8, 8).images, np.zeros(3, np.int64)), "piece": 1}, "expected 3 images in all, got 4"),
        ({"test": Arrays(images(3, 3, 8, 8).images, np.zeros(4, np.int64))}, "expected 4 images in all, got 3"),
        ({"test": images(4, 3, 8, 8, labels=np.int32)}, r"expected labels \(4,\)"),
        ({"class_names": ["a", "b"]}, "expected labels from 0 to 1, got 0 to 3"),
    ],
)  # fmt: skip
def test_arrays_of_another_shape_type_or_number_are_not_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **changes)
    assert not prepared_folder(tmp_path, "set").exists()
    assert hidden(tmp_path) == []


def test_whole_arrays_of_the_wanted_kind_stay_and_others_are_made_anew(tmp_path, said):
    first = write(tmp_path, seed=1)

    def never(writer):
        raise AssertionError("made again")

    assert prepare_once(tmp_path, "set", "Set", never, wanted=lambda there: there == first) == first
    with pytest.raises(AssertionError, match="made again"):
        prepare_once(tmp_path, "set", "Set", never, wanted=lambda there: False)
    assert said == ["preparing Set again: what is there was made of another source or with other options"]
    assert verify_prepared(tmp_path, "set") == first
    images = prepared_folder(tmp_path, "set") / "train-images.npy"
    images.write_bytes(images.read_bytes()[:-1] + b"x")
    with pytest.raises(AssertionError, match="made again"):
        prepare_once(tmp_path, "set", "Set", never)
    assert "train-images.npy has sha256" in said[1]


def test_of_two_preparations_at_once_one_waits_and_finds_it_done(tmp_path, said):
    def never(writer):
        raise AssertionError("made again")

    with ThreadPoolExecutor(1) as pool:
        with one_at_a_time(tmp_path / "set" / ".prepared.lock", "preparing"):
            second = pool.submit(prepare_once, tmp_path, "set", "Set", never)
            wait_for(lambda: said == ["another process is preparing Set; waiting for it to finish"], "it")
            first = write(tmp_path / "other")
            shutil.copytree(prepared_folder(tmp_path / "other", "set"), prepared_folder(tmp_path, "set"))
        assert second.result() == first


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_is_found_and_its_file_named(tmp_path, file):
    write(tmp_path)
    path = prepared_folder(tmp_path, "set") / file
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DataCorruptError, match=f"{file} has sha256 .* expected .* run `repro data prepare set`"
    ):
        verify_prepared(tmp_path, "set")


@pytest.mark.parametrize("file", FILES[:2])
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"x" * path.stat().st_size),
        lambda path: np.save(path, np.zeros((3, 3))),
        lambda path: np.save(path, np.array([{}], dtype=object)),
    ],
    ids=["missing", "empty", "torn", "not an array", "another array", "objects"],
)
def test_a_damaged_file_is_named_without_hashing(tmp_path, file, damage):
    write(tmp_path)
    damage(prepared_folder(tmp_path, "set") / file)
    with pytest.raises(DataCorruptError, match=f"{file}.*run `repro data prepare set`"):
        open_prepared(tmp_path, "set")


EARLIER = "earlier version of this program: run `repro data prepare"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (edit(name="other"), DataCorruptError, "is of the data set other, expected set"),
        (edit(image_size=16), DataCorruptError, r"expected images \(20, 3, 16, 16\) of uint8"),
        (edit(class_names=["a"]), DataCorruptError, "expected labels from 0 to 0"),
        (edit(surprise=1), DataCorruptError, "surprise"),
        (edit(mean=[1.0]), DataCorruptError, "mean"),
        (lambda text: resealed(text.replace("train-images", "../train-images")), DataCorruptError, "not a file's name"),
        (lambda text: text[:-9], DataCorruptError, r"manifest\.json: not whole JSON .* run `repro data prepare set`"),
        (lambda text: "[]", DataCorruptError, r"manifest\.json: .* run `repro data prepare set`"),
        (without_checksum, DataMissingError, EARLIER),
        (edit(preparation_version=0), DataMissingError, EARLIER),
    ],
)  # fmt: skip
def test_a_manifest_that_is_damaged_or_does_not_fit_its_arrays_says_what_to_do(
    tmp_path, change, error, message
):
    write(tmp_path)
    path = prepared_folder(tmp_path, "set") / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(error, match=message):
        open_prepared(tmp_path, "set")


@pytest.mark.parametrize("key", ["mean", "membership", "image_size", "sha256"])
def test_one_flipped_bit_in_the_manifest_is_found(tmp_path, key):
    write(tmp_path)
    path = prepared_folder(tmp_path, "set") / "manifest.json"
    content = bytearray(path.read_bytes())
    # The first figure or letter of what the key stands before.
    at = content.rindex(b'"' + key.encode() + b'"') + len(key) + 2
    while not chr(content[at]).isalnum():
        at += 1
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataCorruptError, match=r"manifest\.json.*run `repro data prepare set`"):
        verify_prepared(tmp_path, "set")


DYING = textwrap.dedent(
    """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from small_arrays import write

    function, left = sys.argv[3], int(sys.argv[4])
    real = getattr(os, function)

    def dying(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, function, dying)
    write(Path(sys.argv[2]), seed=7)
    """
)


@pytest.mark.parametrize(
    ("earlier", "function", "at"),
    # Only where there is an earlier folder is there a second rename, with nothing in place before it.
    [(False, "rename", 1), (True, "fsync", 1), (True, "fsync", 5), (True, "rename", 1), (True, "rename", 2)],
)
def test_killed_at_any_moment_nothing_looks_finished_that_is_not(tmp_path, function, at, earlier):
    if earlier:
        write(tmp_path, seed=1)
    command = [sys.executable, "-c", DYING, str(Path(__file__).parent), str(tmp_path), function, str(at)]
    assert subprocess.run(command).returncode == -9
    whole = (write(tmp_path / "old", seed=1), write(tmp_path / "new", seed=7))
    # Either a whole set is there, the earlier or the later one, or none is.
    with contextlib.suppress(DataMissingError):
        assert verify_prepared(tmp_path, "set") in whole
    write(tmp_path, seed=7)
    verify_prepared(tmp_path, "set")
    assert hidden(tmp_path) == []


def test_a_full_disk_keeps_the_earlier_arrays(small_disk):
    write(small_disk, seed=1)
    with pytest.raises(SetupError, match=r"no space left for .*prepared"):
        write(small_disk, train=arrays(20, 1, size=160), test=arrays(8, 1, size=160))
    assert np.array_equal(open_prepared(small_disk, "set").train.images, arrays(20, 1).images)
    assert hidden(small_disk) == []


def test_the_first_images_of_each_class_agree_with_a_plain_loop():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    seen: dict[int, int] = {}
    expected = []
    for position, label in enumerate(labels.tolist()):
        if seen.setdefault(label, 0) < 20:
            expected.append(position)
        seen[label] += 1
    chosen = first_of_each_class(labels, 20)
    assert chosen.tolist() == expected
    assert chosen.dtype == np.int64


def test_the_fingerprint_follows_source_and_membership_and_nothing_else(tmp_path):
    base = write(tmp_path / "0").fingerprint()
    assert write(tmp_path / "1", tools={"numpy": "9"}, notes=["n"], seed=9).fingerprint() == base
    assert write(tmp_path / "2", sources={"archive": "1" * 64}).fingerprint() != base
    assert write(tmp_path / "2s", settings={"crop": "half"}).fingerprint() != base
    assert write(tmp_path / "2l", left_out={"a": "torn"}, listing="0" * 64).fingerprint() == base
    assert write(tmp_path / "3", train_membership=membership(["2", "1"])).fingerprint() != base
    assert membership(["ab"]) != membership(["a", "b"])
