"""Checkpoints: the newest that can be believed, of this recipe, data and code only."""

import hashlib
import io
import os
from pathlib import Path

import pytest
import torch

from repro.records import Signature
from repro.training.checkpoint import CheckpointFolder, NumericSettings

SIGNATURE = Signature(config="1", data="2", code="3")
SETTINGS = NumericSettings(
    torch_version="2.6.0",
    device="cpu",
    precision="fp32",
    threads=1,
    deterministic=False,
    accelerations=("channels-last", "fused-sgd"),
)


def put(path: Path, content: object) -> None:
    """A file with a right checksum over any content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    path.write_bytes(b"repro checkpoint 3\n" + hashlib.sha256(payload).digest() + payload)


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    own = tmp_path / "1"
    own.mkdir()
    return CheckpointFolder(tmp_path, own, SIGNATURE)


def test_the_newest_checkpoint_comes_back_as_it_was(folder):
    folder.save(3, SETTINGS, {"weights": torch.arange(4.0), "epoch": 0})
    folder.save(7, SETTINGS, {"weights": torch.arange(4.0) * 2, "epoch": 1, "curve": [{"loss": 0.5}]})
    found = folder.newest()
    assert (found.step, found.state["epoch"], found.state["curve"]) == (7, 1, [{"loss": 0.5}])
    assert found.numeric_settings == SETTINGS
    assert torch.equal(found.state["weights"], torch.arange(4.0) * 2)


def test_only_two_are_kept(folder):
    for step in range(5):
        folder.save(step, SETTINGS, {})
    assert sorted(path.name for path in folder.own.iterdir()) == [
        "checkpoint-00000003.pt",
        "checkpoint-00000004.pt",
    ]


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "other"])
def test_a_damaged_one_is_passed_over_for_the_one_before(folder, damage):
    folder.save(1, SETTINGS, {"epoch": 1})
    newest = folder.save(2, SETTINGS, {"epoch": 2})
    content = bytearray(newest.read_bytes())
    if damage == "torn":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "empty":
        content.clear()
    else:
        content = bytearray(b"something else entirely")
    newest.write_bytes(content)
    assert folder.newest().step == 1


@pytest.mark.parametrize("content", [{"step": 7}, "no checkpoint", {"signature": {}, "numeric_settings": 3}])
def test_one_whose_checksum_is_right_but_whose_content_is_not_is_passed_over_too(folder, content):
    said = []
    folder.warn = said.append
    folder.save(1, SETTINGS, {"epoch": 1})
    put(folder.own / "checkpoint-00000002.pt", content)
    assert folder.newest().step == 1
    assert len(said) == 1
    assert said[0].startswith(f"rejected checkpoint {folder.own / 'checkpoint-00000002.pt'}: ")


def test_one_that_was_passed_over_takes_no_good_ones_place(folder):
    """The two that are kept are two that can be believed."""
    folder.save(1, SETTINGS, {})
    (folder.own / "checkpoint-00000009.pt").write_bytes(b"torn")
    assert folder.newest().step == 1
    folder.save(2, SETTINGS, {})
    assert sorted(path.name for path in folder.own.iterdir()) == [
        "checkpoint-00000001.pt",
        "checkpoint-00000002.pt",
    ]


def test_an_attempt_that_began_anew_keeps_its_own_before_older_ones_that_were_further(folder):
    """As after a change of the code: what it has written so far must outlive what is of no use any more."""
    older = CheckpointFolder(folder.attempts, folder.own, SIGNATURE.model_copy(update={"code": "older"}))
    for step in (5000, 6000):
        older.save(step, SETTINGS, {})
    own = folder.attempts / "2"
    own.mkdir()
    anew = CheckpointFolder(folder.attempts, own, SIGNATURE)
    assert anew.newest() is None
    for step in (10, 20):
        anew.save(step, SETTINGS, {})
    assert anew.newest().step == 20
    assert not list(folder.own.iterdir())


def test_a_disk_that_takes_no_checkpoint_is_said_once_and_the_one_before_stays(folder):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    said = []
    folder.warn = said.append
    folder.save(1, SETTINGS, {})
    for step in (2, 3):
        (folder.own / f".checkpoint-{step:08d}.pt.{os.getpid()}").symlink_to(full)
        assert folder.save(step, SETTINGS, {}) is None
    assert len(said) == 1
    assert "No space left" in said[0]
    assert folder.newest().step == 1


def test_what_a_killed_attempt_had_half_written_is_removed(folder):
    half = folder.own / ".checkpoint-00000001.pt.4711"
    half.write_bytes(b"half")
    folder.save(2, SETTINGS, {})
    assert not half.exists()


@pytest.mark.parametrize("part", ["config", "data", "code"])
def test_a_checkpoint_of_another_recipe_data_or_code_is_not_used(folder, part):
    folder.save(1, SETTINGS, {})
    other = CheckpointFolder(folder.attempts, folder.own, SIGNATURE.model_copy(update={part: "other"}))
    assert other.newest() is None


def test_the_next_attempt_goes_on_from_the_one_before(folder):
    folder.save(5, SETTINGS, {"epoch": 0})
    own = folder.attempts / "2"
    own.mkdir()
    assert CheckpointFolder(folder.attempts, own, SIGNATURE).newest().step == 5


def test_nothing_but_plain_data_is_loaded(folder, tmp_path):
    """A checkpoint that would run code when read is refused by torch's restricted reader."""

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    content = {"signature": SIGNATURE.model_dump(), "step": 1, "numeric_settings": {}, "state": Bomb()}
    put(folder.own / "checkpoint-00000001.pt", content)
    assert folder.newest() is None
    assert not (tmp_path / "exploded").exists()


def test_clearing_removes_them_all(folder):
    folder.save(1, SETTINGS, {})
    folder.clear()
    assert folder.newest() is None
    assert list(folder.own.iterdir()) == []
