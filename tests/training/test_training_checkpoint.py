"""Checkpoints: the newest valid one, of this recipe, data and code only."""

import hashlib
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from small_runs import SIGNATURE, checkpoints_in

from repro.training.checkpoint import CheckpointFolder, NumericSettings

SETTINGS = NumericSettings(
    torch_version="2.6.0",
    device="cpu",
    precision="fp32",
    threads=1,
    deterministic=False,
    accelerations=("channels-last", "fused-sgd"),
)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return sys.exit, ("a checkpoint ran code",)


def file_of(content: object) -> bytes:
    """A file with a right checksum over any content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    return b"repro checkpoint 3\n" + hashlib.sha256(payload).digest() + payload


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path, warned) -> CheckpointFolder:
    folder = checkpoints_in(tmp_path)
    folder.warn = warned.append
    return folder


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.own.iterdir())


def test_the_newest_checkpoint_comes_back_as_it_was_and_clearing_removes_all(folder):
    folder.save(3, SETTINGS, {"weights": torch.arange(4.0), "epoch": 0})
    folder.save(7, SETTINGS, {"weights": torch.arange(4.0) * 2, "epoch": 1, "curve": [{"loss": 0.5}]})
    found = folder.newest()
    assert (found.step, found.state["epoch"], found.state["curve"]) == (7, 1, [{"loss": 0.5}])
    assert found.numeric_settings == SETTINGS
    assert torch.equal(found.state["weights"], torch.arange(4.0) * 2)
    folder.clear()
    assert folder.newest() is None
    assert names(folder) == []


def test_only_two_are_kept_and_nothing_half_written(folder):
    (folder.own / ".checkpoint-00000001.pt.4711").write_bytes(b"of a killed attempt")
    for step in range(5):
        folder.save(step, SETTINGS, {})
    assert names(folder) == ["checkpoint-00000003.pt", "checkpoint-00000004.pt"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:], id="flipped"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"something else entirely", id="other"),
        pytest.param(lambda content: file_of({"step": 7}), id="incomplete"),
        pytest.param(lambda content: file_of("no checkpoint"), id="text"),
        pytest.param(lambda content: file_of({"signature": {}, "numeric_settings": 3}), id="type"),
        pytest.param(
            lambda content: file_of({"signature": {}, "step": 1, "numeric_settings": {}, "state": Bomb()}),
            id="code",
        ),
    ],
)
def test_a_damaged_one_is_rejected_for_the_one_before_and_takes_no_good_ones_place(folder, warned, damage):
    """Also where the checksum is right and the content is not; the two that are kept are valid ones."""
    folder.save(1, SETTINGS, {})
    newest = folder.save(9, SETTINGS, {})
    newest.write_bytes(damage(newest.read_bytes()))
    assert folder.newest().step == 1
    (line,) = warned
    assert line.startswith(f"rejected checkpoint {newest}: ")
    folder.save(2, SETTINGS, {})
    assert names(folder) == ["checkpoint-00000001.pt", "checkpoint-00000002.pt"]


def test_an_attempt_that_began_anew_keeps_its_own_before_older_ones_that_were_further(folder):
    """As after a change of the code: what it has written so far must outlive what is of no use any more."""
    older = CheckpointFolder(folder.attempts, folder.own, SIGNATURE.model_copy(update={"code": "older"}))
    for step in (5000, 6000):
        older.save(step, SETTINGS, {})
    anew = checkpoints_in(folder.attempts, attempt=2)
    assert anew.newest() is None
    for step in (10, 20):
        anew.save(step, SETTINGS, {})
    assert anew.newest().step == 20
    assert names(folder) == []


def test_a_disk_that_takes_no_checkpoint_is_said_once_and_the_one_before_stays(folder, warned):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    folder.save(1, SETTINGS, {})
    for step in (2, 3):
        (folder.own / f".checkpoint-{step:08d}.pt.{os.getpid()}").symlink_to(full)
        assert folder.save(step, SETTINGS, {}) is None
    (line,) = warned
    assert "No space left" in line
    assert folder.newest().step == 1


@pytest.mark.parametrize("part", ["config", "data", "code"])
def test_a_checkpoint_of_another_recipe_data_or_code_is_not_used(folder, part):
    folder.save(1, SETTINGS, {})
    other = CheckpointFolder(folder.attempts, folder.own, SIGNATURE.model_copy(update={part: "other"}))
    assert other.newest() is None
