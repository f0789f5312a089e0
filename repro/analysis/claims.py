"""The paper's claims as tests, and what the records say of them.

    RunState … + Rules  → ClaimVerdict …

A claim has one one-sided test, fixed in `experiments/claims.toml`: Wilcoxon's signed-rank test over the
columns' paired effects, exact, and Holm over all claims. With fewer whole columns than the rules ask for
there is no test: effect and interval are shown and the verdict is undecided.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import log

from repro.analysis.cell_verdict import signed
from repro.analysis.effects import Contrast, Effect, cell_id, measure_effect
from repro.analysis.inference import holm, signed_rank_p
from repro.analysis.layout import qualified_title
from repro.analysis.rules import Claim, Rules
from repro.errors import SelectionError
from repro.recipes import Preset
from repro.registry import Registry, Run
from repro.standings import RunState, Standing


class ClaimWord(StrEnum):
    """What is said of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim with its evidence.

    `title` is the statement behind the preset's title; `p` is None where there is no test, and counts as 1 in
    Holm's correction, which gives `p_adjusted`. `missing` has a sentence for each row with runs to come,
    `shown` the effects that are shown and not tested, `sentence` the verdict in words.
    """

    claim: Claim
    title: str
    word: ClaimWord
    effect: Effect
    p: float | None
    p_adjusted: float | None
    missing: tuple[str, ...]
    shown: tuple[tuple[str, Effect], ...]
    sentence: str


def claim_runs(rules: Rules, registry: Registry, preset: Preset) -> tuple[Run, ...]:
    """Every run that the claims compare; a row that no table has gives none."""
    runs: dict[str, Run] = {}
    for claim in rules.claims:
        for contrast in (contrast_of(claim), *(contrast for _, contrast in _shown(claim))):
            for table in registry.tables:
                for network in table.networks if table.of_paper else ():
                    for row in contrast.rows:
                        for seed in preset.seeds:
                            run_id = f"{cell_id(table, network, row)}/seed{seed}"
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
    generated = any(state.record.data.generated for state in states if state.counts and state.record)
    verdicts = [_tested(claim, by_cell, registry, preset, rules, generated) for claim in rules.claims]
    adjusted = holm([1.0 if verdict.p is None else verdict.p for verdict in verdicts])
    return tuple(
        _worded(replace(verdict, p_adjusted=None if verdict.p is None else p), preset, rules)
        for verdict, p in zip(verdicts, adjusted, strict=True)
    )


def claim_p(claim: Claim, effects: Sequence[float]) -> float:
    """The claim's test: Wilcoxon's exact one-sided p over the columns' effects against the margin."""
    sign = 1 if claim.direction == "greater" else -1
    scale = float if claim.measure == "accuracy" else log
    return signed_rank_p([sign * (scale(effect) - scale(claim.margin)) for effect in effects])


def effect_text(effect: Effect, level: float) -> str:
    """`+0.62 points (95 % interval +0.21 to +1.03)`, `factor 0.41 (no interval: …)`."""
    if effect.value is None:
        return "no effect can be computed yet"
    number = _number(effect.value, effect)
    text = f"{number} points" if effect.unit == "points" else f"a factor of {number}"
    if effect.low is None or effect.high is None:
        return f"{text} (no interval: a column has one seed)"
    low, high = _number(effect.low, effect), _number(effect.high, effect)
    return f"{text} ({100 * level:g} % interval {low} to {high})"


def _number(value: float, effect: Effect) -> str:
    return signed(value) if effect.unit == "points" else f"{value:.3g}"


def contrast_of(claim: Claim) -> Contrast:
    """What a claim compares."""
    return Contrast(claim.measure, claim.of, claim.of_combined, claim.over, claim.over_combined)


def _shown(claim: Claim) -> list[tuple[str, Contrast]]:
    return [
        (
            shown.label,
            Contrast(
                shown.measure or claim.measure,
                shown.of or claim.of,
                claim.of_combined,
                shown.over or claim.over,
                claim.over_combined,
            ),
        )
        for shown in claim.shown
    ]


def _known(registry: Registry, run_id: str) -> Run | None:
    """The run, or None for a row that no table has: a control that the experiments do not list."""
    try:
        return registry.parse(run_id)
    except SelectionError:
        return None


def _tested(
    claim: Claim,
    states: Mapping[str, Sequence[RunState]],
    registry: Registry,
    preset: Preset,
    rules: Rules,
    generated: bool,
) -> ClaimVerdict:
    effect = measure_effect(contrast_of(claim), states, registry, preset, rules.tests)
    enough = effect.whole_columns >= rules.tests.min_columns
    p = claim_p(claim, [column.value for column in effect.columns]) if enough else None
    return ClaimVerdict(
        claim=claim,
        title=qualified_title(claim.statement, preset, generated),
        word=ClaimWord.UNDECIDED,
        effect=effect,
        p=p,
        p_adjusted=None,
        missing=_missing(claim, states, registry, preset),
        shown=tuple(
            (label, measure_effect(contrast, states, registry, preset, rules.tests))
            for label, contrast in _shown(claim)
        ),
        sentence="",
    )


def _missing(
    claim: Claim, states: Mapping[str, Sequence[RunState]], registry: Registry, preset: Preset
) -> tuple[str, ...]:
    """A sentence for each row that lacks runs: how many, and why."""
    sentences = []
    columns = [(table, network) for table in registry.tables if table.of_paper for network in table.networks]
    expected = len(columns) * len(preset.seeds)
    for row in contrast_of(claim).rows:
        reasons: Counter[str] = Counter()
        for table, network in columns:
            of_cell = {state.run.seed: state for state in states.get(cell_id(table, network, row), ())}
            for seed in preset.seeds:
                state = of_cell.get(seed)
                if state is None:
                    reasons["in no table of the experiments"] += 1
                elif not state.counts:
                    missing = state.standing is Standing.MISSING
                    reasons[state.reason.partition(":")[0] if missing else f"{state.standing}"] += 1
                elif state.record is not None and state.record.result.accuracy is None:
                    reasons["diverged"] += 1
        if reasons:
            why = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
            sentences.append(f"{row}: {reasons.total()} of {expected} runs ({why})")
    return tuple(sentences)


def _worded(verdict: ClaimVerdict, preset: Preset, rules: Rules) -> ClaimVerdict:
    claim, effect, tests = verdict.claim, verdict.effect, rules.tests
    word, why = ClaimWord.UNDECIDED, ""
    if verdict.p is None or verdict.p_adjusted is None:
        why = f"{effect.whole_columns} of the {tests.min_columns} whole columns that a verdict needs"
    elif verdict.p_adjusted <= tests.alpha:
        word, why = ClaimWord.SUPPORTED, _p_text(verdict)
    elif _on_the_other_side(claim, effect):
        word, why = ClaimWord.CONTRADICTED, f"the whole interval is on the other side; {_p_text(verdict)}"
    else:
        why = _p_text(verdict)
    sentence = f"{word[0].upper()}{word[1:]}: {why}."
    if effect.columns:
        seeds = [len(column.seeds) for column in effect.columns]
        sizes = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        columns = f"{len(seeds)} column{'s' if len(seeds) > 1 else ''}"
        text = effect_text(effect, tests.level)
        sentence += f" {text[0].upper()}{text[1:]} over {columns}, n = {sizes} each."
    if preset.name != "paper":
        sentence += f" This is about the preset {preset.name}, not about the paper."
    return replace(verdict, word=word, sentence=sentence)


def _p_text(verdict: ClaimVerdict) -> str:
    return f"p = {verdict.p:.4f}, after Holm {verdict.p_adjusted:.4f}"


def _on_the_other_side(claim: Claim, effect: Effect) -> bool:
    if effect.low is None or effect.high is None:
        return False
    return effect.high < claim.margin if claim.direction == "greater" else effect.low > claim.margin
