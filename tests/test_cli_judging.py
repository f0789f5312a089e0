"""`repro claims`, `audit` and the exports as a user meets them: processes, exit codes, streams."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from smoke_project import ROOT, repro

RULES = hashlib.sha256((ROOT / "experiments" / "claims.toml").read_bytes()).hexdigest()
QUICK = ("--preset", "quick", "--results")
CELL = "cifar100/resnet18/scaled-bn-m1"


@pytest.fixture
def results(tmp_path) -> Path:
    """A copy of the project's records of the quick preset."""
    shutil.copytree(ROOT / "results" / "quick", tmp_path / "results" / "quick")
    return tmp_path / "results"


@pytest.fixture
def mean(results) -> float:
    """The cell's mean, straight from the files."""
    folder = results / "quick" / CELL
    accuracies = [json.loads(path.read_text())["result"]["accuracy"] for path in folder.glob("seed*.json")]
    return sum(accuracies) / len(accuracies)


def test_claims_are_judged_from_partial_records_and_name_their_rules(results, mean):
    text = repro("claims", *QUICK, results, check=0).stdout
    assert text.startswith("QUICK: ")
    assert RULES in text
    assert text.count("Interim:") == 6
    content = json.loads(repro("claims", "--json", *QUICK, results, check=0).stdout)
    assert content["rules"] == {"file": "experiments/claims.toml", "sha256": RULES}
    assert (len(content["cells"]), len(content["claims"])) == (72, 6)
    (cell,) = [cell for cell in content["cells"] if cell["id"] == CELL]
    assert cell["word"] == "not comparable"
    assert cell["mean"] == pytest.approx(mean)


def test_a_damaged_record_is_named_and_ends_with_4(results):
    path = results / "quick" / CELL / "seed0.json"
    path.write_text(path.read_text()[:-40])
    done = repro("claims", *QUICK, results, check=4)
    assert str(path) in done.stderr
    assert done.stdout.count("Interim:") == 6, "what is left is still judged"


def test_the_audit_needs_no_record():
    text = repro("audit", check=0).stdout
    assert "27 of 27 comparisons" in text
    assert RULES in text
    content = json.loads(repro("audit", "--json", check=0).stdout)
    assert len(content["wins"]) == 27


def test_parquet_goes_to_a_file_and_never_to_a_terminal(results, mean, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="Parquet is an extra")
    words = ("aggregate", *QUICK, results, "--format", "parquet")
    assert "--output" in repro(*words, check=2).stderr
    repro(*words, "--output", tmp_path / "tables.parquet", check=0)
    frame = pd.read_parquet(tmp_path / "tables.parquet").set_index(["dataset", "network", "loss"])
    assert frame.loc[tuple(CELL.split("/")), "mean"] == pytest.approx(mean)


def test_one_table_has_the_verdicts_that_all_together_have(results):
    """The correction is over the paper's cells, whichever are shown."""
    words = ("aggregate", *QUICK, results, "--format", "json")
    whole = json.loads(repro(*words, check=0).stdout)
    alone = json.loads(repro(*words, "--table", "1", check=0).stdout)
    assert alone["tables"] == whole["tables"][:1]
    assert alone["rules"]["sha256"] == RULES
