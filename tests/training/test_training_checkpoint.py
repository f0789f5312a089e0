"""Checkpoints: the newest that can be believed, of this recipe, data and code only."""

import pytest
import torch

from repro.records import Signature
from repro.training.checkpoint import CheckpointFolder

SIGNATURE = Signature(config="1", data="2", code="3")


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    own = tmp_path / "1"
    own.mkdir()
    return CheckpointFolder(tmp_path, own, SIGNATURE)


def test_the_newest_checkpoint_comes_back_as_it_was(folder):
    folder.save(3, {"weights": torch.arange(4.0), "epoch": 0})
    folder.save(7, {"weights": torch.arange(4.0) * 2, "epoch": 1, "curve": [{"loss": 0.5}]})
    step, state = folder.newest()
    assert (step, state["epoch"], state["curve"]) == (7, 1, [{"loss": 0.5}])
    assert torch.equal(state["weights"], torch.arange(4.0) * 2)


def test_only_two_are_kept(folder):
    for step in range(5):
        folder.save(step, {})
    assert sorted(path.name for path in folder.own.iterdir()) == [
        "checkpoint-00000003.pt",
        "checkpoint-00000004.pt",
    ]


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "other"])
def test_a_damaged_one_is_passed_over_for_the_one_before(folder, damage):
    folder.save(1, {"epoch": 1})
    newest = folder.save(2, {"epoch": 2})
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
    assert folder.newest()[0] == 1


@pytest.mark.parametrize("part", ["config", "data", "code"])
def test_a_checkpoint_of_another_recipe_data_or_code_is_not_used(folder, part):
    folder.save(1, {})
    other = CheckpointFolder(folder.attempts, folder.own, SIGNATURE.model_copy(update={part: "other"}))
    assert other.newest() is None


def test_the_next_attempt_goes_on_from_the_one_before(folder):
    folder.save(5, {"epoch": 0})
    own = folder.attempts / "2"
    own.mkdir()
    assert CheckpointFolder(folder.attempts, own, SIGNATURE).newest()[0] == 5


def test_nothing_but_plain_data_is_loaded(folder, tmp_path):
    """A checkpoint that would run code when read is refused by torch's restricted reader."""
    import hashlib
    import io
    import os
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    buffer = io.BytesIO()
    torch.save({"signature": SIGNATURE.model_dump(), "step": 1, "state": Bomb()}, buffer)
    payload = buffer.getvalue()
    content = b"repro checkpoint 1\n" + hashlib.sha256(payload).digest() + payload
    (folder.own / "checkpoint-00000001.pt").write_bytes(content)
    with pytest.raises(pickle.UnpicklingError):
        folder.newest()
    assert not (tmp_path / "exploded").exists()


def test_clearing_removes_them_all(folder):
    folder.save(1, {})
    folder.clear()
    assert folder.newest() is None
    assert list(folder.own.iterdir()) == []
