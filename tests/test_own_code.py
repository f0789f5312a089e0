"""A loss, a network and a table of the user's own: imported, tried, trained and told apart."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from smoke_project import PROJECT, forget_code, repro
from smoke_project import edit as edit_file

from repro import losses, models, plugins
from repro.errors import OwnCodeError, RegistryError
from repro.registry import Registry, Selection
from repro.signature import code_hash, training_modules

FOCAL = '''
from repro.losses.cross_entropy import CrossEntropy

class FocalLoss(CrossEntropy):
    """Halves the loss."""
    def __init__(self, feature_dim: int, classes: int, *, gamma: float = 2.0, bias: bool = True):
        super().__init__(feature_dim, classes, bias=bias)
        self.gamma = gamma

    def criterion(self, inputs, labels):
        return super().criterion(inputs, labels) / self.gamma
'''
TINY = """
from torch import nn

class TinyNet(nn.Module):
    def __init__(self, image_size, width=1.0):
        super().__init__()
        self.feature_dim = 8
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        return self.first(images).mean(dim=(2, 3))
"""
TABLE = """
table = "mine"
dataset = "cifar100"
title = "Mine"

[networks]
tiny = {label = "TinyNet", code = "tiny.py:TinyNet"}

[[rows]]
name = "cross-entropy"
label = "Cross-entropy"
loss = "cross-entropy"

[[rows]]
name = "focal-g3"
label = "Focal"
loss = "focal.py:FocalLoss"
gamma = 3
"""
FOCAL_RUN, PLAIN_RUN = "cifar100/tiny/focal-g3/seed0", "cifar100/tiny/cross-entropy/seed0"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The experiments of a project that has nothing of the paper's."""
    made = tmp_path / "experiments"
    made.mkdir()
    shutil.copy(PROJECT / "experiments" / "presets.toml", made)
    (made / "focal.py").write_text(FOCAL)
    (made / "tiny.py").write_text(TINY)
    (made / "table-mine.toml").write_text(TABLE)
    forget_code()
    yield made
    forget_code()


def edit(path: Path, old: str, new: str) -> None:
    edit_file(path, old, new)
    forget_code()


def config_of(folder: Path, run: str):
    registry = Registry.load(folder)
    return registry.config(registry.parse(run), registry.preset("smoke"))


def test_an_own_row_has_its_parameters_with_defaults_and_kinds_and_each_is_an_axis(folder):
    config = config_of(folder, FOCAL_RUN)
    assert (config.loss, config.loss_parameters) == ("focal.py:FocalLoss", {"gamma": 3.0, "bias": True})
    assert (config.network, config.folder) == ("tiny.py:TinyNet", folder)
    assert "folder" not in config.model_dump()
    (cell,) = Registry.load(folder).select_cells(Selection(losses=("focal-*",), axes=(("gamma", 1.5),)))
    assert config_of(folder, f"{cell.id}/seed0").loss_parameters["gamma"] == 1.5


def test_without_a_table_of_the_paper_an_own_one_is_what_is_selected(folder):
    rows = [cell.row for cell in Registry.load(folder).select_cells(Selection())]
    assert rows == ["cross-entropy", "focal-g3"]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("from repro.losses.cross_entropy import CrossEntropy\nclass Mine(CrossEntropy): pass", {"bias"}),
        ("from repro.losses import ClassificationLoss\nclass Mine(ClassificationLoss): pass", set()),
        ("import repro.losses.am_softmax as am\nclass Mine(am.AMSoftmax): pass", {"scale", "margin", "projection"}),
        ("from focal import FocalLoss\nclass Between(FocalLoss): pass\nclass Mine(Between): pass",
         {"gamma", "bias"}),
    ],
)  # fmt: skip
def test_a_class_without_a_constructor_has_its_bases_parameters(folder, base, expected):
    (folder / "mine.py").write_text(base)
    assert set(plugins.loss_parameters("mine.py:Mine", folder).model_fields) == expected


@pytest.mark.parametrize(
    ("argument", "value", "good"),
    [
        ("x: float", 2, True),
        ("x: float", "two", False),
        ("x: 'int' = 3", 4, True),
        ("x=True", False, True),
        ("x: Literal['a', 'b'] = 'a'", "b", True),
        ("x: Literal['a', 'b'] = 'a'", "c", False),
        ("x: Annotated[float, Field(gt=0)] = 1.0", -1, False),
    ],
)
def test_a_parameters_annotation_or_default_says_what_a_toml_may_set(folder, argument, value, good):
    (folder / "mine.py").write_text(
        "from typing import Annotated, Literal\nfrom pydantic import Field\n"
        f"class Mine:\n    def __init__(self, feature_dim, classes, {argument}): ..."
    )
    edit(folder / "table-mine.toml", 'loss = "focal.py:FocalLoss"\ngamma = 3', f'loss = "mine.py:Mine"\nx = {value!r}'.replace("True", "true").replace("False", "false"))  # fmt: skip
    if good:
        assert config_of(folder, FOCAL_RUN).loss_parameters == {"x": value}
    else:
        with pytest.raises(RegistryError, match=r"table-mine.toml: row 2 \(focal-g3\): x: "):
            Registry.load(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("table-mine.toml", "focal.py", "gone.py", r"row 2 \(focal-g3\): gone.py:FocalLoss: there is no file"),
        ("table-mine.toml", "tiny.py", "../tiny.py", "a file beside the TOML or in a folder below it"),
        ("table-mine.toml", "py:FocalLoss", "py:Focal", "focal.py defines no Focal$"),
        ("table-mine.toml", "py:FocalLoss", "py:", "expected file.py:Name"),
        ("table-mine.toml", '"focal.py:FocalLoss"', '"focal"', "unknown loss 'focal'; there are: cross-entropy"),
        ("table-mine.toml", "gamma = 3", "alpha = 3", "unknown key 'alpha'; allowed: .*gamma, bias"),
        ("table-mine.toml", "py:TinyNet", "py:TinyNot", r"networks.tiny: tiny.py:TinyNot: tiny.py defines no TinyNot"),
        ("table-mine.toml", "tiny =", "resnet18 =", "resnet18 is one of this package's"),
        ("table-mine.toml", ', code = "tiny.py:TinyNet"', "", "networks: unknown network 'tiny'; there are: vgg16.*code = "),
        ("focal.py", "self.gamma = gamma", "self.gamma =", r"importing focal.py failed: SyntaxError: .*line 8"),
        ("focal.py", "class FocalLoss", "GONE\nclass FocalLoss", r"importing focal.py failed: NameError: .*\(focal.py, line 4: GONE\)"),
        ("focal.py", "feature_dim: int, classes: int, ", "", r"expected __init__\(self, feature_dim, classes"),
        ("focal.py", "*, gamma: float = 2.0, bias: bool = True", "**more", r"\*\*more does not say what FocalLoss takes"),
        ("focal.py", "gamma: float = 2.0", "gamma", "its parameter gamma must say what it is"),
        ("focal.py", "gamma: float = 2.0", "gamma: list = []", "must say what it is"),
        ("focal.py", "gamma: float", "label: float", "a TOML row cannot set its parameter label"),
        ("tiny.py", "width=1.0", "depth", r"TinyNet\(image_size\).*nothing gives it depth"),
        ("tiny.py", ", image_size, width=1.0", "", r"expected to call it as TinyNet\(image_size\)"),
    ],
)  # fmt: skip
def test_what_planning_can_see_is_told_with_the_tomls_name_and_row(folder, file, old, new, says):
    edit(folder / file, old, new)
    with pytest.raises(RegistryError, match=says) as caught:
        Registry.load(folder)
    assert "table-mine.toml" in str(caught.value)
    assert caught.value.exit_code == 2


def test_one_name_means_one_network_in_every_table(folder):
    (folder / "other.py").write_text(TINY)
    other = TABLE.replace('"mine"', '"other"').replace("tiny.py", "other.py").replace("cifar100", "lfw")
    (folder / "table-other.toml").write_text(other)
    with pytest.raises(RegistryError, match=r"tiny is other.py:TinyNet here and tiny.py:TinyNet in"):
        Registry.load(folder)


def test_a_change_of_an_own_file_or_of_what_it_imports_makes_older_code(folder):
    (folder / "parts").mkdir()
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "half.py").write_text("HALF = 0.5\n")
    edit(folder / "focal.py", "\nclass", "\nfrom parts.half import HALF\nclass")
    focal, plain = code_hash(config_of(folder, FOCAL_RUN)), code_hash(config_of(folder, PLAIN_RUN))
    assert {"focal.py", "tiny.py", "parts/half.py"} <= set(training_modules(config_of(folder, FOCAL_RUN)))
    edit(folder / "parts" / "half.py", "0.5", "0.25")
    assert code_hash(config_of(folder, FOCAL_RUN)) != focal
    assert code_hash(config_of(folder, PLAIN_RUN)) == plain
    focal = code_hash(config_of(folder, FOCAL_RUN))
    edit(folder / "focal.py", "Halves the loss.", "Divides it.")
    assert code_hash(config_of(folder, FOCAL_RUN)) == focal
    edit(folder / "tiny.py", "Conv2d(3, 8, 3)", "Conv2d(3, 8, 5)")
    assert code_hash(config_of(folder, FOCAL_RUN)) != focal
    assert code_hash(config_of(folder, PLAIN_RUN)) != plain


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("focal.py", "self.gamma = gamma", "self.gamma = gone", r"NameError: name 'gone' is not defined \(focal.py, line 8"),
        ("focal.py", "/ self.gamma", "/ self.gone", r"has no attribute 'gone' \(focal.py, line 11: return"),
        ("focal.py", "labels) / self.gamma", "labels).detach()", "does not depend on the features"),
        ("focal.py", "return super().criterion(inputs, labels) / self.gamma", "return inputs",
         r"expected the loss as a scalar, .* got torch.float32 of shape \(4, 10\)"),
        ("focal.py", "(CrossEntropy)", "(__import__('torch').nn.Module)", "expected a class derived from repro.losses.Class"),
        ("tiny.py", "self.feature_dim = 8", "self.width = 8", "an attribute feature_dim, a whole number; got NoneType None"),
        ("tiny.py", "self.feature_dim = 8", "self.feature_dim = 9",
         r"features, a floating-point tensor of shape \(4, 9\); got torch.float32 of shape \(4, 8\)"),
        ("tiny.py", "return self.first", "return self.second", r"no attribute 'second' \(tiny.py, line 11"),
        ("tiny.py", "(nn.Module)", "", "expected a torch.nn.Module|trying it failed"),
    ],
)  # fmt: skip
def test_what_only_running_a_loss_or_network_shows_is_told_with_the_users_line(folder, file, old, new, says):
    edit(folder / file, old, new)
    build = partial(losses.build, "focal.py:FocalLoss", 8, 10, folder, gamma=2.0)
    if file == "tiny.py":
        build = partial(models.build, "tiny.py:TinyNet", 32, folder=folder)
    with pytest.raises(OwnCodeError, match=says):
        build()


def test_a_loss_that_lacks_a_method_is_told_which(folder):
    (folder / "mine.py").write_text(
        "from repro.losses import ClassificationLoss\nclass Mine(ClassificationLoss): ..."
    )
    with pytest.raises(OwnCodeError, match=r"mine.py:Mine: it must define classify"):
        losses.build("mine.py:Mine", 8, 10, folder)


def test_a_loss_tried_draws_what_it_would_have_drawn(folder):
    import torch

    edit(folder / "focal.py", "/ self.gamma", "/ self.gamma + 0 * __import__('torch').rand(())")
    torch.manual_seed(1)
    mine = losses.build("focal.py:FocalLoss", 8, 10, folder, gamma=2.0)
    after = torch.rand(())
    torch.manual_seed(1)
    plain = losses.build("cross-entropy", 8, 10)
    assert torch.equal(mine.class_weights(), plain.class_weights())
    assert torch.equal(after, torch.rand(()))


def test_an_own_loss_that_fails_costs_its_run_alone_and_exit_code_1(folder):
    edit(folder / "focal.py", "self.gamma = gamma", "self.gamma = gamma.gone")
    words = ("--preset", "smoke", "--results", folder.parent / "results")
    done = repro("run", *words, cwd=folder.parent, check=1)
    assert "AttributeError: 'float' object has no attribute 'gone' (focal.py, line 8" in done.stderr
    assert "2 runs: 1 done, 1 failed" in done.stderr
    table = repro("aggregate", *words, cwd=folder.parent, check=0)
    assert "| Focal         | —: failed" in table.stdout


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A package beside this one that brings a loss and a network by entry points."""
    site = tmp_path / "site"
    package = site / "focalpkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "losses.py").write_text(FOCAL)
    (package / "networks.py").write_text(TINY)
    info = site / "focalpkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: focalpkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[repro.losses]\nfocal = focalpkg.losses:FocalLoss\n[repro.networks]\ntiny = focalpkg.networks:TinyNet\n"
    )
    monkeypatch.syspath_prepend(site)
    forget_code()
    return package


def test_another_packages_loss_and_network_go_by_their_entry_points(folder, installed):
    edit(folder / "table-mine.toml", '{label = "TinyNet", code = "tiny.py:TinyNet"}', '"TinyNet"')
    edit(folder / "table-mine.toml", "focal.py:FocalLoss", "focal")
    config = config_of(folder, FOCAL_RUN)
    assert (config.network, config.loss, config.loss_parameters["gamma"]) == ("tiny", "focal", 3.0)
    assert {"focalpkg.losses", "focalpkg.networks"} <= set(training_modules(config))
    assert losses.build("focal", 8, 10, gamma=2.0).gamma == 2.0
    assert models.build("tiny", 32).feature_dim == 8
