"""An augmentation of the user's own, in the recipe or in a table's row: applied, resumed, checked, hashed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_runs import comparable, config_of, data_of, in_turns, on_cpu, stopped_at, straight, train
from smoke_project import ROOT, forget_code
from smoke_project import edit as edit_file
from tape import TapeCapture

from repro.cli import main
from repro.config import RunConfig
from repro.data.loader import BatchStream, build_augmentation, draw_epoch, normalisation, to_device
from repro.errors import OwnCodeError, RegistryError, UsageError
from repro.registry import Registry, Selection
from repro.signature import code_hash, config_hash
from repro.training.loop import Trainer
from repro.training.precision import Accelerations
from repro.training.seeding import generator

CPU = torch.device("cpu")
EXAMPLE = ROOT / "examples" / "cutout" / "experiments"
NAME = "cutout.py:Cutout"
TABLE = """
table = "mine"
dataset = "cifar100"
title = "Mine"

[networks]
resnet18 = "ResNet-18"

[[rows]]
name = "plain"
label = "ResNet-18"
loss = "cross-entropy"

[[rows]]
name = "cutout"
label = "ResNet-18 + cutout"
loss = "cross-entropy"
recipe = { augmentation = "cutout.py:Cutout" }
"""
PLAIN, CUTOUT = "cifar100/resnet18/plain/seed0", "cifar100/resnet18/cutout/seed0"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The experiments of a project with the example's augmentation, and a table whose second row uses it."""
    made = tmp_path / "experiments"
    made.mkdir()
    shutil.copy(ROOT / "experiments" / "presets.toml", made)
    shutil.copy(EXAMPLE / "cutout.py", made)
    (made / "table-mine.toml").write_text(TABLE)
    forget_code()
    yield made
    forget_code()


def edit(path: Path, old: str, new: str) -> None:
    edit_file(path, old, new)
    forget_code()


def resolved(folder: Path, run: str, preset: str = "smoke") -> RunConfig:
    registry = Registry.load(folder)
    return registry.config(registry.parse(run), registry.preset(preset))


def with_cutout(**options) -> RunConfig:
    return config_of(augmentation=NAME, **options).model_copy(update={"folder": EXAMPLE})


def test_a_batch_has_a_hole_of_zeros_where_its_random_numbers_say_and_is_as_without_it_elsewhere():
    config = with_cutout()
    data = data_of(config)
    cutout = build_augmentation(NAME, 32, CPU, EXAMPLE)
    split, normalised = (
        to_device(data.train, CPU),
        normalisation(data, config.recipe, CPU, torch.channels_last),
    )
    batches = []
    for augmentation in (None, cutout):
        stream = BatchStream(split, 4, normalised, augmentation)
        stream.begin(draw_epoch(160, config.recipe, lambda purpose: generator(0, purpose, 1), augmentation))
        batches.append([*stream.next_batch(100), *stream.next_batch(60)])
    (first, labels, second, _), (ours, our_labels, our_second, _) = batches
    assert torch.equal(our_labels, labels)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    expected = torch.cat([first, second]).clone()
    centres = torch.randint(32, (160, 2), generator=generator(0, "augmentation", 1)).tolist()
    for image, (row, column) in zip(expected, centres, strict=True):
        for y in range(max(0, row - 4), min(32, row + 4)):
            for x in range(max(0, column - 4), min(32, column + 4)):
                image[:, y, x] = 0
    assert torch.equal(torch.cat([ours, our_second]), expected)
    holes = (expected == 0).all(dim=1).sum(dim=(1, 2))
    assert (holes.min() < 64, holes.max() >= 64) == (True, True)  # some are cut at the border


def test_a_run_that_is_resumed_or_beside_another_or_in_a_graph_ends_as_the_plain_one(tmp_path):
    few = {"images_per_class": 8, "test_images_per_class": 2, "batch_size": 16}
    config = with_cutout(**few)
    alone = train(config)
    assert comparable(alone) != comparable(straight(**few))
    start = stopped_at(config, lambda p: (p.epoch, p.step, p.state) == (1, 2, "training"), tmp_path)
    assert comparable(train(config, start=start)) == comparable(alone)
    both = config, with_cutout(loss="scaled-bn-m1", **few)
    beside, _ = in_turns([Trainer(each, data_of(each), on_cpu()) for each in both], [None, None])
    assert comparable(beside) == comparable(alone)
    capture = TapeCapture()
    graphed = train(config, accelerations=Accelerations(cuda_graph=True), capture=lambda device: capture)
    assert sum(capture.replays) >= 15
    assert comparable(graphed) == comparable(alone)


def test_a_rows_recipe_comes_after_the_presets_and_before_set(folder):
    edit(folder / "table-mine.toml", "recipe = { aug", "recipe = { lr = 1, lr_drops = [2], aug")
    config, plain = resolved(folder, CUTOUT), resolved(folder, PLAIN)
    assert (config.recipe.lr, config.recipe.lr_drops, config.recipe.augmentation) == (1.0, (2,), NAME)
    same = plain.recipe.model_copy(update={"lr": 1.0, "lr_drops": (2,), "augmentation": NAME})
    assert config.recipe == same
    (cell,) = Registry.load(folder).select_cells(Selection(losses=("cutout",), axes=(("lr", 0.5),)))
    assert cell.id == "cifar100/resnet18/cutout+lr=0.5"
    assert resolved(folder, f"{cell.id}/seed0").recipe == same.model_copy(update={"lr": 0.5})
    off = resolved(folder, "cifar100/resnet18/cutout+augmentation=none/seed0").recipe
    assert off == same.model_copy(update={"augmentation": "none"})
    assert resolved(folder, f"cifar100/resnet18/plain+augmentation={NAME}/seed0").recipe.augmentation == NAME
    with pytest.raises(UsageError, match=r"lr=1 is already the default in preset smoke"):
        resolved(folder, "cifar100/resnet18/cutout+lr=1/seed0")


def test_an_augmentation_may_be_the_presets(folder):
    edit(folder / "presets.toml", "width = 0.0625", f'width = 0.0625\naugmentation = "{NAME}"')
    assert [resolved(folder, PLAIN, name).recipe.augmentation for name in ("smoke", "paper")] == [
        NAME,
        "none",
    ]
    edit(
        folder / "presets.toml", f'0.0625\naugmentation = "{NAME}"', '0.0625\naugmentation = "gone.py:Cutout"'
    )
    with pytest.raises(OwnCodeError, match=r"gone.py:Cutout: there is no file .*gone.py"):
        resolved(folder, PLAIN)


def test_its_code_is_part_of_the_recipe_of_the_runs_that_use_it_alone(folder):
    def hashes() -> list[str]:
        configs = resolved(folder, PLAIN), resolved(folder, CUTOUT)
        return [of(config) for config in configs for of in (config_hash, code_hash)]

    before = hashes()
    edit(folder / "cutout.py", "Fills a square", "Empties a square")
    assert hashes() == before
    edit(folder / "cutout.py", "side: int = 8", "side: int = 16")
    assert [a == b for a, b in zip(before, hashes(), strict=True)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("table-mine.toml", "augmentation =", "augment =", r"recipe: unknown key 'augment'; allowed: batch_size, epochs"),
        ("table-mine.toml", "recipe = {", "recipe = { images_per_class = 5,", "recipe: unknown key 'images_per_class'"),
        ("table-mine.toml", "recipe = {", "recipe = { lr = -1,", r"recipe: lr: Input should be greater than 0, got -1"),
        ("table-mine.toml", '{ augmentation = "cutout.py:Cutout" }', '"cutout"', "recipe: expected a table of keys, got 'cutout'"),
        ("table-mine.toml", "cutout.py:", "gone.py:", "recipe: gone.py:Cutout: there is no file"),
        ("table-mine.toml", "cutout.py:Cutout", "cutout", "recipe: unknown augmentation 'cutout'; there are: none, or your own file: cutout.py:Cutout"),
        ("cutout.py", "side: int = 8", "side: int", r"expected to call it as Cutout\(image_size\); nothing gives it side"),
    ],
)  # fmt: skip
def test_what_planning_can_see_is_reported_with_the_tomls_name_and_row(folder, file, old, new, says):
    edit(folder / file, old, new)
    with pytest.raises(RegistryError, match=rf"table-mine.toml: row 2 \(cutout\): .*{says}"):
        Registry.load(folder)


def test_two_rows_of_one_loss_need_two_recipes(folder):
    edit(folder / "table-mine.toml", 'recipe = { augmentation = "cutout.py:Cutout" }', "")
    with pytest.raises(RegistryError, match=r"'cutout' .*same recipe and the same parameters as 'plain'"):
        Registry.load(folder)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("self.image_size, (count", "self.gone, (count", r"no attribute 'gone' \(cutout.py, line 14: return torch.randint"),
        ("(count, 2)", "(4, 2)", r"expected a CPU tensor of 5 rows from draw\(5, generator\); got torch.int64 of shape \(4, 2\)"),
        ("hole[:, None], 0.0)", "hole[:, None], 0.0)[:2]", r"images from apply, .* of shape \(4, 3, 32, 32\); got torch.float32 of shape"),
        ("hole[:, None], 0.0)", "hole[:, None], 0.0).double()", "expected images from apply in torch.float32 on cpu; got torch.float64"),
        ("0.0)", "float('nan'))", "apply gives images with NaN or infinity"),
        (", generator=generator", "", "it draws from a global generator; expected: only from the one given to draw"),
        ("images.masked_fill", "torch.rand(()) * images.masked_fill", "it draws from a global generator"),
        ("images.masked_fill", "__import__('random').random() * images.masked_fill", "it draws from a global generator"),
        ("images.masked_fill", "__import__('numpy').random.rand() * images.masked_fill", "it draws from a global generator"),
        ("        return torch.randint", "        self.side += 1\n        return self.side + torch.randint", "draw gives different results for the same input"),
        ("        pixels =", "        self.side += 1\n        pixels =", "apply gives different results for the same input"),
    ],
)  # fmt: skip
def test_what_only_trying_it_shows_is_reported_with_the_users_line(folder, old, new, says):
    edit(folder / "cutout.py", old, new)
    with pytest.raises(OwnCodeError, match=f"^cutout.py:Cutout: .*{says}"):
        build_augmentation(NAME, 32, CPU, folder)


def test_the_command_line_trains_it_shows_it_and_trains_again_what_other_code_trained(folder, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(folder.parent))

    def here(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, [*words, "--preset", "smoke"])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    here("train", PLAIN, CUTOUT, "--device", "cpu")
    assert f"augmentation {NAME}" in here("show", CUTOUT)
    edit(folder / "cutout.py", "hole[:, None], 0.0)", "hole[:, None], 0.0).mean()")
    assert "your own code has changed since (cutout.py)" in here("plan")
    assert json.loads(here("plan", "--json"))["to_do"] == 1
    failed = here("train", CUTOUT, "--device", "cpu", code=1)
    assert "cutout.py:Cutout: expected images from apply, a floating-point tensor" in failed
