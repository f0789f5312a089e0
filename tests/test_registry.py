"""The registry: its tables, presets and ablations, how it is selected from, what it says to a wrong file."""

import csv
import re
import shutil
from pathlib import Path

import pytest
from smoke_project import ROOT, edit

from repro.config import format_axis, parse_grid
from repro.errors import RegistryError, SelectionError, UsageError
from repro.registry import Registry, Selection

EXPERIMENTS = ROOT / "experiments"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the experiments that a test may spoil."""
    return Path(shutil.copytree(EXPERIMENTS, tmp_path / "experiments"))


def ids(registry: Registry, study: str = "", **selected) -> list[str]:
    selection = Selection(studies=(study,) if study else (), **selected)
    return [cell.id for cell in registry.select_cells(selection)]


def test_the_registry_counts_72_cells_and_216_runs(registry):
    assert len(set(ids(registry))) == len(registry.cells) == 72
    assert len(registry.select_runs(Selection(), registry.preset("paper"))) == 216
    titled = {preset.name: bool(preset.title) for preset in registry.presets.values()}
    assert titled == {"paper": False, "quick": True, "smoke": True}


def test_every_reported_number_is_the_papers(registry):
    path = ROOT.parent / "shared" / "paper" / "reported.csv"
    if not path.is_file():
        pytest.skip(f"the paper's numbers as a file are not here: {path}")
    names = {"vgg": "vgg16", "tinyimagenet": "tiny-imagenet"}
    expected = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        loss = "".join([row["loss"], *(f"-{key}{row[key]}" for key in ("s", "m") if row[key])])
        place = [names.get(row[key], row[key]) for key in ("dataset", "network")]
        numbers = int(row["table"]), float(row["mean_pct"]), float(row["std_pct"])
        expected["/".join([*place, loss])] = numbers
    found = {cell.id: (cell.table, cell.reported.mean, cell.reported.std) for cell in registry.cells}
    assert found == expected


def test_the_papers_recipe_is_to_the_letter(registry):
    recipe = registry.preset("paper").recipe
    assert (recipe.batch_size, recipe.epochs, recipe.momentum, recipe.weight_decay) == (128, 100, 0.9, 5e-4)
    rates = [recipe.lr_at(epoch) for epoch in (0, 29, 30, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    assert (recipe.data, recipe.width, recipe.images_per_class) == ("real", 1.0, None)


def test_a_columns_losses_come_seed_by_seed(registry):
    selection = Selection(tables=(1,), networks=("vgg16", "resnet18"))
    runs = registry.select_runs(selection, registry.preset("paper"))
    order = [(run.cell.network, run.seed) for run in runs]
    assert order == [(name, seed) for name in ("vgg16", "resnet18") for seed in (0, 1, 2) for _ in range(8)]


@pytest.mark.parametrize(
    ("selection", "cells"),
    [
        ({"datasets": ["cifar*"], "networks": ["vgg16"], "losses": ["*-m1", "cross-*"]},
         ["cifar100/vgg16/cross-entropy", "cifar100/vgg16/scaled-bn-m1"]),
        # A network outside the tables, by its exact name.
        ({"tables": [1], "networks": ["vgg13"], "losses": ["cross-entropy"]}, ["cifar100/vgg13/cross-entropy"]),
        # Tables that the paper lacks, by name; those that extend no other by their data set too.
        ({"tables": ["lfw"], "networks": ["vgg16"], "losses": ["cross-*"]}, ["lfw/vgg16/cross-entropy"]),
        ({"datasets": ["lfw"], "networks": ["vgg16"], "losses": ["cross-*"]}, ["lfw/vgg16/cross-entropy"]),
        ({"tables": ["cifar100-extended"], "networks": ["vgg16"], "losses": ["logit-scale-s2"]},
         ["cifar100/vgg16/logit-scale-s2"]),
        ({"networks": ["vgg16"], "losses": ["cross-*"]},
         [f"{data}/vgg16/cross-entropy" for data in ("cifar100", "tiny-imagenet", "facescrub")]),
    ],
)  # fmt: skip
def test_a_selection_is_of_the_papers_tables_unless_it_names_another(registry, selection, cells):
    chosen = {name: tuple(values) for name, values in selection.items()}
    assert ids(registry, **chosen) == cells


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ({"networks": ("resnet19",)}, "no network matches 'resnet19'; there are: vgg16, resnet18"),
        ({"datasets": ("mnist",)}, "there are: cifar100, tiny-imagenet, facescrub, lfw"),
        ({"tables": (4,)}, "there is no table 4; tables: 1, 2, 3, cifar100-extended, .*lfw"),
        ({"tables": (1,), "networks": ("vgg16",), "losses": ("ours",)}, "no loss matches 'ours'; there are: cross"),
        ({"datasets": ("cifar100",), "losses": ("logit-norm*",)}, "--table cifar100-extended has it"),
        ({"studies": ("vg",)}, "there is no study 'vg'; studies: ambiguities, vgg, vgg-64px, stem"),
        ({"studies": ("vgg",), "networks": ("resnet18",)}, "no cell of vgg matches the other options"),
        ({"studies": ("vgg",), "axes": (("rotation", 15),)}, "--set and --study exclude one another"),
    ],
)  # fmt: skip
def test_a_selection_of_nothing_says_what_exists(registry, selection, says):
    with pytest.raises(UsageError, match=says):
        registry.select_cells(Selection(**selection))


@pytest.mark.parametrize(
    ("run_id", "table"),
    [
        ("cifar100/resnet18/scaled-bn-m1/seed0", 1),
        ("facescrub/vgg16/am-softmax-s7.5-m0.35/seed2", 3),
        ("cifar100/vgg-lsoftmax/cross-entropy/seed7", 1),
        ("cifar100/resnet18/logit-scale-s2/seed0", "cifar100-extended"),
    ],
)
def test_an_id_names_its_run_and_back(registry, run_id, table):
    run = registry.parse(run_id)
    assert (run.id, run.cell.table) == (run_id, table)


@pytest.mark.parametrize(
    ("run_id", "says"),
    [
        ("cifar100/resnet18/scaled-bn-m1", "is not a run id"),
        ("cifar100/resnet18/scaled-bn-m1/seed01", "is not a run id"),
        ("cifar100/resnet18/scaled-bn-m2/seed0", "has no row 'scaled-bn-m2'; it has: cross-entropy"),
        ("mnist/resnet18/scaled-bn-m1/seed0", "no table has the data set 'mnist'"),
        ("cifar100/resnet/scaled-bn-m1/seed0", "unknown network 'resnet'"),
        ("cifar100/resnet18/cross-entropy+rotation=15+bias=false/seed0", "write .*bias=false.rotation=15/seed0"),
        ("cifar100/resnet18/cross-entropy+rotation=15.0/seed0", "write .*rotation=15/seed0"),
        ("cifar100/resnet18/cross-entropy+lr=1+lr=x/seed0", "not in canonical form"),
        ("cifar100/resnet18/cross-entropy+rotation/seed0", "expected name=value"),
        ("cifar100/resnet18/cross-entropy+rotate=15/seed0", "unknown override 'rotate'; the recipe has: data"),
        ("cifar100/resnet18/cross-entropy+rotation=0/seed0", "is already the default in preset paper"),
        ("cifar100/resnet18/cross-entropy+rotation=-3/seed0", "rotation: Input should be greater"),
        ("cifar100/resnet18/cross-entropy+stem_pool=no/seed0", "stem_pool: Input should be 'auto', 'never'"),
    ],
)  # fmt: skip
def test_a_wrong_id_says_what_is_wrong(registry, run_id, says):
    with pytest.raises(UsageError, match=says):
        registry.config(registry.parse(run_id), registry.preset("paper"))


def test_a_grid_is_every_combination_and_the_value_of_the_preset_is_the_cell_itself(registry):
    cell = "cifar100/vgg16/cross-entropy"
    grid = parse_grid(["rotation=15,0", "lr=0.05,0.10,0.1"])
    selection = Selection(tables=(1,), networks=("vgg16",), losses=("cross-entropy",), seeds=(0,), axes=grid)
    paper = registry.preset("paper")
    runs = registry.select_runs(selection, paper)
    found = {run.cell.id: run.cell.reported for run in runs}
    assert len(found) == len(runs)
    assert found == {
        f"{cell}+lr=0.05+rotation=15": None,
        f"{cell}+rotation=15": None,
        f"{cell}+lr=0.05": None,
        cell: registry.table(1).row("cross-entropy").reported["vgg16"],
    }
    # A parameter of the loss: each row has its own default.
    margins = Selection(tables=(1,), networks=("vgg16",), losses=("am-*",), axes=parse_grid(["scale=7.5,10"]))
    found = {run.cell.row + run.cell.id.partition("+")[2] for run in registry.select_runs(margins, paper)}
    rows = ("am-softmax-s7.5-m0.35", "am-softmax-s10-m0.5")
    assert found == {*rows, f"{rows[0]}scale=10", f"{rows[1]}scale=7.5"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            ["lr=0.1", "bias=true", "lr=0.2,0.10"],
            "--set lr is given twice; for a grid write --set lr=0.1,0.2$",
        ),
        (["lr=0.1,"], "'lr=' is not an override; expected name=value"),
        (["rotation"], "'rotation' is not an override"),
    ],
)
def test_a_wrong_grid_says_what_is_expected(given, says):
    with pytest.raises(UsageError, match=says):
        parse_grid(given)


@pytest.mark.parametrize("value", [1e38, 1e6, 1e-7, 0.12345678, 15.0, 1 / 3])
def test_a_float_axis_comes_back_from_its_run_id_as_it_was(registry, value):
    """1e+38 would begin another axis, and six digits would train another lr than was asked for."""
    run = registry.parse(f"cifar100/resnet18/cross-entropy+bias=false+lr={format_axis(value)}/seed0")
    config = registry.config(run, registry.preset("paper"))
    assert (config.recipe.lr, config.loss_parameters, run.cell.reported) == (value, {"bias": False}, None)
    assert registry.parse(run.id) == run


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("table1", "margin = 0.35", "margn = 0.35", "row 2 .*unknown key 'margn'; allowed: .*margin"),
        ("table1", "margin = 0.35\n", "", "row 2 .*margin: Field required"),
        ("table1", 'loss = "pedcc"', 'loss = "pedc"', "unknown loss 'pedc'; there are: cross-entropy, am-softmax"),
        ("table1", 'loss = "pedcc"\n', "", "row 4 .*missing key 'loss'; losses: cross-entropy"),
        ("table1", "scale = 7.5", "scale = -1", "row 2 .*scale: Input should be greater than 0, got -1"),
        ("table1", '"scaled-bn-m1"', '"scaled-bn-m0.9"', "duplicate cell: 'scaled-bn-m0.9' on cifar100"),
        ("table1", "scale = 0.9", "scale = 0.8", "'scaled-bn-m0.9' .*same parameters as 'scaled-bn-m0.8'"),
        ("table1", "vgg16 = { mean = 71.86, std = 0.14 }\n", "", "row 1 .*reported: expected vgg16, .*; got resnet18"),
        ("table1", 'resnet18 = "ResNet-18"', 'resnet19 = "ResNet-18"', "unknown network 'resnet19'; there are"),
        ("table1", "mean = 71.86", "mean = 171.86", "mean: Input should be less than or equal to 100"),
        ("table1", 'name = "cross-entropy"', 'name = "../x"', "cannot be a name"),
        ("table1", "table = 1", "table = ", "table1.toml: not valid TOML"),
        ("table2", 'dataset = "tiny-imagenet"', 'dataset = "cifar100"', "duplicate cell: .* is already in .*table1"),
        ("table-lfw", "like = 3", "like = 7", "like: there is no table 7 with rows of its own; tables: 1, 2, 3"),
        ("table-lfw", "like = 3", "likes = 3", "unknown key 'likes'; allowed: table, dataset, title"),
        ("table-lfw", 'table = "lfw"', 'table = "3"', "write the number 3 without quotes"),
        ("table-lfw", 'table = "lfw"', "table = 3", "table = 3 is already in"),
        ("table-lfw", 'table = "lfw"', "table = true", "table: True cannot be a name"),
        ("table-tiny-imagenet-extended", "extends = 2", "extends = 9", "extends: there is no table 9"),
        ("table-tiny-imagenet-extended", "extends = 2", 'extends = 2\ndataset = "x"', "unknown key 'dataset'"),
        ("table-tiny-imagenet-extended", "extends = 2", "extends = 1", "on cifar100 is already in"),
        ("presets", "momentum = 0.9", "momentun = 0.9", "recipe: unknown key 'momentun'; allowed: .*momentum"),
        ("presets", "momentum = 0.9\n", "", "momentum: Field required"),
        ("presets", "width = 0.25", "width = 0", r"\[presets.quick\]: recipe.width: Input should be greater than 0"),
        ("presets", "lr_drops = [30, 60, 90]", "lr_drops = [60, 30]", "lr_drops must be positive and increasing"),
        ("presets", 'title = "QUICK"', 'title = ""', "only the preset paper may have an empty title"),
        ("presets", "[presets.paper]", "[presets.letter]", "only the preset paper|the preset paper is missing"),
        ("presets", "classes = 10\n", "", "data = .digits. needs classes"),
        ("ambiguities", 'name = "stem"', 'name = "vgg"', r"point 3 \(vgg\): its name must be a new one"),
        ("ambiguities", 'name = "stem"', 'name = "ambiguities"', "its name must be a new one"),
        ("ambiguities", 'network = "vgg13"', 'network = "vgg14"', r"point 1 \(vgg\): unknown network 'vgg14'; there are: vgg16"),
        ("ambiguities", 'networks = ["vgg16"]', 'networks = ["vgg13"]', "unknown network 'vgg13'; there are: vgg16, resnet18"),
        ("ambiguities", 'loss = "affine-bn"', 'loss = "affine"', r"\(affine\): unknown loss 'affine'; there are: cross-entropy"),
        ("ambiguities", "table = 2", "table = 4", r"\(stem\): there is no table 4; tables: 1, 2, 3"),
        ("ambiguities", 'table = 2\n', "", r"point 3 \(stem\): table: Field required"),
        ("ambiguities", 'set = { stem_pool', 'sets = { stem_pool', r"\(stem\): alternative 1: unknown key 'sets'; allowed: label, network, loss, set"),
        ("ambiguities", 'network = "vgg13"\n', "", "expected a network, a loss or a set, or else result"),
        ("ambiguities", 'images"\nresult = "best-epoch"', 'images"\nresult = "any-epoch"', "result: Input should be 'last-epoch' or 'best-epoch'"),
        ("ambiguities", "question =", "ask =", r"point 1 \(vgg\): unknown key 'ask'; allowed: name, question, table"),
        ("ambiguities", '[[points]]\nname = "vgg"', 'title = "x"\n[[points]]\nname = "vgg"', "unknown key 'title'; allowed: points"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_key_and_what_is_allowed(folder, file, old, new, says):
    edit(folder / f"{file}.toml", old, new)
    with pytest.raises(RegistryError, match=says) as caught:
        Registry.load(folder)
    # Of two tables that have the same number or cell, either may be named.
    assert re.search(rf"{folder}/(presets|ambiguities|table.*)\.toml", str(caught.value))


def test_a_table_like_another_or_one_that_extends_it_has_its_networks_and_nothing_reported(registry):
    paper, like, (further,) = registry.table(3), registry.table("lfw"), registry.extensions(3)
    assert like.networks == further.networks == paper.networks
    parameters = [[(row.name, row.parameters) for row in table.rows] for table in (like, paper)]
    assert parameters[0] == parameters[1]
    assert not {row.name for row in further.rows} & {row.name for row in paper.rows}
    assert (like.reports, further.reports, paper.reports) == (False, False, True)
    assert (paper.heading, like.heading) == ("Table 3: FaceScrub", "LFW, deep-funneled")


def test_a_table_of_the_users_own_needs_no_reported_number_and_shares_no_cell_with_another(folder):
    mine = folder / "table-mine.toml"

    def load(name: str, scale: float) -> Registry:
        mine.write_text(
            'table = "mine"\ndataset = "cifar100"\ntitle = "Mine"\n[networks]\nresnet18 = "R"\n[[rows]]\n'
            f'name = "{name}"\nlabel = "x"\nloss = "scaled-bn"\nscale = {scale}\n'
        )
        return Registry.load(folder)

    cell = load("scaled-bn-m3", 3.0).parse("cifar100/resnet18/scaled-bn-m3/seed0").cell
    assert (cell.table, cell.reported) == ("mine", None)
    with pytest.raises(RegistryError, match=r"duplicate cell: 'scaled-bn-m1' .*already in .*table1\.toml"):
        load("scaled-bn-m1", 3.0)
    with pytest.raises(
        RegistryError, match=r"'scaled-bn-m3' on cifar100 is the same loss .* as 'scaled-bn-m1'"
    ):
        load("scaled-bn-m3", 1.0)


def test_a_missing_presets_file_is_named(folder):
    (folder / "presets.toml").unlink()
    with pytest.raises(RegistryError, match=r"presets.toml does not exist"):
        Registry.load(folder)


def test_labels_of_a_table_select_as_names_do_and_a_typo_is_answered_with_the_name(registry):
    labels = {"networks": ("ResNet-18",), "losses": ("Scaled BN (m = 1)",), "datasets": ("CIFAR-100",)}
    assert ids(registry, **labels) == ["cifar100/resnet18/scaled-bn-m1"]
    labels = [row.label for row in registry.table(1).rows]
    assert len(registry.select_cells(Selection(losses=tuple(labels)))) == 72
    for wrong, meant in {
        "networks": ("renset18", "resnet18"),
        "losses": ("scaled-bn-m2", "scaled-bn-m1"),
    }.items():
        with pytest.raises(SelectionError, match=rf"Did you mean {meant[1]}\?"):
            registry.select_cells(Selection(**{wrong: (meant[0],)}))


# Ablations: what the paper leaves open, as runs


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
    assert axes >= {"rotation", "normalization", "stem_pool", "nesterov", "weight_decay_on", "bias", "distance",
                    "projection", "statistics", "momentum_reset", "embedding"}  # fmt: skip


def test_names_choose_among_a_studys_cells(registry):
    chosen = ids(registry, "ambiguities", tables=(1,), networks=("vgg*",), losses=("cross-*",))
    assert chosen == ids(registry, "vgg")
    assert all(name.startswith("tiny-imagenet/") for name in ids(registry, "stem", tables=(2,)))


def test_a_project_without_the_file_has_no_study(folder):
    (folder / "ambiguities.toml").unlink()
    with pytest.raises(SelectionError, match="there is no study 'vgg'; studies: none"):
        ids(Registry.load(folder), "vgg")
