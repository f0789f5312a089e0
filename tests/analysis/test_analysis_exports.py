"""Every format read back and held against the records; the macros compiled."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from analysis_records import EXPERIMENTS, done, make_record, missing

from repro.analysis.aggregate import summarise
from repro.analysis.cell_verdict import MARKS, Judged, Verdict
from repro.analysis.macros import FIELDS, macro_name, printed, quotable
from repro.analysis.rules import read_rules
from repro.analysis.tables import render_tables
from repro.analysis.tidy import CSV_COLUMNS, READING_FIELDS
from repro.analysis.verdicts import judge_cells
from repro.config import Preset
from repro.records import RunRecord
from repro.registry import Registry, Selection

OFFSETS = {"scaled-bn-m1": -2.0, "pedcc-s10-m0.5": 0.8}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(EXPERIMENTS)


@pytest.fixture(scope="module")
def paper(registry) -> Preset:
    return registry.preset("paper")


@pytest.fixture(scope="module")
def records(registry, paper) -> dict[str, RunRecord]:
    """Table 1: VGG whole, ResNet-18 with two seeds, ResNet-50 without a run."""
    found = {}
    for run in registry.select_runs(Selection(tables=(1,), networks=("vgg16", "resnet18")), paper):
        if run.cell.network == "vgg16" or run.seed < 2:
            mean = run.cell.reported.mean + OFFSETS.get(run.cell.row, 0.0) + 0.2 * (run.seed - 1)
            found[run.id] = make_record(registry, paper, run, mean)
    return found


@pytest.fixture(scope="module")
def summaries(records, registry, paper):
    states = [
        done(records[run.id], registry) if run.id in records else missing([run])[0]
        for run in registry.select_runs(Selection(tables=(1,)), paper)
    ]
    return summarise(states, registry, paper)


@pytest.fixture(scope="module")
def judged(summaries, registry, paper) -> Judged:
    rules = read_rules(EXPERIMENTS / "claims.toml")
    return Judged(judge_cells(summaries, registry, paper, rules), rules)


@pytest.fixture
def exported(summaries, registry, paper, judged):
    """The text of a format."""
    return lambda form: render_tables(summaries, registry, paper, form, judged=judged)


def truths(summary, records) -> list[float]:
    """A cell's accuracies straight from its records."""
    ids = [f"{summary.cell.id}/seed{seed}" for seed in range(3)]
    return [records[run].result.accuracy for run in ids if run in records]


def test_csv_json_and_parquet_equal_the_records_and_one_another(
    exported, summaries, records, registry, paper, judged, tmp_path
):
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra")
    pd = pytest.importorskip("pandas")
    from repro.analysis.parquet import to_parquet

    path = tmp_path / "tables.parquet"
    path.write_bytes(to_parquet(summaries, registry, paper, judged))
    from_parquet = pq.read_table(path).to_pylist()
    from_csv = list(csv.DictReader(io.StringIO(exported("csv"))))
    content = json.loads(exported("json"))
    (table,) = content["tables"]
    assert len(from_parquet) == len(from_csv) == len(table["cells"]) == 24
    for summary, row, line, cell in zip(summaries, from_parquet, from_csv, table["cells"], strict=True):
        accuracies = truths(summary, records)
        assert row["accuracies"] == accuracies
        assert [float(text) for text in line["accuracies"].split()] == accuracies
        assert [run["accuracy"] for run in cell["runs"]] == accuracies
        mean = math.fsum(accuracies) / len(accuracies) if accuracies else None
        assert row["mean"] == (None if mean is None else pytest.approx(mean, abs=1e-12))
        assert row["mean"] == cell["mean"] == (float(line["mean"]) if line["mean"] else None)
        assert row["verdict"] == line["verdict"] == cell["verdict"]["word"]
        for reading in cell["verdict"]["readings"]:
            for field in READING_FIELDS:
                name = f"{field}_ddof{reading['ddof']}"
                assert row[name] == reading[field] == (float(line[name]) if line[name] else None)
        for name in CSV_COLUMNS:
            value = row[name]
            text = (
                " ".join(map(repr, value)) if isinstance(value, list) else str("" if value is None else value)
            )
            assert text == line[name], name
    frame = pd.read_parquet(path)
    assert list(frame.columns) == list(CSV_COLUMNS)
    assert frame["mean"].notna().sum() == 16
    rules = {"file": "experiments/claims.toml", "sha256": judged.rules.sha256}
    assert content["rules"] == rules
    assert pq.read_schema(path).metadata[b"rules_sha256"].decode() == rules["sha256"]


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_markdown_and_latex_read_back_equal_the_records_with_their_verdicts(
    form, exported, summaries, records, registry, judged
):
    plain = exported(form).replace(r"$\pm$", "±").replace("$-$", "−").replace(r"$\neq$", "≠")
    plain = re.sub(r"\\textbf\{([^}]*)\}|\*\*([^*]*)\*\*", lambda m: m[1] or m[2], plain)
    plain = plain.replace("--", "–")
    split = " & " if form == "latex" else "|"
    lines = [[part.strip(" \\") for part in line.strip("|").split(split)] for line in plain.splitlines()]
    table = registry.table(1)
    by_place = {(summary.cell.row, summary.cell.network): summary for summary in summaries}
    seen = set()
    for row in table.rows:
        at = next(index for index, line in enumerate(lines) if line[0] == row.label)
        for column, network in enumerate(table.networks, 1):
            summary = by_place[row.name, network]
            accuracies = truths(summary, records)
            measured, reported = lines[at][column], lines[at + 1][column]
            assert re.findall(r"\d+\.\d\d", measured) == (
                [f"{sum(accuracies) / len(accuracies):.2f}", f"{summary.std:.2f}"] if accuracies else []
            )
            assert reported.startswith(f"{summary.reported.mean:.2f} ± {summary.reported.std:.2f}")
            mark = MARKS.get(judged.of(summary.cell).word, "")
            assert re.findall(r"[=≠?]", reported) == ([mark] if mark else [])
            seen.add(mark)
    assert seen == {"=", "≠", "?", ""}
    assert judged.rules.sha256[:12] in plain


def test_every_macro_is_a_number_of_the_records(exported, summaries, judged):
    found = dict(re.findall(r"\\newcommand\{\\(repro[A-Za-z]+)\}\{(.*)\}$", exported("macros"), re.MULTILINE))
    expected = {}
    for summary in summaries:
        for field, value in quotable(summary, judged.of(summary.cell)).items():
            expected[macro_name("paper", summary.cell.id, field)] = printed(field, value)
    assert found == expected
    assert found["reproCifarOneZeroZeroVggOneSixScaledBnMOneMean"] == "71.24"
    assert found["reproCifarOneZeroZeroVggOneSixScaledBnMOneDifference"] == r"\ensuremath{-}2.00"
    assert found["reproCifarOneZeroZeroResnetOneEightCrossEntropyN"] == "2"
    assert "reproCifarOneZeroZeroResnetFiveZeroCrossEntropyMean" not in found
    assert "% cifar100/resnet50/cross-entropy: not run yet" in exported("macros")


def test_no_two_numbers_share_a_macro_and_names_are_letters(registry):
    every = Selection(tables=tuple(table.name for table in registry.tables))
    names = [
        macro_name(preset, cell.id, field)
        for preset in registry.presets
        for cell in registry.select_cells(every)
        for field in FIELDS
    ]
    assert len(set(names)) == len(names) > 1000
    assert all(re.fullmatch("[A-Za-z]+", name) for name in names)


@pytest.mark.tex
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_paper_that_quotes_the_macros_and_shows_the_table_compiles(exported, tmp_path: Path):
    macros = exported("macros")
    (tmp_path / "numbers.tex").write_text(macros)
    (tmp_path / "tables.tex").write_text(exported("latex"))
    uses = " ".join(f"\\{name}{{}}" for name in re.findall(r"\\newcommand\{\\(repro[A-Za-z]+)\}", macros))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage{booktabs}\n"
        "\\input{numbers}\n\\begin{document}\n\\sloppy All numbers: "
        + uses
        + ".\n\\input{tables}\n\\end{document}\n"
    )
    ran = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_without_verdicts_a_table_says_nothing_of_them(summaries, registry, paper):
    text = render_tables(summaries, registry, paper)
    assert "Behind Δ" not in text
    assert not re.search(r"\([+−]\d\.\d\d [=≠?]\)", text)


def test_a_table_without_a_judged_cell_has_no_legend(summaries, registry, judged):
    quick = registry.preset("quick")
    rules = judged.rules
    other = Judged(judge_cells(summaries, registry, quick, rules), rules)
    assert {verdict.word for verdict in other.cells} == {Verdict.NOT_COMPARABLE}
    assert "Behind Δ" not in render_tables(summaries, registry, quick, judged=other)
