"""Another paper, which prints errors without a spread: its tables, verdicts and claims from made-up records."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from analysis_records import CODE, EXPERIMENTS, make_record, write_record
from click.testing import CliRunner
from scipy import stats

import repro
from repro.cli import main
from repro.paths import Project
from repro.registry import Registry

CUTOUT = EXPERIMENTS.parent / "examples" / "cutout"
ERRORS = {"baseline": (22.1, 22.5, 22.3, 22.6, 22.4), "cutout": (21.7, 22.0, 21.8, 22.1, 21.9)}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The second paper's project with a record of every run, whose errors are ERRORS."""
    monkeypatch.setattr("repro.record_state.code_hash", lambda config: CODE)
    shutil.copytree(CUTOUT, tmp_path / "project")
    monkeypatch.setenv("REPRO_ROOT", str(tmp_path / "project"))
    found = Project.find(tmp_path / "project")
    registry = Registry.load(found.experiments)
    for row, errors in ERRORS.items():
        for seed, error in enumerate(errors):
            run = registry.parse(f"cifar100/resnet18/{row}/seed{seed}")
            write_record(found, make_record(registry, registry.preset("paper"), run, 100 - error))
    return found


def output(*words: str, code: int = 0) -> str:
    """What a command prints."""
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def edit(project: Project, name: str, old: str, new: str) -> None:
    path = project.experiments / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_errors_are_shown_as_errors_and_the_lowest_is_the_best(project):
    text = " ".join(output("aggregate").split())
    assert "Table 1: CIFAR-100, test error in percent" in text
    assert "| ResNet18 | 22.38 ± 0.19 (n = 5) |" in text
    assert "| ResNet18 + cutout | **21.90 ± 0.16** (n = 5) |" in text
    assert "the paper's mean over 5 runs, printed without a spread" in text


def test_a_number_printed_without_a_spread_never_gets_one(project):
    text = output("aggregate")
    assert "22.46 (−0.08" in text
    assert "± 0.00" not in text
    for form in ("latex", "macros", "csv", "json"):
        printed = output("aggregate", "--format", form)
        assert not re.search(r"22\.46(0*) *(\\pm|±)", printed), form
    cell = repro.load().cells.set_index("loss").loc["baseline"]
    assert (cell["reported_mean"], np.isnan(cell["reported_std"])) == (22.46, True)


def test_a_verdict_without_the_papers_spread_takes_ours_for_both_and_says_so(project):
    verdict = repro.load().verdicts.set_index("id").loc["cifar100/resnet18/cutout"]
    errors = np.array(list(ERRORS.values()))
    pooled = np.sqrt(errors.var(axis=1, ddof=1).mean())
    half = stats.t.ppf(0.975, 8) * pooled * np.sqrt(1 / 5 + 1 / 5)
    difference = errors[1].mean() - 21.96
    (reading,) = verdict["readings"]
    assert (reading["low"], reading["high"]) == pytest.approx((difference - half, difference + half))
    assert reading["paper_std"] is None
    assert verdict["word"] == "reproduced"
    assert (
        "The paper prints no spread, so ours is used for its mean too (a mean of 5 runs)."
        in verdict["sentence"]
    )
    edit(project, "paper.toml", "runs = 5", "")
    verdict = repro.load().verdicts.set_index("id").loc["cifar100/resnet18/cutout"]
    assert verdict["readings"][0]["high"] - difference == pytest.approx(
        half * np.sqrt(6 / 5) / np.sqrt(2 / 5)
    )
    assert "whose number of runs is not given: one" in verdict["sentence"]


def test_a_claim_on_errors_is_tested_in_its_own_direction(project):
    (claim,) = repro.load().claims.to_dict("records")
    assert (claim["effect"], claim["unit"]) == (pytest.approx(-0.48), "points")
    assert (claim["word"], claim["complete"], claim["needed"]) == ("undecided", 1, 1)
    assert "In the paper's own numbers: −0.50 points." in output("claims")


def test_the_best_of_several_rows_on_errors_is_the_lowest(project):
    edit(project, "claims.toml", 'over = ["baseline"]\nover_combined = "mean"',
         'over = ["baseline", "cutout"]\nover_combined = "best"\nmirror = { over_combined = "mean" }')  # fmt: skip
    assert "+0.00 (21.90 against 21.90" in output("claims")


def test_the_audit_counts_the_lower_error_as_a_win_and_tests_nothing(project):
    text = output("audit")
    assert (
        "Cutout's mean is ahead of the best other loss in 1 of 1 comparison. The paper prints no spread"
        in text
    )
    assert "pooled" not in text


def test_the_report_names_this_paper_alone_and_has_its_verdicts(project):
    output("report")
    page = (project.preset_results("paper") / "report.html").read_text()
    assert "<title>is this table true? DeVries and Taylor 2017, reproduced</title>" in page
    assert '<a href="https://arxiv.org/abs/1708.04552"><cite>Improved Regularization' in page
    assert not re.search(r"Zhu|scaled|scalable|accuracy in percent", page, re.IGNORECASE)
    assert "Test error by epoch: ResNet18 on CIFAR-100" in page


@pytest.mark.parametrize("missing", ["claims.toml", "paper.toml"])
def test_what_a_project_lacks_is_left_out_and_ends_no_command(project, missing, monkeypatch):
    monkeypatch.setattr("repro.analysis.style.save", lambda figure, folder, name: [])
    (project.experiments / missing).unlink()
    for words in (["aggregate"], ["report"], ["figures"], ["plan"], ["status"]):
        output(*words)
    output("claims" if missing == "claims.toml" else "audit", code=2)
    if missing == "paper.toml":
        assert "77.62" in output("aggregate"), "without a metric numbers are accuracies"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            'rows = ["cutout"]',
            'rows = ["cutuot"]',
            "method: no table has a row 'cutuot'; there are: baseline, cutout",
        ),
        ('measure = "error"', 'measure = "errors"', "metric.measure: Input should be 'accuracy' or 'error'"),
        ("runs = 5", "runs = 0", "reported.runs"),
        ("year", "yaer", "unknown key 'yaer'; allowed: title, authors"),
        (
            'rows = ["cutout"]',
            'rows = ["cutout"]\n[figures.logits]\nname = "F"\ncells = ["a/b/c", "a/x/c"]',
            "cells",
        ),
    ],
)
def test_a_mistake_in_the_papers_file_is_named_with_what_is_allowed(project, old, new, complaint):
    edit(project, "paper.toml", old, new)
    done = CliRunner().invoke(main, ["plan"])
    assert (done.exit_code, complaint in done.stderr) == (2, True), done.stderr
