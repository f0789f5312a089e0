"""The registry: what is in it, how it is selected from, and what it says to a wrong file."""

import csv
import shutil
from pathlib import Path

import pytest

from repro.config import format_axis, parse_axis
from repro.errors import RegistryError, SelectionError, UsageError
from repro.registry import Registry, Selection

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(EXPERIMENTS)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the experiments that a test may spoil."""
    return Path(shutil.copytree(EXPERIMENTS, tmp_path / "experiments"))


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def ids(cells):
    return [cell.id for cell in cells]


def test_the_registry_counts_72_cells_and_216_runs(registry):
    assert len(registry.cells) == 72
    assert len(registry.select_runs(Selection(), registry.preset("paper"))) == 216
    assert len(set(ids(registry.cells))) == 72


def test_every_reported_number_is_the_papers(registry, request):
    path = EXPERIMENTS.parent.parent / "shared" / "paper" / "reported.csv"
    if not path.is_file():
        pytest.skip(f"the paper's numbers as a file are not here: {path}")
    networks = {"vgg": "vgg16"}
    datasets = {"tinyimagenet": "tiny-imagenet"}
    expected = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            name = row["loss"]
            if row["s"]:
                name += f"-s{row['s']}"
            if row["m"]:
                name += f"-m{row['m']}"
            network, dataset = row["network"], row["dataset"]
            key = f"{datasets.get(dataset, dataset)}/{networks.get(network, network)}/{name}"
            expected[key] = (int(row["table"]), float(row["mean_pct"]), float(row["std_pct"]))
    found = {cell.id: (cell.table, cell.reported.mean, cell.reported.std) for cell in registry.cells}
    assert found == expected


def test_the_papers_recipe_is_to_the_letter(registry):
    recipe = registry.preset("paper").recipe
    assert (recipe.batch_size, recipe.epochs, recipe.momentum, recipe.weight_decay) == (128, 100, 0.9, 5e-4)
    rates = [recipe.lr_at(epoch) for epoch in (0, 29, 30, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    assert (recipe.data, recipe.width, recipe.images_per_class) == ("real", 1.0, None)


def test_every_preset_but_the_papers_has_a_title(registry):
    assert {preset.name: bool(preset.title) for preset in registry.presets.values()} == {
        "paper": False,
        "quick": True,
        "smoke": True,
    }
    assert registry.preset("smoke").recipe.data == "generated"
    assert registry.preset("quick").recipe.data == "real"


def test_a_columns_losses_come_seed_by_seed(registry):
    runs = registry.select_runs(
        Selection(tables=(1,), networks=("vgg16", "resnet18")), registry.preset("paper")
    )
    order = [(run.cell.network, run.seed) for run in runs]
    assert order == [
        (network, seed) for network in ("vgg16", "resnet18") for seed in (0, 1, 2) for _ in range(8)
    ]


def test_selection_takes_globs_and_repeats(registry):
    selected = registry.select_cells(
        Selection(datasets=("cifar*",), networks=("resnet*",), losses=("scaled-bn-*", "cross-entropy"))
    )
    assert len(selected) == 8
    assert {cell.network for cell in selected} == {"resnet18", "resnet50"}


def test_a_network_outside_the_tables_is_selected_by_its_exact_name(registry):
    cells = registry.select_cells(Selection(tables=(1,), networks=("vgg13",), losses=("cross-entropy",)))
    assert ids(cells) == ["cifar100/vgg13/cross-entropy"]
    assert cells[0].reported is None


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        (Selection(networks=("resnet19",)), "no network matches 'resnet19'; there are: vgg16, resnet18"),
        (Selection(losses=("ours",)), "no loss matches 'ours'; there are: cross-entropy"),
        (Selection(datasets=("mnist",)), "there are: cifar100, tiny-imagenet, facescrub, lfw"),
        (
            Selection(tables=(4,)),
            "there is no table 4; tables: 1, 2, 3, cifar100-extended, .*lfw, .*tiny-imagenet-subset",
        ),
        (Selection(tables=(1,), networks=("vgg16",), losses=("nothing",)), "no loss matches 'nothing'"),
        (
            Selection(tables=(1,), datasets=("facescrub",)),
            "no data set matches 'facescrub'; there are: cifar100",
        ),
    ],
)
def test_a_selection_of_nothing_says_what_exists(registry, selection, says):
    with pytest.raises(SelectionError, match=says):
        registry.select_cells(selection)


@pytest.mark.parametrize(
    "run_id",
    [
        "cifar100/resnet18/scaled-bn-m1/seed0",
        "facescrub/vgg16/am-softmax-s7.5-m0.35/seed2",
        "cifar100/vgg-lsoftmax/cross-entropy/seed7",
        "cifar100/resnet18/cross-entropy+bias=false+rotation=15/seed0",
    ],
)
def test_an_id_names_its_run_and_back(registry, run_id):
    assert registry.parse(run_id).id == run_id


@pytest.mark.parametrize(
    ("run_id", "says"),
    [
        ("cifar100/resnet18/scaled-bn-m1", "is not a run id"),
        ("cifar100/resnet18/scaled-bn-m1/seed01", "is not a run id"),
        ("cifar100/resnet18/scaled-bn-m2/seed0", "has no row 'scaled-bn-m2'; it has: cross-entropy"),
        ("mnist/resnet18/scaled-bn-m1/seed0", "no table has the data set 'mnist'"),
        ("cifar100/resnet/scaled-bn-m1/seed0", "unknown network 'resnet'"),
        (
            "cifar100/resnet18/cross-entropy+rotation=15+bias=false/seed0",
            "write .*bias=false.rotation=15/seed0",
        ),
        ("cifar100/resnet18/cross-entropy+rotation=15.0/seed0", "write .*rotation=15/seed0"),
    ],
)
def test_a_wrong_id_says_what_is_wrong(registry, run_id, says):
    with pytest.raises(SelectionError, match=says):
        registry.parse(run_id)


def test_an_axis_changes_the_recipe_or_the_loss(registry):
    run = registry.parse("cifar100/resnet18/cross-entropy+bias=false+rotation=15/seed0")
    config = registry.config(run, registry.preset("paper"))
    assert config.recipe.rotation == 15
    assert config.loss_parameters == {"bias": False}
    assert run.cell.reported is None


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ("rotate=15", "unknown axis 'rotate'; the recipe has: data"),
        ("rotation=0", "is what the preset paper has anyway"),
        ("rotation=-3", "recipe.rotation|rotation: Input should be greater"),
        ("stem_pool=sometimes", "stem_pool: Input should be 'auto', 'never' or 'always'"),
    ],
)
def test_a_wrong_axis_says_what_is_allowed(registry, axes, says):
    run = registry.parse(f"cifar100/resnet18/cross-entropy+{axes}/seed0")
    with pytest.raises(UsageError, match=says):
        registry.config(run, registry.preset("paper"))


@pytest.mark.parametrize("value", [1e38, 1e6, 1e-7, 0.12345678, 15.0, 1 / 3])
def test_a_float_axis_comes_back_from_its_run_id_as_it_was(registry, value):
    """1e+38 would begin another axis, and six digits would train another lr than was asked for."""
    run = registry.parse(f"cifar100/resnet18/cross-entropy+lr={format_axis(value)}/seed0")
    assert registry.config(run, registry.preset("paper")).recipe.lr == value
    assert registry.parse(run.id) == run


@pytest.mark.parametrize("text", ["rotation", "=15", "rotation=", "a=b/c", "a=b+c"])
def test_an_axis_without_a_value_is_refused(text):
    with pytest.raises(UsageError, match="expected axis=value"):
        parse_axis(text)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("table1.toml", "margin = 0.35", "margn = 0.35", r"table1.toml: row 2 .*unknown key 'margn'; allowed: .*margin"),
        ("table1.toml", "margin = 0.35\n", "", r"table1.toml: row 2 .*margin: Field required"),
        ("table1.toml", 'loss = "pedcc"', 'loss = "pedc"', r"unknown loss 'pedc'; there are: cross-entropy, am-softmax"),
        ("table1.toml", 'loss = "pedcc"\n', "", r"row 4 .*missing key 'loss'; losses: cross-entropy"),
        ("table1.toml", "scale = 7.5", "scale = -1", r"row 2 .*scale: Input should be greater than 0, got -1"),
        ("table1.toml", 'name = "scaled-bn-m1"', 'name = "scaled-bn-m0.9"', "duplicate cell: 'scaled-bn-m0.9' on cifar100 is already in .*table1.toml"),
        ("table1.toml", "scale = 0.9", "scale = 0.8", "duplicate cell: 'scaled-bn-m0.9' .*same parameters as 'scaled-bn-m0.8'"),
        ("table1.toml", "vgg16 = { mean = 71.86, std = 0.14 }\n", "", "row 1 .*reported: expected vgg16, resnet18, resnet50; got resnet18, resnet50"),
        ("table1.toml", 'resnet18 = "ResNet-18"', 'resnet19 = "ResNet-18"', "unknown network 'resnet19'; there are"),
        ("table1.toml", "mean = 71.86", "mean = 171.86", "mean: Input should be less than or equal to 100"),
        ("table1.toml", 'name = "cross-entropy"', 'name = "../x"', "cannot be a name"),
        ("table1.toml", "table = 1", "table = 2", "table = 2 is already in .*table1.toml"),
        ("table2.toml", 'dataset = "tiny-imagenet"', 'dataset = "cifar100"', "duplicate cell: .* on cifar100 is already in .*table1.toml"),
        ("table1.toml", "table = 1", "table = ", "table1.toml: not valid TOML"),
        ("presets.toml", "momentum = 0.9", "momentun = 0.9", "presets.toml: recipe: unknown key 'momentun'; allowed: .*momentum"),
        ("presets.toml", "momentum = 0.9\n", "", r"momentum: Field required"),
        ("presets.toml", "width = 0.25", "width = 0", r"\[presets.quick\]: recipe.width: Input should be greater than 0"),
        ("presets.toml", "lr_drops = [30, 60, 90]", "lr_drops = [60, 30]", "lr_drops must be positive and increasing"),
        ("presets.toml", 'title = "QUICK"', 'title = ""', "only the preset paper may have an empty title"),
        ("presets.toml", "[presets.paper]", "[presets.letter]", "only the preset paper|the preset paper is missing"),
        ("presets.toml", "classes = 10\n", "", "generated data need classes"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_key_and_what_is_allowed(folder, file, old, new, says):
    spoil(folder / file, old, new)
    with pytest.raises(RegistryError, match=says) as caught:
        Registry.load(folder)
    assert file.split(".")[0][:5] in str(caught.value)


def test_a_missing_presets_file_is_named(folder):
    (folder / "presets.toml").unlink()
    with pytest.raises(RegistryError, match=r"presets.toml does not exist"):
        Registry.load(folder)


def test_an_unknown_preset_lists_the_known_ones(registry):
    with pytest.raises(UsageError, match="presets: paper, quick, smoke"):
        registry.preset("fast")


def test_a_table_that_the_paper_lacks_is_selected_by_its_name_or_data_set_alone(registry):
    assert {cell.table for cell in registry.select_cells(Selection())} == {1, 2, 3}
    by_name = registry.select_cells(Selection(tables=("lfw",), losses=("cross-entropy",)))
    assert by_name == registry.select_cells(Selection(datasets=("lfw",), losses=("cross-entropy",)))
    assert ids(by_name) == [f"lfw/{network}/cross-entropy" for network in ("vgg16", "resnet18", "resnet50")]
    assert {cell.reported for cell in by_name} == {None}
    assert registry.parse("lfw/resnet18/cross-entropy/seed0").cell == by_name[1]


def test_a_table_like_another_has_its_losses_and_networks_and_nothing_reported(registry):
    paper, other = registry.table(3), registry.table("lfw")
    assert other.networks == paper.networks
    assert [(row.name, row.parameters) for row in other.rows] == [
        (row.name, row.parameters) for row in paper.rows
    ]
    assert not any(row.reported for row in other.rows)
    assert (paper.heading, other.heading) == ("Table 3: FaceScrub", "LFW, deep-funneled")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("like = 3", "like = 7", "like: there is no table 7 with rows of its own; tables: 1, 2, 3"),
        ("like = 3", 'like = "tiny-imagenet-subset"', "there is no table 'tiny-imagenet-subset'"),
        ("like = 3", "likes = 3", "unknown key 'likes'; allowed: table, dataset, title"),
        ('table = "lfw"', 'table = "LFW"', "'LFW' cannot be a name"),
        ('table = "lfw"', 'table = "3"', "write the number 3 without quotes"),
        ('table = "lfw"', "table = 3", "table = 3 is already in"),
        ('table = "lfw"', "table = true", "table: True cannot be a name"),
        (
            'dataset = "lfw"',
            'dataset = "facescrub"',
            "duplicate cell: 'cross-entropy' on facescrub is already in",
        ),
    ],
)
def test_a_wrong_table_of_ones_own_names_the_file_and_what_is_allowed(folder, old, new, says):
    path = folder / "table-lfw.toml"
    spoil(path, old, new)
    with pytest.raises(RegistryError, match=r"table-lfw\.toml") as failure:
        Registry.load(folder)
    assert says in str(failure.value)


def test_rows_of_ones_own_need_no_reported_number(folder):
    (folder / "table-mine.toml").write_text(
        'table = "mine"\ndataset = "mine"\ntitle = "Mine"\n[networks]\nresnet18 = "ResNet-18"\n'
        '[[rows]]\nname = "plain"\nlabel = "Plain"\nloss = "cross-entropy"\n'
    )
    registry = Registry.load(folder)
    cells = registry.select_cells(Selection(tables=("mine",)))
    assert [(cell.id, cell.reported) for cell in cells] == [("mine/resnet18/plain", None)]
    assert not registry.table("mine").reports


def test_further_losses_extend_each_table_of_the_paper_and_are_never_counted_with_it(registry):
    assert len(registry.cells) == 72
    for number in (1, 2, 3):
        (further,) = registry.extensions(number)
        paper = registry.table(number)
        assert (further.dataset, further.networks) == (paper.dataset, paper.networks)
        assert not {row.name for row in further.rows} & {row.name for row in paper.rows}
        assert not further.reports
        assert {row.name for row in further.rows} == {
            row.name for row in registry.table("cifar100-extended").rows
        }
    assert registry.extensions("lfw") == ()


@pytest.mark.parametrize(
    "selection", [Selection(), Selection(datasets=("cifar100",)), Selection(tables=(1,))]
)
def test_a_table_that_extends_another_is_selected_by_its_name_alone(registry, selection):
    assert {cell.table for cell in registry.select_cells(selection)} <= {1, 2, 3}
    cells = registry.select_cells(Selection(tables=("cifar100-extended",), losses=("logit-scale-s2",)))
    assert ids(cells) == [
        f"cifar100/{network}/logit-scale-s2" for network in ("vgg16", "resnet18", "resnet50")
    ]


def test_a_loss_outside_the_selection_is_said_to_be_elsewhere(registry):
    with pytest.raises(
        SelectionError, match=r"no loss matches 'logit-norm.*'.*--table cifar100-extended has it"
    ):
        registry.select_cells(Selection(datasets=("cifar100",), losses=("logit-norm*",)))


def test_an_id_finds_its_row_in_whichever_table_of_the_data_set_has_it(registry):
    run = registry.parse("cifar100/resnet18/logit-scale-s2/seed0")
    assert run.cell.table == "cifar100-extended"
    assert registry.config(run, registry.preset("paper")).loss_parameters == {"scale": 2.0, "bias": False}
    assert registry.parse("cifar100/resnet18/cross-entropy/seed0").cell.table == 1


def test_a_second_table_of_a_data_set_may_share_no_cell_with_the_first(folder):
    rows = '[networks]\nresnet18 = "R"\n[[rows]]\nname = "{}"\nlabel = "x"\nloss = "scaled-bn"\nscale = {}\n'
    head = 'table = "mine"\ndataset = "cifar100"\ntitle = "Mine"\n'
    mine = folder / "table-mine.toml"
    mine.write_text(head + rows.format("scaled-bn-m3", 3.0))
    registry = Registry.load(folder)
    assert registry.parse("cifar100/resnet18/scaled-bn-m3/seed0").cell.table == "mine"
    mine.write_text(head + rows.format("scaled-bn-m1", 3.0))
    with pytest.raises(
        RegistryError, match=r"duplicate cell: 'scaled-bn-m1' on cifar100 is already in .*table1\.toml"
    ):
        Registry.load(folder)
    mine.write_text(head + rows.format("scaled-bn-m3", 1.0))
    with pytest.raises(
        RegistryError, match=r"'scaled-bn-m3' on cifar100 is the same loss .* as 'scaled-bn-m1' in"
    ):
        Registry.load(folder)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("extends = 2", "extends = 9", "extends: there is no table 9 with rows of its own; tables: 1, 2, 3"),
        ("extends = 2", 'extends = "cifar100-extended"', "there is no table 'cifar100-extended'"),
        (
            "extends = 2",
            'extends = 2\ndataset = "x"',
            "unknown key 'dataset'; allowed: table, title, extends",
        ),
        ("extends = 2", "extends = 1", "on cifar100 is already in"),
    ],
)
def test_a_wrong_extension_names_the_file_and_what_is_allowed(folder, old, new, says):
    spoil(folder / "table-tiny-imagenet-extended.toml", old, new)
    with pytest.raises(RegistryError) as failure:
        Registry.load(folder)
    assert says in str(failure.value)
