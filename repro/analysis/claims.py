"""The paper's claims as tests, and what the records say of them.

    RunState … + Rules  → ClaimVerdict …

A claim is tested twice, as fixed in `experiments/claims.toml`: whether it is supported, and by the mirrored
test whether it is contradicted. Both are Wilcoxon's signed-rank test over the columns' paired effects,
one-sided and exact, each with Holm's correction over the claims of its family. The verdict is given once,
when every column that the rules name is complete. Until then the claim is interim and has no p.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf, log
from typing import Any

from repro.analysis.effects import (
    ColumnEffect,
    Effect,
    Evidence,
    column_text,
    effect_text,
    measure_effect,
    paper_columns,
)
from repro.analysis.inference import holm, signed_rank_p
from repro.analysis.results import CellResult
from repro.analysis.rules import Claim, Rules
from repro.analysis.text import counted, preset_sentence, qualified_title, signed
from repro.analysis.verdicts import cells_sentence, verdict_fields
from repro.config import Preset
from repro.errors import SelectionError
from repro.record_state import RecordState, RunState
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


@dataclass(frozen=True, kw_only=True)
class ClaimVerdict:
    """A claim with its evidence.

    `title` is the statement behind the preset's title; `complete` of the `needed` columns have every run, and
    `minimum` is the fewest that can decide. `support` and `opposite` are the two tests, `mirror` the effect
    that the second one is of. `diverged` of the `runs` with a record did so. Where a run of the second
    side did, `without` is the word without those columns. `missing` has a sentence for each row with runs to
    come, `shown` the effects that are shown and not tested, `sentence` the verdict in words.
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


def claim_runs(rules: Rules, registry: Registry, preset: Preset) -> tuple[Run, ...]:
    """Every run that the claims compare; a row that no table has gives none."""
    runs: dict[str, Run] = {}
    for claim in rules.claims:
        changes = [claim.instead(change) for change in (claim.mirror, *claim.shown) if change]
        rows = dict.fromkeys(row for contrast in (claim, *changes) for row in contrast.rows)
        for row in rows:
            for table, network in paper_columns(registry):
                for seed in preset.seeds:
                    run_id = f"{table.dataset}/{network}/{row}/seed{seed}"
                    if run_id not in runs and (run := _known(registry, run_id)):
                        runs[run_id] = run
    return tuple(runs.values())


def judge_claims(
    states: Sequence[RunState], registry: Registry, preset: Preset, rules: Rules
) -> tuple[ClaimVerdict, ...]:
    """A verdict for each claim, in the rules' order; `states` are those of `claim_runs` or more."""
    by_cell: dict[str, list[RunState]] = {}
    for state in states:
        by_cell.setdefault(state.run.cell.id, []).append(state)
    evidence = Evidence(by_cell, registry, preset, rules)
    generated = any(state.record.data.generated for state in states if state.counts and state.record)
    verdicts = [_measured(claim, evidence, generated) for claim in rules.claims]
    due = [_tested(verdict, verdict.effect.columns, verdict.mirror.columns) for verdict in verdicts]
    return tuple(_worded(verdict, due, preset, rules) for verdict in _decided(due, rules))


def claim_p(claim: Claim, effects: Sequence[float]) -> float:
    """The claim's test: Wilcoxon's exact one-sided p over the columns' effects against the margin."""
    return signed_rank_p([_beyond(claim, effect) for effect in effects])


def _beyond(claim: Claim, effect: float) -> float:
    """How far an effect is on the claim's side of its margin; of factors in logarithms."""
    sign = 1 if claim.direction == "greater" else -1
    scale = float if claim.measure == "accuracy" else log
    return sign * (scale(effect) - scale(claim.margin))


def _distances(
    claim: Claim, columns: Sequence[ColumnEffect], diverged: set[tuple[str, str]], side: int
) -> list[float]:
    """What a test ranks: a number per column that can be tested, positive where it speaks for `side`.

    `side` is 1 for the claim and −1 for its opposite; in the columns of `diverged` a run of either test did.
    """
    distances = []
    for column in columns:
        if _key(column) in diverged and claim.diverged == "undecided-column":
            continue
        if _key(column) in diverged and claim.diverged == "largest-effect-against":
            distances.append(-inf)
        elif column.value is not None:
            distances.append(side * _beyond(claim, column.value))
    return distances


def _key(column: ColumnEffect) -> tuple[str, str]:
    return column.dataset, column.network


def _known(registry: Registry, run_id: str) -> Run | None:
    """The run, or None for a row that no table has: a control that the experiments do not list."""
    try:
        return registry.parse(run_id)
    except SelectionError:
        return None


def _measured(claim: Claim, evidence: Evidence, generated: bool) -> ClaimVerdict:
    """The claim with its effects, not tested yet."""
    effect = measure_effect(claim, evidence)
    mirror = measure_effect(claim.instead(claim.mirror), evidence) if claim.mirror else effect
    whole = [{_key(column) for column in each.columns if column.whole} for each in (effect, mirror)]
    shown = [(each.label, measure_effect(claim.instead(each), evidence)) for each in claim.shown]
    return ClaimVerdict(
        claim=claim,
        title=qualified_title(claim.statement, evidence.preset, generated),
        effect=effect,
        mirror=mirror,
        needed=len(evidence.rules.tests.verdict_columns),
        complete=len(whole[0] & whole[1]),
        minimum=evidence.rules.minimum_columns(claim),
        diverged=sum(column.diverged for column in effect.columns),
        runs=sum(column.runs for column in effect.columns),
        missing=_missing(claim, evidence),
        shown=tuple(shown),
    )


def _tested(
    verdict: ClaimVerdict, columns: Sequence[ColumnEffect], mirror: Sequence[ColumnEffect]
) -> ClaimVerdict:
    """The claim with both p over these columns, None where the verdict is not due or cannot be given."""
    diverged = {_key(column) for column in (*columns, *mirror) if column.diverged}
    tests = []
    for side, of_side in ((1, columns), (-1, mirror)):
        distances = _distances(verdict.claim, of_side, diverged, side)
        testable = verdict.complete == verdict.needed and len(distances) >= verdict.minimum
        tests.append(ClaimTest(len(distances), signed_rank_p(distances) if testable else None))
    return replace(verdict, support=tests[0], opposite=tests[1])


def _decided(verdicts: Sequence[ClaimVerdict], rules: Rules) -> list[ClaimVerdict]:
    """The claims with adjusted p, by Holm over each family and each of the two tests, and their words."""
    decided = list(verdicts)
    for family in {verdict.claim.family for verdict in verdicts}:
        places = [place for place, verdict in enumerate(verdicts) if verdict.claim.family == family]
        for name in ("support", "opposite"):
            tests: list[ClaimTest] = [getattr(verdicts[place], name) for place in places]
            adjusted = holm([1.0 if test.p is None else test.p for test in tests])
            for place, test, p in zip(places, tests, adjusted, strict=True):
                changes: Any = {name: replace(test, p_adjusted=None if test.p is None else p)}
                decided[place] = replace(decided[place], **changes)
    return [replace(verdict, word=_word(verdict, rules.tests.alpha)) for verdict in decided]


def _word(verdict: ClaimVerdict, alpha: float) -> ClaimWord:
    if verdict.complete < verdict.needed:
        return ClaimWord.INTERIM
    if verdict.support.p_adjusted is not None and verdict.support.p_adjusted <= alpha:
        return ClaimWord.SUPPORTED
    if verdict.opposite.p_adjusted is not None and verdict.opposite.p_adjusted <= alpha:
        return ClaimWord.CONTRADICTED
    return ClaimWord.UNDECIDED


def _without_diverged(
    verdict: ClaimVerdict, family: Sequence[ClaimVerdict], rules: Rules
) -> ClaimVerdict | None:
    """The claim without the columns in which a run of its second side diverged; None where there are none.

    The other claims of `family` keep their p.
    """
    gone = {
        _key(column)
        for effect in (verdict.effect, verdict.mirror)
        for column in effect.columns
        if column.over_diverged
    }
    if verdict.claim.diverged != "chance-accuracy" or not gone or verdict.word is ClaimWord.INTERIM:
        return None
    columns, mirror = (
        [column for column in effect.columns if _key(column) not in gone]
        for effect in (verdict.effect, verdict.mirror)
    )
    alone = _tested(verdict, columns, mirror)
    others = [alone if other.claim == verdict.claim else other for other in family]
    return next(other for other in _decided(others, rules) if other.claim == verdict.claim)


def _missing(claim: Claim, evidence: Evidence) -> tuple[str, ...]:
    """A sentence for each row that lacks runs: how many, and why."""
    sentences = []
    seeds = evidence.preset.seeds
    for row in claim.rows:
        reasons: Counter[str] = Counter()
        for table, network in evidence.columns:
            of_cell = {state.run.seed: state for state in evidence.runs(table, network, row)}
            reasons.update(filter(None, (_lacking(of_cell.get(seed)) for seed in seeds)))
        if reasons:
            why = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
            expected = len(evidence.columns) * len(seeds)
            sentences.append(f"{row}: {reasons.total()} of {expected} runs ({why})")
    return tuple(sentences)


def _lacking(state: RunState | None) -> str:
    """Why a run has no number, in a few words; empty where it has one."""
    if state is None:
        return "in no table of the experiments"
    if state.record_state is RecordState.MISSING:
        return state.reason.partition(":")[0]
    if not state.counts or state.record is None:
        return f"{state.record_state}"
    return "diverged" if state.record.result.accuracy is None else ""


def _worded(
    verdict: ClaimVerdict, family: Sequence[ClaimVerdict], preset: Preset, rules: Rules
) -> ClaimVerdict:
    """The verdict with its sentence: the word and why, diverged runs, the effect, and whose verdict it is."""
    effect = verdict.effect
    parts = [f"{verdict.word[0].upper()}{verdict.word[1:]}: {_why(verdict)}."]
    if verdict.diverged:
        runs = f"{verdict.diverged} of {verdict.runs} runs diverged"
        how = {
            "chance-accuracy": "they count at chance accuracy",
            "largest-effect-against": "their columns count as the largest effect against what is tested",
            "undecided-column": "their columns are left out of the test",
        }[verdict.claim.diverged]
        parts.append(f"{runs}; {how}.")
    without = _without_diverged(verdict, family, rules)
    if without is not None:
        parts.append(
            f"Without the columns in which a run of the other side diverged: {without.word}, {_why(without)}."
        )
    measured = [column for column in effect.columns if column.seeds]
    if measured:
        seeds = [len(column.seeds) for column in measured]
        sizes = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        text = effect_text(effect, rules.tests.level)
        parts.append(f"{text[0].upper()}{text[1:]} over {counted(len(seeds), 'column')}, n = {sizes} each.")
    if preset.name != "paper":
        parts.append(f"This is about the preset {preset.name}, not about the paper.")
    word = None if without is None else without.word
    return replace(verdict, without=word, sentence=" ".join(parts))


def _why(verdict: ClaimVerdict) -> str:
    """What the word rests on."""
    support, opposite, minimum = verdict.support, verdict.opposite, verdict.minimum
    if verdict.complete < verdict.needed:
        needed = verdict.needed
        return f"{verdict.complete} of {needed} columns complete; the verdict is given at {needed}"
    if support.p is None and opposite.p is None:
        return (
            f"{counted(support.columns, 'column')} can be tested, and a {verdict.claim.family} claim needs "
            f"at least {minimum}"
        )
    mirrored = f"mirrored test {_p_text(opposite)}"
    if verdict.word is ClaimWord.CONTRADICTED:
        return mirrored
    return _p_text(support) if verdict.word is ClaimWord.SUPPORTED else f"{_p_text(support)}; {mirrored}"


def _p_text(test: ClaimTest) -> str:
    if test.p is None or test.p_adjusted is None:
        return f"impossible with {counted(test.columns, 'column')}"
    return f"p = {test.p:.4f}, after Holm {test.p_adjusted:.4f}, over {counted(test.columns, 'column')}"


def claims_text(
    claims: Sequence[ClaimVerdict], cells: Sequence[CellResult], preset: Preset, rules: Rules
) -> str:
    """Every claim with its verdict, its columns and what is missing; above them a count of the cells."""
    parts = [line for line in (preset_sentence(preset), cells_sentence(cells), rules.stamp) if line]
    for number, verdict in enumerate(claims, 1):
        lines = [f"{number}. {verdict.title}", f"   {verdict.sentence}"]
        effect = verdict.effect
        if effect.reported is not None:
            lines.append(f"   In the paper's own numbers: {signed(effect.reported)} points.")
        if effect.correlation is not None:
            lines.append(f"   Both sides over seeds correlate with r = {signed(effect.correlation)}.")
        lines += [f"     {column_text(column, effect)}" for column in effect.columns]
        if verdict.shown:
            lines.append("   Shown, not tested:")
            lines += [f"     {label}: {effect_text(of, rules.tests.level)}" for label, of in verdict.shown]
        if verdict.claim.caution:
            lines.append(f"   {verdict.claim.caution}")
        if verdict.missing:
            lines.append("   Missing:")
            lines += [f"     {text}" for text in verdict.missing]
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
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
