"""`repro.load()`: the same numbers as the commands print, as DataFrames."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from smoke_project import ROOT, RUN, smoke_context, train_here

import repro as package
from repro.cli import main
from repro.records import Epoch

PLACE = ("--preset", "smoke", "--results")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    with pytest.MonkeyPatch.context() as patch:
        assert train_here(smoke_context(patch, folder), RUN) == 0
        yield package.load("smoke", results=folder)


def is_none(value) -> bool:
    return not isinstance(value, list) and (value == "" or pd.isna(value))


def is_read_as(text: str, value) -> bool:
    """Whether a CSV's text is the value, to the last digit."""
    if isinstance(value, list):
        return list(map(float, text.split())) == value
    if is_none(value):
        return text == ""
    if isinstance(value, pd.Timestamp):
        return pd.Timestamp(text) == value
    return text == str(value) if isinstance(value, str | bool) else float(text) == value


@pytest.mark.parametrize("by", ["run", "epoch", "cell"])
def test_aggregate_writes_each_frame_in_every_format_as_it_is(results, by, tmp_path):
    frame = getattr(results, f"{by}s")
    names, rows = list(frame), frame.to_dict("records")

    def written(form: str) -> Path:
        path = tmp_path / f"{by}.{form}"
        words = (*PLACE, results.project.results, "--format", form, "--output", path)
        done = CliRunner().invoke(main, ["aggregate", "--by", by, *map(str, words)])
        assert done.exit_code == 0, done.output
        return path

    from_csv = pd.read_csv(written("csv"), dtype=str, keep_default_na=False)
    assert (list(from_csv), len(from_csv)) == (names, len(frame))
    from_json = json.loads(written("json").read_text())
    for row, of_csv, of_json in zip(rows, from_csv.to_dict("records"), from_json, strict=True):
        assert list(of_json) == names
        for name, value in row.items():
            assert is_read_as(of_csv[name], value), name
            if isinstance(value, pd.Timestamp) and not is_none(value):
                assert pd.Timestamp(of_json[name]) == value
            else:
                assert of_json[name] == (None if is_none(value) and value != "" else value), name
    pytest.importorskip("pyarrow", reason="Parquet is an extra")
    from_parquet = pd.read_parquet(written("parquet"))
    lists = [name for name in frame if isinstance(rows[0][name], list)]
    for name in lists:
        assert list(map(list, from_parquet[name])) == list(frame[name])
    read, like = (each.drop(columns=lists).astype(object) for each in (from_parquet, frame))
    pd.testing.assert_frame_equal(read.where(read.notna(), None), like.where(like.notna(), None))
    numbers = frame.select_dtypes("number").dtypes
    assert (from_parquet.dtypes[numbers.index] == numbers).all()
    if by == "cell":
        plain = CliRunner().invoke(
            main, ["aggregate", *PLACE, str(results.project.results), "--format", "csv"]
        )
        assert plain.stdout == (tmp_path / "cell.csv").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--by", "run"], "--by needs --format csv, json or parquet; markdown is always the paper's table"),
        (["--by", "cell", "--format", "latex"], "--by needs --format csv, json or parquet"),
        (["--by", "run", "--format", "csv", "--study", "bias"], "--by and --study exclude one another"),
        (["--set", "lr=1", "--study", "bias"], "--set and --study exclude one another"),
        (["--readings", "all"], "--readings all needs --format csv, json or parquet"),
        (["--readings", "all", "--by", "run", "--format", "csv"], "--readings all is for cells"),
    ],
)
def test_options_that_cannot_go_together_say_what_can(results, words, says):
    done = CliRunner().invoke(main, ["aggregate", *PLACE, str(results.project.results), *words])
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr


def test_no_frame_depends_on_how_far_a_sweep_is(results, tmp_path):
    empty = package.load("smoke", results=tmp_path)
    for name in ("runs", "cells"):
        numbers = getattr(results, name).select_dtypes(["number", "datetimetz"]).dtypes
        assert (getattr(empty, name).dtypes[numbers.index] == numbers).all()
    assert list(empty.epochs) == list(results.epochs)


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


@pytest.mark.parametrize("name", ["python", "evidence"])
def test_a_page_with_python_prints_what_it_says(name):
    page = (ROOT / "docs" / f"{name}.md").read_text()
    (code,), (output,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "text"))
    environment = {**os.environ, "REPRO_ROOT": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.stderr, done.stdout) == ("", output)
