"""A folder of images from `repro data prepare` to a trained run, and what happens to a mistyped name."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from pictures import jpeg, lay
from smoke_project import ROOT, train_here

from repro.cli import main
from repro.cli.context import Context
from repro.records import read_record

PRESET = """
[presets.tiny]
title = "TINY"
description = "one epoch of real images"
seeds = [0]
threads = 1
[presets.tiny.recipe]
images_per_class = 8
batch_size = 8
epochs = 1
lr_drops = []
width = 0.0625
"""
TABLE = """
table = "{name}"
dataset = "{dataset}"
title = "Flowers"
[networks]
resnet18 = "ResNet-18"
vgg16 = "VGG"
[[rows]]
name = "cross-entropy"
label = "Cross-entropy"
loss = "cross-entropy"
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with a table on the set `flowers`, which isn't prepared, and a preset of one epoch."""
    folder = tmp_path / "project"
    (folder / "experiments").mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "presets.toml", folder / "experiments")
    with (folder / "experiments" / "presets.toml").open("a") as presets:
        presets.write(PRESET)
    add_table(folder, "flowers", "flowers")
    monkeypatch.setenv("REPRO_ROOT", str(folder))
    return folder


def add_table(project: Path, name: str, dataset: str) -> None:
    (project / "experiments" / f"table-{name}.toml").write_text(TABLE.format(name=name, dataset=dataset))


def asked(*words: str):
    return CliRunner().invoke(main, words)


@pytest.mark.parametrize("size", [32, 96])
def test_a_folder_split_by_its_owner_is_trained_on_at_the_size_that_was_asked_for(project, tmp_path, size):
    photos = {
        f"{half}/{flower}/{number}.jpg": jpeg(seed=number, size=100)
        for half, count in (("train", 9), ("val", 4))
        for flower in ("rose", "tulip")
        for number in range(count)
    }
    source = lay(tmp_path / "photos", photos)
    words = ("--from", str(source), "--min-images", "10", "--image-size", str(size))
    done = asked("data", "prepare", "flowers", *words)
    assert f"18 training and 8 test images of 2 classes, {size} × {size}" in done.stderr, done.output
    context = Context.open("tiny")
    assert context.data_sizes(["flowers"])["flowers"].image_size == size
    for network in ("resnet18", "vgg16"):
        run = f"flowers/{network}/cross-entropy/seed0"
        assert train_here(context, run) == 0
        record = read_record(context.project.run("tiny", run).record, run, "tiny")
        assert (record.result.total, record.result.diverged_in) == (8, None)


def test_a_data_set_that_nobody_knows_is_an_error_with_the_names_that_there_are(project, tmp_path):
    source = lay(
        tmp_path / "photos", {f"{flower}/{number}.jpg": jpeg() for flower in "ab" for number in "12"}
    )
    assert asked("data", "prepare", "flowers", "--from", str(source), "--min-images", "2").exit_code == 0
    add_table(project, "typo", "tinyimagenet")
    for command in ("plan", "run"):
        done = asked(command, "--preset", "tiny", "--table", "typo")
        assert done.exit_code == 3
        assert (
            "the data set tinyimagenet is neither published nor prepared in "
            f"{project / 'data'}; there are: cifar100, tiny-imagenet, facescrub, flowers; for a set of your own "
            "run `repro data prepare tinyimagenet --from FOLDER`. Did you mean tiny-imagenet?"
        ) in done.output
    # What can be planned is planned, as what can be trained is trained.
    done = asked("plan", "--preset", "tiny", "--table", "typo,flowers")
    assert (done.exit_code, "the data set tinyimagenet" in done.stdout) == (0, True)
    add_table(project, "typo", "cifar10O")
    done = asked("plan", "--preset", "tiny", "--table", "typo")
    assert (done.exit_code, done.stderr.endswith("Did you mean cifar100?\n")) == (2, True)
    assert "table-typo.toml: dataset: 'cifar10O' cannot be a name" in done.stderr
