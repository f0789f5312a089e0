"""Ablations: what the paper leaves open, as runs; which cells a study selects, and what its file may say."""

import shutil
from pathlib import Path

import pytest
from smoke_project import ROOT

from repro.config import format_axis
from repro.errors import RegistryError, SelectionError, UsageError
from repro.registry import Registry, Selection

EXPERIMENTS = ROOT / "experiments"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(EXPERIMENTS)


def ids(registry: Registry, study: str, **selected) -> list[str]:
    return [cell.id for cell in registry.select_cells(Selection(studies=(study,), **selected))]


def test_the_point_vgg_is_four_networks_under_cross_entropy(registry):
    networks = ("vgg16", "vgg13", "vgg16-4096", "vgg-lsoftmax")
    assert ids(registry, "vgg") == [f"cifar100/{network}/cross-entropy" for network in networks]
    selection = Selection(studies=("vgg",), seeds=(0,))
    assert len(registry.select_runs(selection, registry.preset("paper"))) == 4


def test_a_study_has_each_baseline_and_each_alternative_once(registry):
    everything = ids(registry, "ambiguities")
    assert len(everything) == len(set(everything))
    assert set(everything) == {
        cell for ablation in registry.ablations for cell in ids(registry, ablation.name)
    }
    assert "cifar100/resnet18/scaled-bn-m1" in everything
    assert "tiny-imagenet/resnet18/scaled-bn-m1+statistics=training-set" in everything
    assert "cifar100/resnet18/affine-bn" in everything


@pytest.mark.parametrize("preset", ["paper", "quick", "smoke"])
def test_every_alternative_is_a_run_that_departs_from_its_baseline(registry, preset):
    chosen = registry.preset(preset)
    for cell in registry.select_cells(Selection(studies=("ambiguities",))):
        run = registry.parse(f"{cell.id}/seed0")
        assert run.cell == cell
        assert registry.config(run, chosen).seed == 0
    for variation in registry.variations("ambiguities"):
        assert (variation.cell == variation.baseline) is not variation.alternative.trains


def test_every_open_point_of_a_recipe_says_what_it_changes(registry):
    """The choices that presets.toml marks are points of the study, or nothing that changes a number much."""
    axes = {axis for each in registry.variations("ambiguities") for axis in each.alternative.set}
    assert axes >= {"rotation", "normalization", "stem_pool", "nesterov", "weight_decay_on", "bias"}
    assert axes >= {"distance", "projection", "statistics", "momentum_reset", "embedding"}


def test_what_decides_pedcc_is_studied_on_two_networks_and_the_vgg_at_64_px_too(registry):
    baselines = [f"cifar100/{network}/pedcc-s7.5-m0.35" for network in ("vgg16", "resnet18")]
    axes = ("", "+distance=element-mean", "+distance=sum")
    assert sorted(ids(registry, "pedcc-weight")) == sorted(cell + axis for cell in baselines for axis in axes)
    networks = ("vgg16", "vgg-lsoftmax", "vgg13")
    assert ids(registry, "vgg-64px") == [f"facescrub/{network}/cross-entropy" for network in networks]


def test_names_choose_among_a_studys_cells(registry):
    chosen = ids(registry, "ambiguities", tables=(1,), networks=("vgg*",), losses=("cross-*",))
    assert chosen == ids(registry, "vgg")
    assert all(name.startswith("tiny-imagenet/") for name in ids(registry, "stem", tables=(2,)))
    with pytest.raises(SelectionError, match="no cell of vgg matches the other options"):
        ids(registry, "vgg", networks=("resnet18",))


def test_an_unknown_study_lists_the_known_ones(registry):
    with pytest.raises(
        SelectionError, match="there is no study 'vg'; studies: ambiguities, vgg, vgg-64px, stem"
    ):
        ids(registry, "vg")


def test_a_study_takes_no_further_axis(registry):
    with pytest.raises(UsageError, match="--set and --study exclude one another"):
        ids(registry, "vgg", axes=(("rotation", 15),))


def test_a_project_without_the_file_has_no_study(tmp_path):
    folder = Path(shutil.copytree(EXPERIMENTS, tmp_path / "experiments"))
    (folder / "ambiguities.toml").unlink()
    with pytest.raises(SelectionError, match="there is no study 'vgg'; studies: none"):
        ids(Registry.load(folder), "vgg")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "stem"', 'name = "vgg"', r"point 3 \(vgg\): its name must be a new one"),
        ('name = "stem"', 'name = "ambiguities"', "its name must be a new one"),
        ('network = "vgg13"', 'network = "vgg14"', r"point 1 \(vgg\): unknown network 'vgg14'; there are: vgg16"),
        ('networks = ["vgg16"]', 'networks = ["vgg13"]', "unknown network 'vgg13'; there are: vgg16, resnet18"),
        ('loss = "affine-bn"', 'loss = "affine"', r"\(affine\): unknown loss 'affine'; there are: cross-entropy"),
        ("table = 2", "table = 4", r"\(stem\): there is no table 4; tables: 1, 2, 3"),
        ('table = 2\n', "", r"point 3 \(stem\): table: Field required"),
        ('set = { stem_pool', 'sets = { stem_pool', r"\(stem\): alternative 1: unknown key 'sets'; allowed: label, network, loss, set"),
        ('network = "vgg13"\n', "", "expected a network, a loss or a set, or else result"),
        ('images"\nresult = "best-epoch"', 'images"\nresult = "any-epoch"', "result: Input should be 'last-epoch' or 'best-epoch'"),
        ("question =", "ask =", r"point 1 \(vgg\): unknown key 'ask'; allowed: name, question, table"),
        ('[[points]]\nname = "vgg"', 'title = "x"\n[[points]]\nname = "vgg"', "unknown key 'title'; allowed: points"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_point(tmp_path, old, new, says):
    folder = Path(shutil.copytree(EXPERIMENTS, tmp_path / "experiments"))
    path = folder / "ambiguities.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RegistryError, match=says) as caught:
        Registry.load(folder)
    assert str(path) in str(caught.value)


def test_an_axis_of_an_alternative_stands_in_its_id(registry):
    for variation in registry.variations("ambiguities"):
        for axis, value in variation.alternative.set.items():
            assert f"+{axis}={format_axis(value)}" in variation.cell.id
