"""`repro report`: everything that the records say, as one HTML file that needs nothing beside it.

    RunState … → summaries, layouts, figures → the page's parts → page/report.html

The page is whole without JavaScript: every number is a link to its runs further down. The script opens them
in place, sorts and filters. The same records give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from repro.analysis.aggregate import summarise
from repro.analysis.audit import audit_paper
from repro.analysis.claims import judge_claims
from repro.analysis.comparison import FIGURE_CELLS, Comparison, make_comparison
from repro.analysis.curves import Column, columns_of, draw_curves, draw_gradients
from repro.analysis.figures import missing_for_figures, with_probes
from repro.analysis.layout import lay_out
from repro.analysis.logit_figure import draw_figure2
from repro.analysis.open_points import Move
from repro.analysis.open_points_text import HOW, open_cells
from repro.analysis.report_numbers import cost_rows, logit_rows, weight_rows
from repro.analysis.report_parts import ColumnPart, Drawn, headline, table_part
from repro.analysis.report_verdicts import audit_sentences, claim_part, verdict_counts
from repro.analysis.rules import Rules
from repro.analysis.style import figure_style
from repro.analysis.svg import to_svg
from repro.analysis.verdicts import judge_cells
from repro.analysis.weight_figure import draw_figure3
from repro.config import Preset
from repro.record_state import RunState
from repro.registry import Registry

PAGE = files("repro.analysis") / "page"


@dataclass(frozen=True)
class Origin:
    """Which project the page was made from: its version, commit, and where the records lie."""

    version: str
    commit: str | None
    results: str
    supplied: bool


def render_report(
    states: Sequence[RunState],
    further: Sequence[RunState],
    registry: Registry,
    preset: Preset,
    rules: Rules,
    origin: Origin,
    moves: Sequence[Move] = (),
) -> str:
    """The page for `states`, which hold every run that a table should show, done or not.

    `further` are runs that the claims need beyond those (`repro.analysis.claims.claim_runs`); `moves` are of
    every alternative of the open points, run or not.
    """
    summaries = summarise(states, registry, preset)
    layouts = lay_out(summaries, registry, preset, origin.supplied)
    records = [state.record for state in states if state.counts and state.record is not None]
    verdicts = judge_cells(summaries, registry, preset, rules)
    tables = [table_part(layout, registry, preset, summaries, states, verdicts) for layout in layouts]
    claims = judge_claims([*states, *further], registry, preset, rules)
    with figure_style():
        figures, comparison = _paper_figures(states, registry, preset)
        columns = [_column(column, preset) for column in columns_of(states, registry)]
    return _template("report.html").render(
        preset=preset,
        origin=origin,
        rules=rules,
        headline=headline(summaries, states, registry),
        # Another preset is never held against the paper: the page says so once, above everything.
        comparable=preset.name == "paper",
        verdict_counts=verdict_counts(verdicts),
        tables=tables,
        networks=list(dict.fromkeys(column for table in tables for column in table.columns)),
        claims=[claim_part(claim, rules) for claim in claims],
        audit=audit_sentences(audit_paper(registry, rules)) if _of_paper(registry) else (),
        open_points=open_cells(moves, registry),
        weighed=sum(move.difference is not None for move in moves),
        all_moves=len(moves),
        how_moves=HOW,
        figures=figures,
        missing_figures=missing_for_figures(states, preset),
        logit_rows=logit_rows(comparison) if comparison else (),
        weight_labels=[side.label for side in comparison.sides] if comparison else (),
        weight_rows=weight_rows(comparison) if comparison else (),
        columns=columns,
        costs=cost_rows(records),
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def _of_paper(registry: Registry) -> bool:
    """Whether the registry has the paper's three tables, which the audit is of."""
    return {table.name for table in registry.tables} >= {1, 2, 3}


def _paper_figures(
    states: Sequence[RunState], registry: Registry, preset: Preset
) -> tuple[list[Drawn], Comparison | None]:
    found = [with_probes(states, cell) for cell in FIGURE_CELLS]
    if not all(found):
        return [], None
    comparison = make_comparison(registry, found)
    return [
        Drawn("Figure 2", to_svg(draw_figure2(comparison, preset), "figure2", "Figure 2: logits")),
        Drawn("Figure 3", to_svg(draw_figure3(comparison, preset), "figure3", "Figure 3: weight norms")),
    ], comparison


def _column(column: Column, preset: Preset) -> ColumnPart:
    gradients, curves = draw_gradients(column, preset), draw_curves(column, preset)
    return ColumnPart(
        column.title,
        to_svg(gradients, f"gradients-{column.name}", f"Gradient norms by epoch: {column.title}"),
        to_svg(curves, f"curves-{column.name}", f"Test accuracy by epoch: {column.title}"),
    )


def _asset(name: str) -> Markup:
    """A style sheet or script of ours, to stand in the page as it is."""
    return Markup((PAGE / name).read_text(encoding="utf-8"))


@cache
def _template(name: str) -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tight"] = lambda text: text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    return environment.from_string((PAGE / name).read_text(encoding="utf-8"))
