"""`repro claims` and `repro audit`: what the records say of the paper, and what the paper says of itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from repro.analysis.aggregate import CellSummary, integrity_errors, summarise
from repro.analysis.audit import PaperAudit, audit_paper
from repro.analysis.cell_verdict import CellVerdict, Judged
from repro.analysis.claims import ClaimVerdict, claim_runs, judge_claims
from repro.analysis.rules import RULES_FILE, Rules, read_rules
from repro.analysis.verdicts import judge_cells
from repro.commands.context import Context
from repro.registry import Selection


@dataclass(frozen=True)
class Judgement:
    """Everything that is judged of a preset's records; `damaged` are those that could not be believed."""

    summaries: tuple[CellSummary, ...]
    cells: tuple[CellVerdict, ...]
    claims: tuple[ClaimVerdict, ...]
    rules: Rules
    damaged: tuple[str, ...]


def judge(context: Context) -> Judgement:
    """Judges every cell of the paper's tables and every claim, from the records there are."""
    rules = project_rules(context)
    registry, preset = context.registry, context.preset
    of_tables = registry.select_runs(Selection(), preset)
    known = set(of_tables)
    needed = [run for run in claim_runs(rules, registry, preset) if run not in known]
    states = list(context.states([*of_tables, *needed]))
    summaries = summarise([state for state in states if state.run in known], registry, preset)
    return Judgement(
        summaries=summaries,
        cells=judge_cells(summaries, registry, preset, rules),
        claims=judge_claims(states, registry, preset, rules),
        rules=rules,
        damaged=tuple(str(error) for error in integrity_errors(states)),
    )


def audit(context: Context) -> PaperAudit:
    """The paper's own numbers, audited."""
    return audit_paper(context.registry, project_rules(context))


def judge_summaries(context: Context, summaries: Sequence[CellSummary]) -> Judged | None:
    """Verdicts for the summaries of all the paper's tables; None in a project that has no rules."""
    rules = optional_rules(context)
    if rules is None:
        return None
    return Judged(judge_cells(summaries, context.registry, context.preset, rules), rules)


def optional_rules(context: Context) -> Rules | None:
    """The project's rules; None where it has none, as one with tables of its own alone may."""
    return project_rules(context) if (context.project.experiments / RULES_FILE).exists() else None


def project_rules(context: Context) -> Rules:
    """The project's rules; raises RegistryError."""
    return read_rules(context.project.experiments / RULES_FILE)
