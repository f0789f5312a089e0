"""Verdicts: claims, audit, and a cell's in words."""

from typing import TYPE_CHECKING

import click

from repro.cli.options import JSON, command, end_if_damaged, places
from repro.cli.reporting import narrowed, of_cells
from repro.errors import UsageError

if TYPE_CHECKING:
    from repro.analysis.claims import ClaimVerdict
    from repro.analysis.results import CellResult
    from repro.analysis.rules import Rules
    from repro.cli.context import Context
    from repro.registry import Selection


@command()
@places
@of_cells
@click.option("--json", "as_json", is_flag=True, help="For programs: every cell and claim in full.")
def claims(context: "Context", selected: "Selection", as_json: bool) -> None:
    """Judge the paper's claims and each of its cells by the records so far.

    With a selection, show its cells' verdicts only, corrected over all the paper's cells. The rules are
    experiments/claims.toml; docs/statistics.md has the formulas.
    """
    from repro.analysis.claims import claims_text, judgement_json
    from repro.analysis.rules import RULES_FILE, read_rules

    shown = narrowed(context, selected)
    rules = read_rules(context.project.experiments / RULES_FILE)
    claimed, cells = judge(context, rules)
    if shown is not None:
        claimed, cells = (), tuple(result for result in cells if result.cell in shown)
        if not cells:
            raise UsageError("the selection has none of the paper's cells, and claims are about these")
    text = judgement_json if as_json else claims_text
    click.echo(text(claimed, cells, context.preset, rules), nl=False)
    if shown is not None and not as_json:
        click.echo("\n" + "\n\n".join(map(cell_text, cells)))
    end_if_damaged(context.damaged)


def judge(context: "Context", rules: "Rules") -> "tuple[tuple[ClaimVerdict, ...], tuple[CellResult, ...]]":
    """The verdicts on the paper's claims and cells."""
    from repro.analysis.claims import claim_runs, judge_claims
    from repro.analysis.results import summarise
    from repro.analysis.verdicts import judge_cells

    registry, preset = context.registry, context.preset
    of_tables = dict.fromkeys(context.runs())
    states = list(context.states(dict.fromkeys([*of_tables, *claim_runs(rules, registry, preset)])))
    results = summarise(states[: len(of_tables)], registry, preset)
    return judge_claims(states, registry, preset, rules), judge_cells(results, registry, preset, rules)


def cell_text(result: "CellResult") -> str:
    """A cell in words: its id, each run, mean ± sample std, what the paper reports, and the verdict on it."""
    from repro.analysis.text import mean_text

    runs = [
        f"{mean_text(run.accuracy)} % top-1" if not run.short else run.reason or run.short
        for run in result.runs
    ]
    lines = [
        result.cell.id,
        *(f"  seed {run.seed}: {text}" for run, text in zip(result.runs, runs, strict=True)),
    ]
    lines.append(f"  mean: {' '.join(filter(None, (result.value, f'({result.count})')))}")
    if result.reported:
        lines.append(f"  reported: {mean_text(result.reported.mean, result.reported.std)}")
    lines += [f"  {text}" for text in (*result.notes, result.beside) if text]
    if result.verdict:
        lines.append(f"  verdict: {result.verdict.sentence}")
    return "\n".join(lines)


@command()
@JSON
def audit(as_json: bool) -> None:
    """Audit the paper by its own printed numbers; needs no record."""
    from repro.analysis.audit import audit_json, audit_paper, audit_text
    from repro.cli.context import Context

    context = Context.open("paper")
    found = audit_paper(context.registry, context.rules)
    click.echo(audit_json(found) if as_json else audit_text(found), nl=False)
