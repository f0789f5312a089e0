"""Losses beyond the paper, the controls of claim 6, and an open point: with real records of seconds each."""

import json

import pytest
from click.testing import CliRunner
from smoke_project import OTHER, PROJECT, record_of, smoke_context, train_here

from repro.analysis.claims import ClaimWord
from repro.analysis.tables import BEYOND
from repro.cli import main
from repro.cli.context import Context
from repro.cli.reporting import aggregate_cells, judge, study_effects
from repro.registry import Selection

CONTROL = "cifar100/resnet18/logit-scale-s2/seed0"
NO_BIAS = "cifar100/resnet18/cross-entropy+bias=false/seed0"


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    """Real runs of cross-entropy, z · 2 without batch norm, and cross-entropy without a bias."""
    results = tmp_path_factory.mktemp("beyond")
    with pytest.MonkeyPatch.context() as patch:
        made = smoke_context(patch, results)
    assert train_here(made, OTHER, CONTROL, NO_BIAS) == 0
    return made


def test_claim_6_finds_the_records_of_its_two_controls(context):
    (claim,) = [
        each for each in judge(context, context.rules)[0] if each.claim.name == "scaling-alone-does-not-help"
    ]
    (column,) = claim.effect.columns
    accuracy = {run: record_of(context, run).result.accuracy for run in (OTHER, CONTROL, NO_BIAS)}
    assert column.value == pytest.approx(max(accuracy[CONTROL], accuracy[NO_BIAS]) - accuracy[OTHER])
    shown = {label: effect.value for label, effect in claim.shown}
    assert shown["z · 2"] == pytest.approx(accuracy[CONTROL] - accuracy[OTHER])
    assert shown["without a bias"] == pytest.approx(accuracy[NO_BIAS] - accuracy[OTHER])
    assert claim.word is ClaimWord.INTERIM
    assert "logit-scale-s2: 8 of 9 runs" in claim.missing
    assert "cross-entropy+bias=false: 8 of 9 runs" in claim.missing


def test_a_loss_with_a_record_stands_below_the_papers_in_the_same_table(context):
    text, damaged = aggregate_cells(context, Selection(tables=(1,)), "markdown")
    assert damaged == []
    lines = text.splitlines()
    below = lines[next(place for place, line in enumerate(lines) if BEYOND in line) + 1 :]
    accuracy = record_of(context, CONTROL).result.accuracy
    assert below[0].startswith("| z · 2 without batch norm")
    assert f"{accuracy:.2f} (n = 1)" in below[0]
    assert not below[1].startswith("|"), "a loss without a record is left out"
    assert text.count("### ") == 1
    assert "Runs counted: 1 of 24," in text
    assert "Below the paper's losses: others under the same recipe, 1 of 3 runs counted." in text


def test_asked_for_every_loss_beyond_the_paper_is_there(context):
    text, _ = aggregate_cells(context, Selection(tables=(1,)), "markdown", extended=True)
    labels = [row.label for table in context.registry.extensions(1) for row in table.rows]
    assert len(labels) == 7
    for label in labels:
        assert f"\n| {label} " in text
    assert "every loss beyond the paper on VGG, ResNet-50 (seed 0)" in text


def test_a_loss_beyond_the_paper_is_a_row_of_every_format(context):
    latex, _ = aggregate_cells(context, Selection(tables=(1,)), "latex")
    head, rule, _ = latex.partition("\\midrule\nz")
    assert rule
    assert head.count("\\midrule") == 1
    assert latex.count("\\begin{table}") == 1
    assert "z $\\cdot$ 2 without batch norm" in latex
    assert "[U+" not in aggregate_cells(context, Selection(tables=(1,)), "latex", extended=True)[0]
    rows = aggregate_cells(context, Selection(tables=(1,)), "csv")[0].splitlines()
    assert [row.split(",")[1] for row in rows if ",logit-scale-s2," in row] == ["cifar100-extended"] * 3
    tables = json.loads(aggregate_cells(context, Selection(tables=(1,)), "json")[0])["tables"]
    assert [(table["table"], table["counted"]) for table in tables] == [(1, 1), ("cifar100-extended", 1)]


def test_the_report_has_both_in_their_table_and_the_open_point(context, tmp_path):
    words = ["report", "--preset", "smoke", "--results", str(context.project.results), "--output"]
    path = tmp_path / "report.html"
    done = CliRunner(env={"REPRO_ROOT": str(PROJECT)}).invoke(main, [*words, str(path)])
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{path}\n", "")
    text = path.read_text()
    assert text.count('<article class="table"') == 3
    assert 'class="beyond" data-loss="z · 2 without batch norm"' in text
    assert 'id="cell-cifar100_resnet18_logit-scale-s2"' in text
    assert "<code>repro train cifar100/resnet18/logit-scale-s2/seed0 --preset smoke</code>" in text
    # Without a bias, and the best epoch, which needs no run of its own.
    assert "2 of 27 alternatives have records" in text


def test_an_open_point_reads_the_same_records(context):
    (effect,) = study_effects(context, Selection(studies=("bias",)))
    difference = record_of(context, NO_BIAS).result.accuracy - record_of(context, OTHER).result.accuracy
    assert effect.difference == pytest.approx(difference)
    runs = context.registry.select_runs(Selection(studies=("bias",)), context.preset)
    assert {run.id for run in runs} == {OTHER, NO_BIAS}
