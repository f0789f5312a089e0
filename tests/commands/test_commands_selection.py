"""One selection for every command that reads runs: the same options, labels and errors; what a subset means."""

import base64
import json
import shutil

import pytest
from click.testing import CliRunner
from smoke_project import PROJECT, ROOT, RUN, record_of, smoke_context

from repro.cli import main

CELL = RUN.rpartition("/")[0]
COMMANDS = ("plan", "run", "status", "aggregate", "figures", "report", "claims", "show", "bundle", "compare")


def asked(*words: object):
    return CliRunner(env={"REPRO_ROOT": str(PROJECT)}).invoke(main, [*map(str, words)])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_mistyped_gets_the_same_answer_everywhere(command, tmp_path):
    words = [ROOT / "results", ROOT / "results"] if command == "compare" else ["--results", tmp_path]
    done = asked(command, *words, "--preset", "smoke", "--loss", "crossentropi")
    assert done.exit_code == 2
    assert "no loss matches 'crossentropi'" in done.stderr
    assert "Did you mean cross-entropy?" in done.stderr


def test_labels_select_what_names_do(tmp_path):
    words = ("plan", "--json", "--table", "1,2", "--seed", "0,1", "--results", tmp_path)
    named = asked(*words, "--network", "resnet18", "--loss", "am-softmax-s10-m0.5")
    assert (
        named.stdout
        == asked(*words, "--network", "ResNet-18", "--loss", "AM-Softmax Loss (s = 10, m = 0.5)").stdout
    )
    assert json.loads(named.stdout)["runs"] == 4


@pytest.mark.parametrize("command", ["figures", "report", "claims", "aggregate"])
def test_a_mean_over_some_of_its_seeds_is_refused_with_what_to_do_instead(command, tmp_path):
    done = asked(command, "--seed", "0", "--results", tmp_path)
    assert done.exit_code == 2
    assert "`repro aggregate --by run --format csv --seed 0 --results" in done.stderr


@pytest.mark.parametrize("command", ["figures", "report", "claims"])
@pytest.mark.parametrize("option", [("--set", "lr=0.05"), ("--study", "vgg")])
def test_overrides_and_ablations_are_refused_where_only_the_papers_cells_are_shown(command, option, tmp_path):
    done = asked(command, *option, "--results", tmp_path)
    assert (done.exit_code, "`repro aggregate --study ambiguities" in done.stderr) == (2, True)


def test_single_runs_can_be_listed_by_seed(trained):
    words = ("--preset", "smoke", "--results", trained.project.results, "--by", "run", "--format", "json")
    rows = json.loads(
        asked("aggregate", *words, "--seed", "0", "--network", "resnet18", "--table", "1").stdout
    )
    assert (len(rows), {row["seed"] for row in rows}) == (8, {0})


def test_a_subset_has_the_verdicts_that_all_cells_have(trained):
    """The correction is over all the paper's cells, whichever are shown."""
    words = ("claims", "--json", "--preset", "smoke", "--results", trained.project.results)
    whole, part = (
        json.loads(asked(*words, *more).stdout) for more in ((), ("--table", "1", "--network", "ResNet-18"))
    )
    assert [cell for cell in whole["cells"] if cell["id"].startswith("cifar100/resnet18/")] == part["cells"]
    assert (len(whole["claims"]), part["claims"]) == (6, [])
    none = asked(*words, "--dataset", "lfw")
    assert (none.exit_code, "none of the paper's cells" in none.stderr) == (2, True)


def test_the_report_of_a_subset_has_its_cells_alone_and_every_claim(trained, tmp_path):
    words = ("report", "--preset", "smoke", "--results", trained.project.results, "--output")
    assert asked(*words, tmp_path / "part.html", "--loss", "scaled-bn-m1").exit_code == 0
    page = (tmp_path / "part.html").read_text()
    assert f'id="cell-{CELL.replace("/", "_")}"' in page
    assert 'id="cell-cifar100_resnet18_cross-entropy"' not in page


def test_a_cell_is_shown_with_its_runs_mean_and_verdict(trained):
    words = ("--preset", "smoke", "--results", trained.project.results)
    accuracy = record_of(trained, RUN).result.accuracy
    text = asked("show", CELL, *words).stdout
    assert "'nothing' is not a run id" in asked("show", "nothing", *words).stderr
    assert text.splitlines()[:4] == [
        CELL,
        f"  seed 0: {accuracy:.2f} % top-1",
        f"  mean: {accuracy:.2f} (n = 1)",
        "  reported: 76.08 ± 0.30",
    ]
    assert "  verdict: Not comparable: " in text
    assert (
        asked("show", "--network", "ResNet-18", "--loss", "scaled-bn-m1", "--table", "1", *words).stdout
        == text
    )
    (row,) = json.loads(asked("show", CELL, "--json", *words).stdout)
    assert (row["mean"], row["n"]) == (accuracy, 1)
    by_seed = asked(
        "show", "--table", "1", "--network", "resnet18", "--loss", "scaled-bn-m1", "--seed", "0", *words
    )
    assert by_seed.stdout == asked("show", RUN, *words).stdout
    for wrong in ((), (CELL, "--loss", "cross-entropy")):
        assert "either an id or options" in asked("show", *wrong, *words).stderr


def test_a_dry_run_lists_what_it_would_train_and_writes_nothing(tmp_path):
    words = (
        "run",
        "--preset",
        "smoke",
        "--results",
        tmp_path / "results",
        "--table",
        "1",
        "--network",
        "resnet18",
    )
    done = asked(*words, "--loss", "scaled*", "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.startswith("preset smoke: ")
    assert done.stdout.splitlines()[-4] == "would train 3 runs, in this order:"
    assert done.stdout.splitlines()[-1] == f"  {RUN}"
    assert not (tmp_path / "results").exists()


def test_two_sets_of_results_are_compared_cell_by_cell(trained, tmp_path):
    """Ours against a bundle in which one of two records has another accuracy."""
    theirs = shutil.copytree(trained.project.results, tmp_path / "theirs")
    context = smoke_context(None, theirs)
    other = "cifar100/resnet18/cross-entropy/seed0"
    record = record_of(context, other)
    higher = record.result.accuracy + 5.0
    right = record.result.correct + 4
    images = base64.b64encode(((1 << right) - 1).to_bytes(10, "big")).decode()
    better = {"correct": right, "accuracy": higher, "correct_images": images}
    better |= {"best_accuracy": 100.0, "best_epoch": record.curve[0].epoch}
    curve = [each.model_copy() for each in record.curve]
    curve[0] = curve[0].model_copy(update={"test_accuracy": 100.0})
    curve[-1] = curve[-1].model_copy(update={"test_accuracy": higher})
    changed = {"result": record.result.model_copy(update=better), "curve": tuple(curve)}
    context.project.run("smoke", other).record.write_text(record.model_copy(update=changed).to_json())
    bundle = tmp_path / "theirs.tar.gz"
    assert asked("bundle", "--preset", "smoke", "--results", theirs, "-o", bundle).exit_code == 0
    words = ("compare", trained.project.results, bundle, "--preset", "smoke")
    rows = {row["cell"]: row for row in json.loads(asked(*words, "--json").stdout)}
    same, differs = rows[CELL], rows[other.rpartition("/")[0]]
    assert (same["difference"], same["equal_accuracy"], same["identical"], same["pairs"]) == (0.0, 1, 1, 1)
    assert differs["difference"] == pytest.approx(5.0)
    assert (differs["equal_accuracy"], differs["identical"], differs["low"]) == (0, 0, None)
    text = asked(*words, "--loss", "cross-entropy").stdout
    assert "| +5.00 " in text
    assert CELL not in text
