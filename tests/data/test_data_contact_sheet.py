"""`repro data show`: the sheet holds the set's own pixels, and on the right what training really sees."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from smoke_project import PROJECT, ROOT

from repro.cli import main
from repro.cli.data import make_contact_sheet
from repro.data import digits
from repro.data.loader import BatchStream, Normalisation, draw_epoch, to_device
from repro.errors import UsageError
from repro.registry import Registry
from repro.training.seeding import generator

RECIPE = Registry.load(PROJECT / "experiments").preset("smoke").recipe


def test_on_the_left_is_the_set_and_on_the_right_what_the_first_epoch_trains_on():
    data = digits.load("cifar100", 10, 16, 8)
    sheet, shown = make_contact_sheet(data, RECIPE, 4, 3, seed=5)
    assert shown == ["0", "3", "6", "9"]
    cells = (
        (sheet[:, 2:, 2:] * 255)
        .round()
        .to(torch.uint8)
        .unfold(1, 32, 34)
        .unfold(2, 32, 34)
        .permute(1, 2, 0, 3, 4)
    )
    assert cells.shape == (4, 8, 3, 32, 32)  # a blank after each three
    draws = draw_epoch(160, RECIPE, lambda purpose: generator(5, purpose, 0))
    plain = Normalisation(torch.zeros(3), torch.ones(3), torch.contiguous_format)
    stream = BatchStream(to_device(data.train, torch.device("cpu")), 4, plain)
    stream.begin(draws)
    images, _ = stream.next_batch(160)
    seen = dict(zip(draws.order.tolist(), (images * 255).round().to(torch.uint8), strict=True))
    for row, label in enumerate((0, 3, 6, 9)):
        for column, index in enumerate(np.flatnonzero(data.train.labels == label)[:3]):
            assert np.array_equal(cells[row, column], data.train.images[index])
            assert torch.equal(cells[row, 4 + column], seen[index])
    empty = data.manifest.model_copy(update={"class_names": (*data.manifest.class_names, "nobody")})
    with pytest.raises(UsageError, match="a class without a training image"):
        make_contact_sheet(type(data)(empty, data.train, data.test), RECIPE, 11, 2, seed=0)


def test_an_augmentation_of_the_users_own_is_shown_too():
    """Where the example's cuts a hole, there is the mean colour: 0 after normalisation."""
    data = digits.load("cifar100", 10, 16, 8)
    recipe = RECIPE.model_copy(update={"augmentation": "cutout.py:Cutout"})
    before, _ = make_contact_sheet(data, RECIPE, 4, 3, seed=5)
    after, _ = make_contact_sheet(data, recipe, 4, 3, 5, ROOT / "examples" / "cutout" / "experiments")
    hole = (before != after).any(dim=0)
    assert 0 < hole.sum() <= 4 * 3 * 64
    colour = torch.tensor(data.manifest.mean)[:, None].expand(3, int(hole.sum()))
    torch.testing.assert_close(after[:, hole], colour, rtol=0, atol=0.003)
    assert not hole[:, : hole.shape[1] // 2].any()  # the left half shows the set


def test_the_command_writes_a_picture_and_says_where_and_what_is_on_it(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(PROJECT))
    path = tmp_path / "new" / "sheet.png"
    argv = ["data", "show", "cifar100", "--preset", "smoke", "--output", str(path), "--classes", "3"]
    result = CliRunner().invoke(main, argv)
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    assert "handwritten digits (scikit-learn), resized to 32 px: 1" in result.stderr
    assert "Rows: 0; " in result.stderr
    with Image.open(path) as picture:
        assert (picture.format, min(picture.size) > 100) == ("PNG", True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 2, "no data set matches 'nothing'"),
        (["cifar100", "--preset", "smoke", "--output", "sheet.gif"], 2, "ends in .png or .pdf"),
        (["cifar100", "--data-dir", "empty"], 3, "the data set cifar100 is not prepared"),
    ],
)
def test_what_cannot_be_shown_says_why(arguments, code, says, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(PROJECT))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["data", "show", *arguments])
    assert (result.exit_code, says in result.stderr) == (code, True), result.stderr
