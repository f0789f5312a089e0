"""The paper's claims as tests, and what the records say of them.

    RunState … + Rules  → ClaimVerdict …

A claim is tested twice, as fixed in `experiments/claims.toml`: whether it is supported, and by the mirrored
test whether it is contradicted. Both are Wilcoxon's signed-rank test over the columns' paired effects,
one-sided and exact, each with Holm's correction over the claims of its family. The verdict is given once,
when every column that the rules name is complete. Until then the claim is interim and has no p.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from statistics import stdev

from repro.analysis.effects import (
    ColumnEffect,
    Effect,
    Evidence,
    column_text,
    effect_text,
    measure_effect,
    paper_columns,
)
from repro.analysis.inference import PooledSpread, holm, pool, signed_rank_p
from repro.analysis.results import CellResult
from repro.analysis.rules import Claim, Rules
from repro.analysis.seeds import Seeds, claim_seeds
from repro.analysis.text import json_text, preset_sentence, qualified_title, signed
from repro.analysis.verdicts import cells_sentence, seeds_sentences, verdict_fields
from repro.config import Preset
from repro.errors import SelectionError, counted
from repro.experiments import TableName
from repro.record_state import RunState
from repro.registry import Registry, Run


class ClaimWord(StrEnum):
    """What is said of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    INTERIM = "interim"


@dataclass(frozen=True)
class ClaimTest:
    """One of a claim's two tests: over how many columns, and its p.

    `p` is None before the verdict is due and where fewer columns than the minimum can be tested; it then
    counts as 1 in Holm's correction over the family, which gives `p_adjusted`.
    """

    columns: int
    p: float | None
    p_adjusted: float | None = None

    def __str__(self) -> str:
        if self.p is None or self.p_adjusted is None:
            return f"impossible with {counted(self.columns, 'column')}"
        over = counted(self.columns, "column")
        return f"p = {self.p:.4f}, after Holm {self.p_adjusted:.4f}, over {over}"


@dataclass(frozen=True, kw_only=True)
class ClaimVerdict:
    """A claim with its evidence.

    `title` is the statement behind the preset's title; `complete` of the `needed` columns have every run, and
    `minimum` is the fewest that can decide. `support` and `opposite` are the two tests, `mirror` the effect
    that the second one is of. `diverged` of the `runs` with a record did so. Where a run of the second
    side did, `without` is the word without those columns. `missing` has a sentence for each row with runs to
    come, `shown` the effects that are shown and not tested, `sentence` the verdict in words. `seeds`: what
    more seeds would decide, None where it is decided or of another preset.
    """

    claim: Claim
    title: str
    word: ClaimWord = ClaimWord.INTERIM
    effect: Effect
    mirror: Effect
    needed: int
    complete: int
    minimum: int
    support: ClaimTest = ClaimTest(0, None)
    opposite: ClaimTest = ClaimTest(0, None)
    diverged: int
    runs: int
    without: ClaimWord | None = None
    missing: tuple[str, ...]
    shown: tuple[tuple[str, Effect], ...]
    sentence: str = ""
    seeds: Seeds | None = None

    def evidence(self, level: float) -> dict[str, Sequence[str]]:
        """Sentences under their headings, some without any; `level` is of the effects' intervals."""
        return {
            "By column": [column_text(column, self.effect) for column in self.effect.columns],
            "Shown, not tested": [f"{label}: {effect_text(of, level)}" for label, of in self.shown],
            "Missing": self.missing,
        }


def claim_runs(rules: Rules, registry: Registry, preset: Preset) -> tuple[Run, ...]:
    """Every run that the claims compare; a row that no table has gives none."""
    runs: dict[str, Run] = {}
    for claim in rules.claims:
        changed = [claim.instead(change) for change in (claim.mirror, *claim.shown) if change]
        for row in dict.fromkeys(row for contrast in (claim, *changed) for row in contrast.rows):
            for table, network in paper_columns(registry):
                for seed in preset.seeds:
                    run_id = f"{table.dataset}/{network}/{row}/seed{seed}"
                    # A control may be in none of the project's tables.
                    with contextlib.suppress(SelectionError):
                        runs.setdefault(run_id, registry.parse(run_id))
    return tuple(runs.values())


def judge_claims(
    states: Sequence[RunState], registry: Registry, preset: Preset, rules: Rules
) -> tuple[ClaimVerdict, ...]:
    """A verdict for each claim, in the rules' order; `states` are those of `claim_runs` or more."""
    by_cell: dict[str, list[RunState]] = {}
    for state in states:
        by_cell.setdefault(state.run.cell.id, []).append(state)
    evidence = Evidence(by_cell, registry, preset, rules)
    verdicts = [_measured(claim, evidence) for claim in rules.claims]
    tested = _corrected([_tested(verdict) for verdict in verdicts], rules.tests.alpha)
    spreads, decided = _spreads(states), (ClaimWord.SUPPORTED, ClaimWord.CONTRADICTED)
    verdicts = []
    for verdict in tested:
        without = _without_diverged(verdict, tested, rules.tests.alpha)
        seeds = None
        if preset.name == "paper" and verdict.word not in decided:
            seeds = claim_seeds(verdict.claim, registry, rules, spreads, len(preset.seeds))
        verdicts.append(replace(_worded(verdict, without, preset, rules), seeds=seeds))
    return tuple(verdicts)


def _measured(claim: Claim, evidence: Evidence) -> ClaimVerdict:
    """The claim with its effects, not tested yet."""
    effect = measure_effect(claim, evidence)
    mirror = measure_effect(claim.instead(claim.mirror), evidence) if claim.mirror else effect
    whole = [{column.key for column in each.columns if column.whole} for each in (effect, mirror)]
    return ClaimVerdict(
        claim=claim,
        title=qualified_title(claim.statement, evidence.preset),
        effect=effect,
        mirror=mirror,
        needed=len(evidence.rules.tests.verdict_columns or evidence.columns),
        complete=len(whole[0] & whole[1]),
        minimum=evidence.rules.minimum_columns(claim),
        diverged=sum(column.diverged for column in effect.columns),
        runs=sum(column.runs for column in effect.columns),
        missing=_missing(claim, evidence),
        shown=tuple((each.label, measure_effect(claim.instead(each), evidence)) for each in claim.shown),
    )


def _tested(verdict: ClaimVerdict, leave_out: set[tuple[str, str]] | None = None) -> ClaimVerdict:
    """The claim with both p, None where the verdict is not due or cannot be given."""
    out = leave_out or set()
    sides = [[c for c in each.columns if c.key not in out] for each in (verdict.effect, verdict.mirror)]
    diverged = {column.key for columns in sides for column in columns if column.diverged}
    tests = []
    for side, columns in zip((1, -1), sides, strict=True):
        distances = _distances(verdict.claim, columns, diverged, side)
        testable = verdict.complete == verdict.needed and len(distances) >= verdict.minimum
        tests.append(ClaimTest(len(distances), signed_rank_p(distances) if testable else None))
    return replace(verdict, support=tests[0], opposite=tests[1])


def _distances(
    claim: Claim, columns: Iterable[ColumnEffect], diverged: set[tuple[str, str]], side: int
) -> list[float]:
    """What a test ranks: a number per column that can be tested, positive where it speaks for `side`.

    `side` is 1 for the claim and −1 for its opposite; in the columns of `diverged` a run of either test did.
    """
    distances = []
    for column in columns:
        if column.key in diverged and claim.diverged == "undecided-column":
            continue
        if column.key in diverged and claim.diverged == "largest-effect-against":
            distances.append(-inf)
        elif column.value is not None:
            distances.append(side * float(claim.beyond(column.value)))
    return distances


def _corrected(verdicts: Sequence[ClaimVerdict], alpha: float) -> list[ClaimVerdict]:
    """The claims with adjusted p, by Holm over each family and each of the two tests, and their words."""
    decided = []
    for verdict in verdicts:
        family = [other for other in verdicts if other.claim.family == verdict.claim.family]
        place = family.index(verdict)
        tests = []
        for of_family in ([other.support for other in family], [other.opposite for other in family]):
            adjusted = holm([1.0 if test.p is None else test.p for test in of_family])[place]
            test = of_family[place]
            tests.append(replace(test, p_adjusted=None if test.p is None else float(adjusted)))
        word = ClaimWord.UNDECIDED if verdict.complete == verdict.needed else ClaimWord.INTERIM
        for test, found in zip(tests, (ClaimWord.SUPPORTED, ClaimWord.CONTRADICTED), strict=True):
            if test.p_adjusted is not None and test.p_adjusted <= alpha:
                word = found
                break
        decided.append(replace(verdict, support=tests[0], opposite=tests[1], word=word))
    return decided


def _without_diverged(
    verdict: ClaimVerdict, family: Sequence[ClaimVerdict], alpha: float
) -> ClaimVerdict | None:
    """The claim without the columns in which a run of its second side diverged; None where there are none.

    The other claims of `family` keep their p.
    """
    columns = (*verdict.effect.columns, *verdict.mirror.columns)
    gone = {column.key for column in columns if column.over_diverged}
    if verdict.claim.diverged != "chance-accuracy" or not gone or verdict.word is ClaimWord.INTERIM:
        return None
    others = [_tested(verdict, gone) if other is verdict else other for other in family]
    return _corrected(others, alpha)[[other is verdict for other in family].index(True)]


def _spreads(states: Iterable[RunState]) -> dict[TableName, PooledSpread]:
    """Our within-cell spread by table, in points."""
    cells: dict[TableName, dict[str, list[float]]] = {}
    for state in states:
        accuracy = state.record.result.accuracy if state.counts and state.record else None
        if accuracy is not None and state.run.cell.reported is not None:
            cells.setdefault(state.run.cell.table, {}).setdefault(state.run.cell.id, []).append(accuracy)
    return {
        table: pool([(stdev(runs), len(runs)) for runs in of_table.values() if len(runs) > 1])
        for table, of_table in cells.items()
    }


def _missing(claim: Claim, evidence: Evidence) -> tuple[str, ...]:
    """A sentence for each row that lacks runs: how many."""
    columns, seeds = evidence.columns, evidence.preset.seeds
    expected = len(columns) * len(seeds)
    states = {row: [state for place in columns for state in evidence.runs(*place, row)] for row in claim.rows}
    found = {row: sum(s.counts and s.run.seed in seeds for s in of_row) for row, of_row in states.items()}
    return tuple(f"{row}: {expected - n} of {expected} runs" for row, n in found.items() if n < expected)


_DIVERGED = {
    "chance-accuracy": "they count at chance accuracy",
    "largest-effect-against": "their columns count as the largest effect against what is tested",
    "undecided-column": "their columns are left out of the test",
}


def _worded(
    verdict: ClaimVerdict, without: ClaimVerdict | None, preset: Preset, rules: Rules
) -> ClaimVerdict:
    """The verdict with its sentence: the word and why, diverged runs, the effect, and whose verdict it is."""
    parts = [f"{verdict.word.capitalize()}: {_why(verdict)}."]
    if verdict.diverged:
        runs = f"{verdict.diverged} of {verdict.runs} runs diverged"
        parts.append(f"{runs}; {_DIVERGED[verdict.claim.diverged]}.")
    if without is not None:
        parts.append(
            f"Without the columns in which a run of the other side diverged: {without.word}, {_why(without)}."
        )
    seeds = [len(column.seeds) for column in verdict.effect.columns if column.seeds]
    if seeds:
        sizes = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        text = effect_text(verdict.effect, rules.tests.level)
        parts.append(f"{text[0].upper()}{text[1:]} over {counted(len(seeds), 'column')}, n = {sizes} each.")
    if preset.name != "paper":
        parts.append(f"This is about the preset {preset.name}, not about the paper.")
    return replace(verdict, without=without.word if without else None, sentence=" ".join(parts))


def _why(verdict: ClaimVerdict) -> str:
    """What the word rests on."""
    support, opposite = verdict.support, verdict.opposite
    if verdict.complete < verdict.needed:
        needed = verdict.needed
        return f"{verdict.complete} of {needed} columns complete; the verdict is given at {needed}"
    if support.p is None and opposite.p is None:
        needs = f"a {verdict.claim.family} claim needs at least {verdict.minimum}"
        return f"{counted(support.columns, 'column')} can be tested, and {needs}"
    texts = {ClaimWord.SUPPORTED: f"{support}", ClaimWord.CONTRADICTED: f"mirrored test {opposite}"}
    return texts.get(verdict.word) or "; ".join(texts.values())


def claims_text(
    claims: Sequence[ClaimVerdict], cells: Sequence[CellResult], preset: Preset, rules: Rules
) -> str:
    """Every claim with its verdict, its columns and what is missing; above them the cells, counted."""
    head = (preset_sentence(preset), cells_sentence(cells), "\n".join(seeds_sentences(cells)), rules.stamp)
    parts = [*filter(None, head)]
    for number, verdict in enumerate(claims, 1):
        lines = [f"{number}. {verdict.title}", f"   {verdict.sentence}"]
        effect = verdict.effect
        if verdict.seeds:
            lines.append(f"   Seeds: {verdict.seeds.sentence}")
        if effect.reported is not None:
            lines.append(f"   In the paper's own numbers: {signed(effect.reported)} points.")
        if verdict.claim.caution:
            lines.append(f"   {verdict.claim.caution}")
        for heading, texts in verdict.evidence(rules.tests.level).items():
            lines += [f"   {heading}:", *(f"     {text}" for text in texts)] if texts else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def judgement_json(
    claims: Sequence[ClaimVerdict], cells: Sequence[CellResult], preset: Preset, rules: Rules
) -> str:
    """Everything that was judged.

    {"schema_version": 1, "preset": its name, "rules": {"file", "sha256"},
     "cells": [verdict_fields(…)], "claims": [the fields of ClaimVerdict, Effect and ColumnEffect]}
    """
    content = {
        "schema_version": 1,
        "preset": preset.name,
        "rules": rules.fields,
        "cells": [{"id": result.cell.id, **fields} for result in cells if (fields := verdict_fields(result))],
        "claims": [
            {**dataclasses.asdict(verdict), "claim": verdict.claim.model_dump(mode="json")}
            for verdict in claims
        ],
    }
    return json_text(content)
