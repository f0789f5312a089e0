"""What `repro train` finds out before the first step, on a prepared data set."""

import hashlib
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from smoke_project import PROJECT, RUN, repro, smoke_context, train_here

from repro.cli import main
from repro.data.prepared import Arrays, membership
from repro.data.writer import prepare_once
from repro.records import parse_record

TINY = "cifar100/vgg16/cross-entropy+batch_size=16+epochs=1+images_per_class=2/seed0"


@pytest.fixture
def data(tmp_path):
    """A prepared `cifar100` of random images: 40 for training, 20 for testing, of 10 classes."""

    def make(writer):
        random = np.random.default_rng(1)
        for which, count in (("train", 40), ("test", 20)):
            images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
            split = Arrays(images, np.arange(count, dtype=np.int64) % 10)
            pieces = iter([split.images])
            writer.split(which, split.labels, membership([which]), pieces, split.images.shape[-1])
        return writer.finish(class_names=[str(number) for number in range(10)], sources={"archive": "0" * 64})

    prepare_once(tmp_path / "data", "cifar100", "random images", make, wanted=lambda there: False)
    return tmp_path / "data" / "cifar100" / "prepared"


def train(run, data, results, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(PROJECT))
    words = ["train", run, "--preset", "quick", "--device", "cpu", "--data-dir", str(data.parent.parent)]
    return CliRunner().invoke(main, [*words, "--results", str(results)])


@pytest.mark.parametrize("array", ["test-labels.npy", "train-labels.npy", "test-images.npy"])
def test_an_array_that_does_not_match_its_manifest_is_not_trained_on(data, array, tmp_path, monkeypatch):
    """Right in shape, type and size: all labels zero once trained and gave 100 %."""
    np.save(data / array, np.zeros_like(np.load(data / array)))
    done = train(TINY, data, tmp_path / "results", monkeypatch)
    assert done.exit_code == 3
    assert f"{array} has sha256" in done.stderr
    assert "run `repro data prepare cifar100 --data-dir" in done.stderr
    assert not list((tmp_path / "results").rglob("seed0.json"))
    assert not list((tmp_path / "results").rglob("attempts"))


def test_the_sha256_of_what_was_trained_on_is_in_the_record(data, tmp_path, monkeypatch):
    done = train(TINY, data, tmp_path / "results", monkeypatch)
    assert done.exit_code == 0, done.stderr
    (path,) = (tmp_path / "results").rglob("seed0.json")
    record = parse_record(path.read_text(), str(path))
    assert record.data.arrays == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in data.glob("*.npy")
    }


def test_cublas_hears_of_deterministic_mode_before_cuda_is_asked_for(tmp_path, monkeypatch):
    """It reads its workspace's size once per process: a test run has set it from the start, the command does."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    asked = []

    def no_gpu() -> bool:
        asked.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        return False

    monkeypatch.setattr("torch.cuda.is_available", no_gpu)
    context = smoke_context(monkeypatch, tmp_path)
    try:
        assert train_here(context, RUN, device=None, deterministic=True) == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert asked
    assert set(asked) == {":4096:8"}


def test_a_sweep_skips_a_data_set_that_is_missing_and_needs_none_for_what_is_done(
    data, tmp_path, monkeypatch
):
    monkeypatch.setenv("REPRO_ROOT", str(PROJECT))
    words = ["--dataset", "cifar100", "--network", "vgg16", "--seed", "0"]
    words += [word for axis in TINY.split("/")[2].split("+")[1:] for word in ("--set", axis)]
    words += ["--loss", "cross-entropy", "--preset", "quick", "--results", tmp_path / "results"]
    there = ["--data-dir", data.parent.parent]
    done = repro("run", "--dataset", "tiny-imagenet", *words, *there, check=3)
    assert "skipping 1 run: the data set tiny-imagenet is not prepared" in done.stderr
    assert "then `repro data prepare tiny-imagenet --data-dir" in done.stderr
    assert "1 run: 1 done" in done.stderr
    assert len(list((tmp_path / "results" / "quick").rglob("cifar100/**/seed0.json"))) == 1
    again = repro("run", *words, "--data-dir", tmp_path / "empty", check=0)
    assert again.stderr.startswith("1 run: 1 done before")
