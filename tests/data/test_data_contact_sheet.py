"""`repro data show`: the sheet holds the set's own pixels, and on the right what training really sees."""

from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from smoke_project import ROOT

from repro.cli import main
from repro.cli.data import draw_contact_sheet
from repro.data.loader import Normalisation, draw_epoch, to_device, training_batch
from repro.data.synthetic import generate
from repro.errors import UsageError
from repro.registry import Registry
from repro.training.seeding import generator


@pytest.fixture(scope="module")
def recipe():
    return Registry.load(ROOT / "experiments").preset("smoke").recipe


@pytest.fixture(scope="module")
def data():
    return generate("cifar100", 32, 10, 16, 8)


def tiles(axis) -> np.ndarray:
    """The images of a panel as (row, column, 3, 32, 32)."""
    sheet = axis.images[0].get_array()
    rows, columns = sheet.shape[0] // 34, sheet.shape[1] // 34
    parts = sheet.reshape(rows, 34, columns, 34, 3)[:, :32, :, :32]
    return np.asarray(parts).transpose(0, 2, 4, 1, 3)


def test_the_left_panel_is_the_set_and_the_right_one_what_the_first_epoch_trains_on(data, recipe):
    left, right = (tiles(axis) for axis in draw_contact_sheet(data, recipe, 4, 3, seed=5).axes)
    shown = [0, 3, 6, 9]
    seen = {}
    draws = draw_epoch(160, recipe, partial(lambda purpose: generator(5, purpose, 0)))
    plain = Normalisation(torch.zeros(3), torch.ones(3), torch.contiguous_format)
    images, _ = training_batch(to_device(data.train, torch.device("cpu")), draws, (0, 160), 4, plain)
    for place, index in enumerate(draws.order.tolist()):
        seen[index] = (images[place] * 255).round().to(torch.uint8).numpy()
    for row, label in enumerate(shown):
        for column, index in enumerate(np.flatnonzero(data.train.labels == label)[:3]):
            assert np.array_equal(left[row, column], data.train.images[index])
            assert np.array_equal(right[row, column], seen[index])
    assert not np.array_equal(left, right)


def test_the_rows_are_named_by_class_and_the_caption_says_what_was_done(data, recipe):
    turned = recipe.model_copy(update={"rotation": 15.0})
    figure = draw_contact_sheet(data, turned, 2, 2, seed=0)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["pattern 0", "pattern 9"]
    title, caption = (text.get_text().replace("\n", " ") for text in figure.texts)
    assert title.startswith("generated data in the shape of CIFAR-100: 10 classes, 160 training and 80 test")
    assert "random crop after padding with 4 black pixels, random horizontal flip, rotation by up to 15°" in (
        caption
    )
    assert "2 of 10 classes" in caption
    assert caption.endswith("Generated data.")


def test_the_command_writes_a_picture_and_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    path = tmp_path / "new" / "sheet.png"
    argv = ["data", "show", "cifar100", "--preset", "smoke", "--output", str(path), "--classes", "3"]
    result = CliRunner().invoke(main, argv)
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 2, "no data set matches 'nothing'"),
        (["cifar100", "--preset", "smoke", "--output", "sheet.gif"], 2, "ends in .png or .pdf"),
        (["cifar100", "--data-dir", "empty"], 3, "the data set cifar100 is not prepared"),
    ],
)
def test_what_cannot_be_shown_says_why(arguments, code, says, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["data", "show", *arguments])
    assert result.exit_code == code
    assert says in result.stderr


def test_a_class_without_an_image_is_a_usage_error(data, recipe):
    empty = data.manifest.model_copy(update={"class_names": (*data.manifest.class_names, "nobody")})
    with pytest.raises(UsageError, match="a class without a training image"):
        draw_contact_sheet(type(data)(empty, data.train, data.test), recipe, 11, 2, seed=0)
