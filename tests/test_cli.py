"""The command line as a user meets it: real processes, exit codes, what is on stdout and what on stderr."""

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from smoke_project import OTHER, PROJECT, ROOT, RUN, edit, record_of, repro, smoke_context

from repro.cli import main
from repro.scheduling.devices import find_devices

RESNET18 = ("--table", "1", "--network", "resnet18")


def invoke(*words: object, code: int = 0) -> Result:
    """The command in this process, where pandas is imported once; fails unless it exits so."""
    done = CliRunner(env={"REPRO_ROOT": str(PROJECT)}).invoke(main, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done


def here(*words: object) -> str:
    """Standard output of a command that succeeds."""
    return invoke(*words).stdout


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A results folder in which `repro run` trained the ResNet-18 column of the smoke Table 1."""
    results = tmp_path_factory.mktemp("swept")
    done = repro("run", "--preset", "smoke", "--results", results, *RESNET18, "--log", "csv", check=0)
    assert "8 runs: 8 done" in done.stderr
    assert done.stdout == ""
    assert (results / "smoke" / ".work" / "csv" / f"{RUN}.csv").exists(), "workers get the sweep's options"
    return results


def test_nothing_slow_is_imported_before_it_is_needed():
    slow = ("torch", "numpy", "pandas", "scipy", "pydantic", "rich", "jinja2", "repro.registry")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from click.testing import CliRunner\n"
        "from repro.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        f"assert not [name for name in {slow[1:]} if name in sys.modules]\n"
        "for words in (['--help'], ['plan', '--json'], ['status'], ['aggregate'], ['data', 'list'],\n"
        "              ['claims'], ['claims', '--json'], ['audit']):\n"
        "    result = CliRunner().invoke(main, words)\n"
        "    assert result.exit_code == 0, (words, result.output, result.exception)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_is_listed_and_has_help():
    listed = here("--help").partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line] == main.list_commands(click.Context(main))
    assert max(map(len, listed)) <= 80
    for line in filter(None, listed):
        assert "Usage:" in here(line.split()[0], "--help")


def test_the_plan_counts_72_cells_and_216_runs():
    plan = json.loads(here("plan", "--json"))
    assert (plan["cells"], plan["runs"]) == (72, 216)
    assert plan["done"] + plan["older_code"] + plan["to_do"] == 216


def test_the_plan_of_a_grid_counts_and_names_the_runs_of_each_combination():
    words = ("plan", "--table", "1", "--network", "resnet18", "--loss", "cross-entropy", "--seed", "0,1")
    cell = "cifar100/resnet18/cross-entropy"
    text = here(*words, "--set", "lr=0.05,0.1")
    assert (
        f"overrides:\n  lr=0.05: 2 runs, {cell}+lr=0.05/seed0 to {cell}+lr=0.05/seed1\n"
        f"  none (baseline): 2 runs, {cell}/seed0 to {cell}/seed1\n2 cells, 4 runs: "
    ) in text
    listed = json.loads(here(*words, "--set", "lr=0.05,0.1", "--json"))["overrides"]
    assert listed == {
        part.strip("+"): [f"{cell}{part}/seed{seed}" for seed in (0, 1)] for part in ("+lr=0.05", "")
    }
    assert "override" not in here(*words)


def test_a_finished_sweep_is_skipped_before_anything_is_loaded(swept):
    words = ("--preset", "smoke", "--results", swept)
    again = repro("run", *words, *RESNET18, check=0, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "8 done before" in again.stderr
    assert "torch" not in again.stderr
    plan = json.loads(here("plan", "--json", *words))
    assert (plan["cells"], plan["done"], plan["to_do"]) == (72, 8, 64)


def test_a_run_that_shared_its_device_has_the_result_that_it_has_alone(swept, trained):
    """Bitwise on a CPU, and the record says with how many it shared."""
    shared, alone = record_of(smoke_context(None, swept), RUN), record_of(trained, RUN)
    assert shared.comparable() == alone.comparable()
    assert shared.provenance.runs_on_device == len(find_devices(1, "cpu"))
    assert alone.provenance.runs_on_device == 1


def test_tables_and_figures_come_from_records_alone(swept, tmp_path):
    words = ("--preset", "smoke", "--results", swept)
    table = here("aggregate", *words, "--table", "1")
    assert table.startswith("### SMOKE Table 1")
    assert "not run yet" in table
    files = [Path(line).name for line in here("figures", *words, "--output", tmp_path).splitlines()]
    assert {"figure2.png", "figure2.pdf", "figure3.png", "figure3.pdf"} <= set(files)
    assert all((tmp_path / name).stat().st_size > 5_000 for name in files if name != "captions.txt")
    written = tmp_path / "deep" / "table.csv"
    form = ("aggregate", *words, "--format", "csv")
    assert here(*form, "--output", written) == ""
    assert here(*form) == written.read_text()


OLDER = OTHER.replace("cross-entropy", "scaled-bn-m0.8")
DAMAGE = {
    RUN: ("torn or cut short", lambda text: text[:-200]),
    OTHER: ("edited after", lambda text: text.replace('"correct": ', '"correct": 1', 1)),
    OTHER.replace("cross-entropy", "scaled-bn-m0.9"): ("moved or copied", None),  # the record of OTHER
}


@pytest.fixture(scope="module")
def redone(swept, tmp_path_factory) -> tuple[Path, Path]:
    """The sweep's records of which three were damaged and one was of older code, before and after a sweep."""
    before, after = (tmp_path_factory.mktemp("redone") / name for name in ("before", "after"))
    shutil.copytree(swept, before)
    of_other = (before / "smoke" / f"{OTHER}.json").read_text()
    for run, (_, spoil) in DAMAGE.items():
        path = before / "smoke" / f"{run}.json"
        path.write_text(spoil(path.read_text()) if spoil else of_other)
    record = record_of(smoke_context(None, before), OLDER)
    older = record.model_copy(update={"signature": record.signature.model_copy(update={"code": "0" * 64})})
    (before / "smoke" / f"{OLDER}.json").write_text(older.to_json())
    shutil.copytree(before, after)
    words = ("--preset", "smoke", "--results", after, *RESNET18)
    plan = json.loads(invoke("plan", *words, "--json", code=4).stdout)
    assert (plan["to_do"], plan["older_code"]) == (3, 1), "older code counts"
    assert "4 done, 4 done before" in repro("run", *words, "--stale", "rerun", check=0).stderr
    return before, after


def test_a_damaged_record_is_named_never_averaged_and_redone(swept, redone):
    before, after = redone
    words = ("--preset", "smoke", "--table", "1", "--results")
    table = invoke("aggregate", *words, before, code=4)
    assert "corrupt" in table.stdout
    assert "misplaced" in table.stdout
    for run, (says, _) in DAMAGE.items():
        assert says in table.stderr
        quarantined = after / "smoke" / ".work" / run / "quarantine"
        assert (quarantined / "1.json").read_text() == (before / "smoke" / f"{run}.json").read_text()
        assert says in (quarantined / "1.reason.json").read_text()
        made, first = (record_of(smoke_context(None, folder), run) for folder in (after, swept))
        assert made.comparable() == first.comparable()
    here("aggregate", *words, after)


def test_a_record_of_older_code_that_is_redone_is_kept(swept, redone):
    before, after = redone
    kept = after / "smoke" / ".work" / OLDER / "superseded" / "1.json"
    assert kept.read_text() == (before / "smoke" / f"{OLDER}.json").read_text()
    made, first = (record_of(smoke_context(None, folder), OLDER) for folder in (after, swept))
    assert made.comparable() == first.comparable()


RULES = hashlib.sha256((ROOT / "experiments" / "claims.toml").read_bytes()).hexdigest()


def test_claims_and_the_audit_are_judged_from_what_is_there_and_name_their_rules(tmp_path):
    words = ("claims", "--preset", "quick", "--results", ROOT / "results")
    text = here(*words)
    assert text.startswith("QUICK: ")
    assert RULES in text
    assert text.count("Interim:") == 6
    content = json.loads(here(*words, "--json"))
    assert content["rules"] == {"file": "experiments/claims.toml", "sha256": RULES}
    assert (len(content["cells"]), len(content["claims"])) == (72, 6)
    cell = "cifar100/resnet18/scaled-bn-m1"
    paths = (ROOT / "results" / "quick" / cell).glob("seed*.json")
    accuracies = [json.loads(path.read_text())["result"]["accuracy"] for path in paths]
    (found,) = [each for each in content["cells"] if each["id"] == cell]
    assert (found["word"], found["mean"]) == ("not comparable", pytest.approx(statistics.mean(accuracies)))
    audit = json.loads(here("audit", "--json"))
    assert (len(audit["wins"]), "27 of 27 comparisons" in here("audit")) == (27, True)
    torn = tmp_path / "results" / "quick" / cell / "seed0.json"
    torn.parent.mkdir(parents=True)
    torn.write_text("{")
    done = invoke("claims", "--preset", "quick", "--results", tmp_path / "results", code=4)
    assert (str(torn) in done.stderr, done.stdout.count("Interim:")) == (True, 6), "what is left is judged"


def test_one_table_has_the_verdicts_that_all_together_have(swept):
    """The correction is over the paper's cells, whichever are shown. Parquet goes to no terminal."""
    words = ("aggregate", "--preset", "smoke", "--results", swept, "--format")
    whole, alone = (json.loads(here(*words, "json", *more)) for more in ((), ("--table", "1")))
    assert alone["tables"] == whole["tables"][:1]
    assert "--output" in invoke(*words, "parquet", code=2).stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("plan --network resnet19", 2, "no network matches 'resnet19'; there are: vgg16"),
        ("plan --preset fast", 2, "there is no preset 'fast'; presets: paper, quick, smoke"),
        ("plan --set rotate=15", 2, "unknown override 'rotate'"),
        ("train", 2, "needs run ids, as in: `repro train cifar100/resnet18/cross-entropy/seed0`"),
        ("nonsense", 2, "No such command"),
        (f"train {RUN} --preset smoke --results FILE/results", 3, "Not a directory"),
        (f"train {RUN} --preset quick --results RESULTS --data-dir RESULTS", 3, "run `repro data fetch cifar100 --data-dir RESULTS`, then `repro data prepare cifar100 --data-dir RESULTS`"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_its_exit_code(words, code, says, tmp_path):
    (tmp_path / "file").write_text("")
    words = words.replace("RESULTS", str(tmp_path)).replace("FILE", str(tmp_path / "file"))
    done = invoke(*words.split(), code=code)
    assert says.replace("RESULTS", str(tmp_path)) in done.stderr


def test_numbers_may_be_given_together():
    together = here("plan", "--json", "--table", "1,2", "--seed", "0,1")
    words = ("--table", "1", "--table", "2", "--seed", "0", "--seed", "1")
    assert together == here("plan", "--json", *words)
    assert (json.loads(together)["cells"], json.loads(together)["runs"]) == (48, 96)
    for wrong in ("x", "-1", "0,", "1.5"):
        assert "expected a number" in invoke("plan", "--seed", wrong, code=2).stderr


def test_a_root_without_experiments_and_a_wrong_toml_key_are_reported_in_one_line(tmp_path):
    done = CliRunner(env={"REPRO_ROOT": str(tmp_path)}).invoke(main, ["plan"])
    assert done.exit_code == 3
    assert f"REPRO_ROOT is {tmp_path}, which has no experiments/presets.toml" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    edit(tmp_path / "experiments" / "table2.toml", "margin = 0.35", "margn = 0.35")
    done = repro("plan", cwd=tmp_path, check=2)
    assert "table2.toml: row 2 (am-softmax-s7.5-m0.35): unknown key 'margn'; allowed:" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_sweep_skips_what_cannot_fit_says_why_and_ends_with_3(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import repro.system; repro.system.memory_bytes = lambda: 2**20"
    )
    words = ["--table", 1, "--network", "resnet18", "--loss", "scaled-bn-m1", "--loss", "cross-entropy"]
    done = repro("run", "--preset", "smoke", "--results", tmp_path / "results", *words, check=3,
                 environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"})  # fmt: skip
    assert "skipping 2 runs: resnet18 on images of 32 px in batches of 32 needs at least" in done.stderr
    assert not list(tmp_path.rglob("seed0.json"))


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a CUDA device")
def test_a_cuda_device_that_is_not_there_is_exit_code_3(tmp_path):
    words = ("train", RUN, "--preset", "smoke", "--results", tmp_path, "--device", "cuda")
    assert "finds no CUDA device" in invoke(*words, code=3).stderr


def test_a_run_that_fails_is_told_with_the_line_that_repeats_it_and_exit_code_1(tmp_path):
    """A loss of the user's own that breaks; the other run is trained all the same."""
    words = ("run", "--preset", "smoke", "--results", tmp_path, *RESNET18, "--loss", "cross-entropy")
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import os, sys\n"
        "if 'train' in sys.argv:\n"
        "    import repro.losses\n"
        "    def build(*arguments, **options): raise RuntimeError('boom')\n"
        "    repro.losses.build = build\n"
    )
    done = repro(*words, check=1, environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    attempts = tmp_path / "smoke" / ".work" / OTHER / "attempts"
    assert (
        f"failed {OTHER}: RuntimeError: boom\n  attempts: {attempts}\n  repeat it: repro train {OTHER} "
        in done.stderr
    )
    shown = here("logs", OTHER, "--preset", "smoke", "--results", tmp_path)
    assert "failed: RuntimeError: boom" in shown
    assert "    Traceback (most recent call last):" in shown
