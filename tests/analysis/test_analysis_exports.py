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
from analysis_records import done, make_record, missing, write_experiments

from repro.analysis.export import READING_FIELDS, quotable, render_tables, to_macros
from repro.analysis.results import summarise
from repro.analysis.text import csv_cell, signed
from repro.analysis.verdicts import judge_cells, mark
from repro.config import Preset
from repro.record_state import RecordState, RunState
from repro.records import RunRecord
from repro.registry import Registry, Selection

OFFSETS = {"scaled-bn-m1": -2.0, "pedcc-s10-m0.5": 0.8}


@pytest.fixture(scope="module")
def paper(real) -> Preset:
    return real.preset("paper")


@pytest.fixture(scope="module")
def records(real, paper) -> dict[str, RunRecord]:
    """Table 1: VGG whole, ResNet-18 with two seeds, ResNet-50 without a run."""
    found = {}
    for run in real.select_runs(Selection(tables=(1,), networks=("vgg16", "resnet18")), paper):
        if run.cell.network == "vgg16" or run.seed < 2:
            mean = run.cell.reported.mean + OFFSETS.get(run.cell.row, 0.0) + 0.2 * (run.seed - 1)
            found[run.id] = make_record(real, paper, run, mean)
    return found


@pytest.fixture(scope="module")
def results(records, real, paper, rules):
    states = [
        done(records[run.id], real) if run.id in records else missing([run])[0]
        for run in real.select_runs(Selection(tables=(1,)), paper)
    ]
    return judge_cells(summarise(states, real, paper), real, paper, rules)


@pytest.fixture
def exported(results, real, paper, rules):
    """The text of a format."""
    return lambda form, **values: render_tables(results, real, paper, form, rules=rules, **values)


def truths(result, records) -> list[float]:
    """A cell's accuracies straight from its records."""
    ids = [f"{result.cell.id}/seed{seed}" for seed in range(3)]
    return [records[run].result.accuracy for run in ids if run in records]


def test_no_text_of_the_csv_is_a_formula_or_moves_a_terminal(tmp_path):
    folder = write_experiments(tmp_path / "experiments")
    text = (folder / "table1.toml").read_text().replace("Cross-entropy Loss", "=HYPERLINK(A1)")
    (folder / "table1.toml").write_text(text.replace('"Our Loss (m = 1)"', '"\\u001b[31m@SUM(A1)"'))
    registry = Registry.load(folder)
    paper = registry.preset("paper")
    states = missing(registry.select_runs(Selection(), paper))
    found = summarise(states, registry, paper)
    rows = list(csv.DictReader(io.StringIO(render_tables(found, registry, paper, "csv"))))
    assert {row["label"] for row in rows} == {"'=HYPERLINK(A1)", "\\u001b[31m@SUM(A1)"}
    assert "\x1b" not in "".join(render_tables(found, registry, paper, each) for each in ("markdown", "json"))
    for begins in "=+-@\t\r":
        assert csv_cell(f"{begins}1") == f"'{begins}1"
    assert [csv_cell(each) for each in (-1.5, "a=b", "–", None)] == [-1.5, "a=b", "–", None]


@pytest.mark.parametrize("readings", ["deciding", "all"])
def test_csv_json_and_parquet_equal_the_records_and_one_another(
    exported, results, records, rules, tmp_path, readings
):
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra")
    path = tmp_path / "tables.parquet"
    path.write_bytes(exported("parquet", readings=readings))
    from_parquet = pq.read_table(path).to_pylist()
    from_csv = list(csv.DictReader(io.StringIO(exported("csv", readings=readings))))
    content = json.loads(exported("json", readings=readings))
    (table,) = content["tables"]
    assert len(results) == 24
    named = (
        "preset table dataset network loss label overrides n expected diverged mean std reported_mean"
        " reported_std difference seeds accuracies best_accuracies extra_seeds extra_accuracies not_counted"
        " notes verdict so_far"
    )
    every = [f"{field}_ddof{ddof}" for ddof in (1, 0) for field in READING_FIELDS]
    assert list(from_csv[0]) == [*named.split(), *READING_FIELDS, *(every if readings == "all" else [])]
    for result, row, line, cell in zip(results, from_parquet, from_csv, table["cells"], strict=True):
        accuracies = truths(result, records)
        assert row["accuracies"] == [run["accuracy"] for run in cell["runs"]] == accuracies
        mean = math.fsum(accuracies) / len(accuracies) if accuracies else None
        assert row["mean"] == cell["mean"] == (None if mean is None else pytest.approx(mean, abs=1e-12))
        assert row["verdict"] == cell["verdict"]["word"]
        widest = max(result.verdict.readings, key=lambda each: each.high - each.low, default=None)
        for field in READING_FIELDS:
            assert row[field] == cell["verdict"][field] == getattr(widest, field, None)
        assert ("readings" in cell["verdict"]) == (readings == "all")
        for reading in cell["verdict"].get("readings", []):
            for field in READING_FIELDS:
                assert row[f"{field}_ddof{reading['ddof']}"] == reading[field]
        assert list(row) == list(line)
        for name, value in row.items():
            text = (
                " ".join(map(repr, value)) if isinstance(value, list) else "" if value is None else str(value)
            )
            assert text == line[name], name
    assert content["rules"] == {"file": "experiments/claims.toml", "sha256": rules.sha256}
    assert pq.read_schema(path).metadata[b"rules_sha256"].decode() == rules.sha256


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_a_cell_stands_above_the_papers_with_the_mark_of_its_verdict(form, exported, results, records, rules):
    plain = (
        exported(form).replace(r"$\pm$", "±").replace("$-$", "−").replace(r"$\neq$", "≠").replace(" \\\\", "")
    )
    plain = re.sub(r"\\textbf\{([^}]*)\}|\*\*", lambda match: match[1] or "", plain)
    lines = [re.split(r" *[|&] *", line.strip("| ")) for line in plain.splitlines()]
    for result in results:
        accuracies, reported = truths(result, records), result.reported
        paper = f"{reported.mean:.2f} ± {reported.std:.2f}"
        measured = "not run yet"
        if accuracies:
            measured = f"{sum(accuracies) / len(accuracies):.2f} ± {result.std:.2f}"
            paper += f" ({signed(result.difference)}{' ' * bool(mark(result))}{mark(result)})"
        places = [(row, line.index(paper)) for row, line in enumerate(lines) if paper in line]
        assert any(measured in lines[row - 1][column] for row, column in places), result.cell.id
    assert {mark(result) for result in results} == {"=", "≠", "?", ""}
    assert rules.sha256[:12] in plain
    assert "± 1 point)" in plain


def test_every_macro_is_a_number_of_the_records(exported, results, real):
    found = dict(re.findall(r"^\\repro@set\{(\S+)\}\{(.*)\}$", exported("macros"), re.MULTILINE))
    assert found == {
        f"table1/{result.cell.network}/{result.cell.row}/{field}": text
        for result in results
        for field, text in quotable(result).items()
    }
    assert found["table1/vgg16/scaled-bn-m1/value"] == r"\ensuremath{71.24 \pm 0.20}"
    assert found["table1/vgg16/scaled-bn-m1/difference"] == r"\ensuremath{-}2.00"
    assert found["table1/resnet18/cross-entropy/n"] == "2"
    assert found["table1/resnet50/cross-entropy/reported-mean"] == "75.95"
    assert "table1/resnet50/cross-entropy/value" not in found
    assert "% table1/resnet50/cross-entropy: not run yet" in exported("macros")
    assert r"\repro@set{quick-table1/vgg16/scaled-bn-m1/n}{3}" in to_macros(results, real.preset("quick"))


def compile_latex(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Runs pdflatex on a paper with this body, which begins with what it needs of the preamble."""
    (folder / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage[margin=1in]{geometry}\n"
        f"\\usepackage{{booktabs}}\n\\input{{numbers}}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120, check=False
    )


@pytest.mark.tex
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_paper_that_quotes_the_macros_and_shows_the_tables_compiles_and_fits_the_page(
    real, paper, tmp_path: Path
):
    states = []
    for run in real.select_runs(Selection(), paper):
        if run.cell.network == "resnet50":
            states += missing([run])
        elif run.seed == 2 and run.cell.row == "scaled-bn-m1":
            reason = f"/data/{run.id}.json: 100 % of {{it}} & more_than #1 ~ ^ \\ $ <torn> → “…” é 漢"
            states.append(RunState(run, RecordState.CORRUPT, reason=reason))
        else:
            diverged = 3 if run.seed == 1 and run.cell.row.startswith("am-") else None
            states.append(done(make_record(real, paper, run, diverged_in=diverged), real))
    results = summarise(states, real, paper)
    macros = render_tables(results, real, paper, "macros")
    (tmp_path / "numbers.tex").write_text(macros + to_macros(results, real.preset("quick")))
    (tmp_path / "tables.tex").write_text(render_tables(results, real, paper, "latex"), encoding="utf-8")
    keys = [key.split("/") for key in re.findall(r"@set\{(\S+?)\}", macros)]
    uses = " ".join(f"\\repro[{field}]{{{table}}}{{{net}}}{{{row}}}" for table, net, row, field in keys)
    ran = compile_latex(
        tmp_path,
        "\\sloppy\\section{\\repro{table1}{vgg16}{cross-entropy} and \\repro{quick-table1}{vgg16}{cross-entropy}}"
        f"$x = \\repro{{table1}}{{vgg16}}{{cross-entropy}}$. All numbers: {uses}.\n\\input{{tables}}",
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
    assert "Overfull" not in ran.stdout
    assert "Missing character" not in (tmp_path / "paper.log").read_text(errors="replace")


@pytest.mark.tex
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("key", ["table1/vgg16/cross-entorpy/value", "table1/resnet50/cross-entropy/mean"])
def test_a_number_that_there_is_not_stops_the_paper_with_its_key(exported, tmp_path: Path, key):
    (tmp_path / "numbers.tex").write_text(exported("macros"))
    table, network, row, field = key.split("/")
    ran = compile_latex(tmp_path, f"\\repro[{field}]{{{table}}}{{{network}}}{{{row}}}")
    assert ran.returncode != 0
    assert f"There is no number {key}." in ran.stdout


def test_a_table_without_verdicts_has_no_legend(results, real, paper, rules):
    text = render_tables(results, real, paper)
    assert "Behind Δ" not in text
    assert not re.search(r"\([+−]\d\.\d\d [=≠?]\)", text)
    quick = real.preset("quick")
    other = judge_cells(results, real, quick, rules)
    assert "Behind Δ" not in render_tables(other, real, quick, rules=rules)
