"""`repro.load()`: the same numbers as the commands print, as DataFrames."""

import io
import re
import subprocess
import sys

import pandas as pd
import pytest
from smoke_project import ROOT, RUN, repro, smoke_context, train_here

import repro as package
from repro.records import Epoch


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    with pytest.MonkeyPatch.context() as patch:
        assert train_here(smoke_context(patch, folder), RUN) == 0
        yield package.load("smoke", results=folder)


def test_the_cells_are_those_that_aggregate_prints(results):
    words = ("aggregate", "--preset", "smoke", "--results", results.project.results, "--format", "csv")
    printed = pd.read_csv(io.StringIO(repro(*words, check=0).stdout), dtype={"table": str})
    cells = results.cells.drop(columns=["seeds", "accuracies", "best_accuracies"])
    numbers = [name for name in cells if cells[name].dtype != object]
    pd.testing.assert_frame_equal(cells[numbers], printed[numbers], check_dtype=False)
    texts = [name for name in cells if name not in numbers]
    pd.testing.assert_frame_equal(
        cells[texts].astype(object).fillna(""), printed[texts].astype(object).fillna(""), check_dtype=False
    )
    assert cells["mean"].dtype == float


def test_a_run_has_a_row_with_a_record_or_without_and_its_epochs_are_counted_from_1(results):
    assert len(results.runs) == 72
    (run,) = results.runs[results.runs.counts].to_dict("records")
    assert (run["run"], run["state"], run["total"]) == (RUN, "done", 80)
    assert run["accuracy"] == 100 * run["correct"] / run["total"]
    assert set(results.runs.reason) == {"", "not run yet"}
    assert list(results.epochs.epoch) == list(range(1, len(results.epochs) + 1))
    assert set(Epoch.model_fields) <= set(results.epochs.columns)
    assert run["best_accuracy"] == results.epochs.set_index("epoch").test_accuracy[run["best_epoch"]]


def test_verdicts_and_claims_are_those_of_the_command(results):
    assert set(results.verdicts.word) == {"not comparable"}
    assert len(results.verdicts) == 72
    assert list(results.claims.word) == ["interim"] * 6
    assert list(results.claims.needed[:2]) == [9, 9]


def test_the_page_on_pandas_prints_what_it_says():
    page = (ROOT / "docs" / "python.md").read_text()
    (code,), (output,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "text"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", output)
