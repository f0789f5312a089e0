import shutil
import subprocess
from pathlib import Path

import pytest
from analysis_records import EXPERIMENTS, done, make_record, missing
from test_analysis_tables import states_of

from repro.analysis.aggregate import summarise
from repro.analysis.latex import escape
from repro.analysis.tables import render_tables
from repro.record_state import RecordState, RunState
from repro.registry import Registry, Selection


def test_latex_is_a_booktabs_table_with_its_notes(registry):
    quick = registry.preset("quick")
    text = render_tables(summarise(states_of(registry, quick), registry, quick), registry, quick, "latex")
    assert text == (
        r"""% Needs \usepackage{booktabs}.
\begin{table}[tp]
\centering\footnotesize\setlength{\tabcolsep}{3pt}
\caption{QUICK CIFAR-100 (the paper's Table 1), top-1 accuracy in percent.}
\label{tab:quick-table1}
\begin{tabular}{lll}
\toprule
CIFAR-100 & VGG & ResNet-18 \\
\midrule
Cross-entropy Loss & 71.90 $\pm$ 0.20 (n = 3) & 75.00 (n = 1 of 3) \\
-- paper ($\Delta$) & 71.86 $\pm$ 0.14 (+0.04) & 75.10 $\pm$ 0.34 ($-$0.10) \\
-- not averaged &  & 1 of 3 diverged \\
\addlinespace
Our Loss (m = 1) & \textbf{73.25 $\pm$ 0.25} (n = 3)$^{1}$ & ---: not run yet \\
-- paper ($\Delta$) & 73.24 $\pm$ 0.06 (+0.01) & 76.08 $\pm$ 0.30 \\
\bottomrule
\end{tabular}
\par\medskip\begin{minipage}{\linewidth}\sloppy
QUICK: few images: it proves nothing about the paper.\par
First line of a loss: mean $\pm$ sample standard deviation (ddof = 1; none at n = 1) over n seeds, """
        r"""last epoch, percent points. Second line: the paper's mean $\pm$ std over three runs, and """
        r"""$\Delta$ = first line $-$ paper. Bold: the best mean of a column in which every loss has all its runs.\par
Data: 100 classes, 50,000 training and 10,000 test images.\par
Runs counted: 7 of 12, made on NVIDIA GeForce GTX 1080 Ti, float32 (7).\par
$^{1}$ older code (what trains has changed since).\par
Not counted: diverged in epoch 4 --- Cross-entropy Loss on ResNet-18 (seed 1).\par
Not counted: not run yet --- Cross-entropy Loss on ResNet-18 (seed 2); Our Loss (m = 1) on ResNet-18 """
        r"""(seeds 0, 1, 2).\par
\end{minipage}
\end{table}
"""
    )


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a & b_c 100 % $5 #1", r"a \& b\_c 100 \% \$5 \#1"),
        (r"{\x}~^", r"\{\textbackslash{}x\}\textasciitilde{}\textasciicircum{}"),
        ("7 → 8 ± −1 × Δ…", r"7 $\rightarrow$ 8 $\pm$ $-$1 $\times$ $\Delta$\dots{}"),
        ("Größe 漢", "Größe [U+6F22]"),
        ("two\nlines", "two lines"),
    ],
)
def test_special_characters_are_escaped(text, latex):
    assert escape(text) == latex


@pytest.mark.tex
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_all_three_tables_compile_and_fit_the_page(tmp_path: Path):
    registry = Registry.load(EXPERIMENTS)
    paper = registry.preset("paper")
    states = []
    for run in registry.select_runs(Selection(), paper):
        if run.cell.network == "resnet50":
            states += missing([run])
        elif run.seed == 2 and run.cell.row == "scaled-bn-m1":
            reason = f"/data/{run.id}.json: 100 % of {{it}} & more_than #1 ~ ^ \\ $ <torn> → “…” é 漢"
            states.append(RunState(run, RecordState.CORRUPT, reason=reason))
        else:
            diverged = 3 if run.seed == 1 and run.cell.row.startswith("am-") else None
            states.append(done(make_record(registry, paper, run, diverged_in=diverged), registry))
    summaries = summarise(states, registry, paper)
    text = render_tables(summaries, registry, paper, "latex", standalone=True)
    (tmp_path / "tables.tex").write_text(text, encoding="utf-8")
    ran = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000
    assert "Overfull" not in ran.stdout
    assert "Missing character" not in (tmp_path / "tables.log").read_text(errors="replace")
