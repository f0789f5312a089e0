r"""Every number of a table as a LaTeX macro, so that a paper quotes the records and never copies them.

    \input{numbers}                    % repro aggregate --format macros --output numbers.tex
    … reaches \reproCifarOneZeroZeroResnetOneEightScaledBnMOneMean{} \% …

A name is `\repro`, the preset unless it is the paper's, the cell's id and the field, each word with a capital
and each digit spelled out, since TeX allows letters alone.
"""

import re
from collections.abc import Sequence

from repro.analysis.aggregate import CellSummary
from repro.analysis.cell_verdict import CellVerdict, Judged
from repro.analysis.layout import short_blank
from repro.config import Preset

FIELDS = (
    "mean",
    "std",
    "n",
    "reported-mean",
    "reported-std",
    "difference",
    "difference-low",
    "difference-high",
)
"""What can be quoted of a cell. All but n are in percent points; low and high bound the difference."""

_SPELLED = dict(
    zip(
        "0123456789.=",
        ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Point", "Is"),
        strict=True,
    )
)


def to_macros(summaries: Sequence[CellSummary], preset: Preset, judged: Judged | None = None) -> str:
    r"""A \newcommand a number, in the summaries' order; a cell without a mean has a comment that says why."""
    lines = [
        f"% Numbers of the preset {preset.name}, made by `repro aggregate --format macros`; do not edit.",
    ]
    for summary in summaries:
        cell = summary.cell.id
        lines.append(f"% {cell}" + (f": {short_blank(summary)}" if summary.mean is None else ""))
        verdict = judged.of(summary.cell) if judged else None
        for field, value in quotable(summary, verdict).items():
            lines.append(
                rf"\newcommand{{\{macro_name(preset.name, cell, field)}}}{{{printed(field, value)}}}"
            )
    return "\n".join(lines) + "\n"


def quotable(summary: CellSummary, verdict: CellVerdict | None) -> dict[str, float]:
    """The numbers of a cell by field; one that there is not is left out."""
    low, high = (verdict.interval if verdict else None) or (None, None)
    values = {
        "mean": summary.mean,
        "std": summary.std,
        "n": float(summary.n),
        "reported-mean": summary.reported.mean if summary.reported else None,
        "reported-std": summary.reported.std if summary.reported else None,
        "difference": summary.difference,
        "difference-low": low,
        "difference-high": high,
    }
    return {field: values[field] for field in FIELDS if values[field] is not None}  # type: ignore[misc]


def printed(field: str, value: float) -> str:
    """A number as LaTeX prints it: two decimals, a difference with its sign."""
    if field == "n":
        return f"{value:.0f}"
    if not field.startswith("difference"):
        return f"{value:.2f}"
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", r"\ensuremath{-}")


def macro_name(preset: str, cell: str, field: str) -> str:
    """A number's macro, without the backslash: letters only, the same in every version."""
    parts = ["repro", *([] if preset == "paper" else [_spelled(preset)]), _spelled(cell), _spelled(field)]
    return "".join(parts)


def _spelled(text: str) -> str:
    """`scaled-bn-m0.8` as ScaledBnMZeroPointEight."""
    words = re.findall(r"[A-Za-z]+|[0-9.=]", text.replace("+", "-with-"))
    return "".join(_SPELLED.get(word) or word[0].upper() + word[1:] for word in words)
