"""Verdicts, claims and the audit as parts of the report's page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from repro.analysis.audit import PaperAudit
from repro.analysis.claims import ClaimVerdict, ClaimWord, effect_text
from repro.analysis.effects import Effect
from repro.analysis.rules import Rules
from repro.analysis.verdict_text import (
    claim_sentence,
    column_text,
    depth_sentence,
    example_sentence,
    split_sentence,
    spread_sentence,
    wins_sentence,
)
from repro.analysis.verdicts import CellVerdict, Verdict


@dataclass(frozen=True)
class VerdictPart:
    """A verdict: `kind` is good, bad or open; the symbol says the same without colour.

    `sentence` begins with the word, `why` is the rest of it.
    """

    kind: str
    symbol: str
    word: str
    sentence: str

    @property
    def why(self) -> str:
        """The sentence without the word, which stands before it in the page."""
        rest = self.sentence[len(self.word) :] if self.sentence.lower().startswith(self.word) else ""
        return rest.lstrip(":.,; ") if rest else self.sentence


@dataclass(frozen=True)
class ClaimPart:
    """A claim of the paper with its evidence; `columns`, `shown` and `missing` are sentences."""

    statement: str
    verdict: VerdictPart
    caution: str
    plot: Markup | None
    columns: tuple[str, ...]
    shown: tuple[str, ...]
    missing: tuple[str, ...]


CELL_SYMBOLS = {
    Verdict.REPRODUCED: ("good", "●"),
    Verdict.OFF: ("bad", "▲"),
    Verdict.UNDECIDED: ("open", "◐"),
    Verdict.INCOMPLETE: ("open", "○"),
    Verdict.NOT_COMPARABLE: ("open", "–"),
}
"""A cell's verdict → its kind, which has a colour, and its symbol."""

CLAIM_SYMBOLS = {
    ClaimWord.SUPPORTED: ("good", "●"),
    ClaimWord.CONTRADICTED: ("bad", "▲"),
    ClaimWord.UNDECIDED: ("open", "◐"),
    ClaimWord.INTERIM: ("open", "○"),
}


def cell_verdict(verdict: CellVerdict) -> VerdictPart:
    """A cell's verdict as the page shows it."""
    kind, symbol = CELL_SYMBOLS[verdict.word]
    return VerdictPart(kind, symbol, str(verdict.word), verdict.sentence)


def claim_part(verdict: ClaimVerdict, rules: Rules) -> ClaimPart:
    """A claim as the page shows it."""
    kind, symbol = CLAIM_SYMBOLS[verdict.word]
    effect, level = verdict.effect, rules.tests.level
    return ClaimPart(
        statement=verdict.claim.statement,
        verdict=VerdictPart(kind, symbol, str(verdict.word), verdict.sentence),
        caution=verdict.claim.caution,
        plot=_forest(effect, verdict.claim.statement) if effect.value is not None else None,
        columns=tuple(column_text(column, effect) for column in effect.columns),
        shown=tuple(f"{label}: {effect_text(of, level)}" for label, of in verdict.shown),
        missing=verdict.missing,
    )


def audit_sentences(audit: PaperAudit) -> tuple[str, ...]:
    """What the paper's own numbers say, a sentence a finding."""
    return (
        *(claim_sentence(claim) for claim in audit.claims),
        wins_sentence(audit),
        *(depth_sentence(order) for order in audit.depth),
        example_sentence(audit),
        split_sentence(audit),
        *(spread_sentence(spread) for spread in audit.spreads),
    )


def verdict_counts(verdicts: Sequence[CellVerdict]) -> tuple[tuple[VerdictPart, int], ...]:
    """How many cells have each verdict, those without any left out."""
    counts = []
    for word, (kind, symbol) in CELL_SYMBOLS.items():
        number = sum(verdict.word is word for verdict in verdicts)
        if number:
            counts.append((VerdictPart(kind, symbol, str(word), ""), number))
    return tuple(counts)


def _forest(effect: Effect, statement: str) -> Markup:
    """A dot a column, and below them the mean with its interval; factors on a log scale."""
    log = effect.unit == "factor"

    def scale(value: float) -> float:
        return math.log(value) if log else value

    neutral = 0.0
    drawn = [(column, column.value) for column in effect.columns if column.value is not None]
    values = [scale(value) for _, value in drawn]
    values += [column.reported for column, _ in drawn if column.reported is not None and not log]
    values += [scale(value) for value in (effect.low, effect.high, effect.value) if value is not None]
    low, high = min(*values, neutral), max(*values, neutral)
    room = 0.08 * (high - low) or 1.0
    low, high = low - room, high + room
    width, left, right, row = 440, 195, 20, 18
    height = row * (len(drawn) + 1) + 26

    def x(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    parts = [
        f'<svg class="forest" role="img" aria-label="{escape(statement)}: the effect in each column" '
        f'viewBox="0 0 {width} {height}">',
        f'<path class="grid" d="M{x(neutral):.1f} 4V{height - 20}"/>',
    ]
    for index, (column, of_column) in enumerate(drawn):
        y = row * index + 12
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 3}" text-anchor="end">{escape(column.label)}</text>'
        )
        if column.reported is not None and not log:
            parts.append(
                f'<path class="of-paper" d="M{x(column.reported):.1f} {y - 5}v10">'
                "<title>the paper</title></path>"
            )
        parts.append(f'<circle class="dot" cx="{x(scale(of_column)):.1f}" cy="{y}" r="4"/>')
    y = row * len(drawn) + 12
    if effect.value is not None:
        parts.append(f'<text class="tick strong" x="{left - 8}" y="{y + 3}" text-anchor="end">mean</text>')
        if effect.low is not None and effect.high is not None:
            parts.append(
                f'<path class="interval" d="M{x(scale(effect.low)):.1f} {y}H{x(scale(effect.high)):.1f}"/>'
            )
        middle = x(scale(effect.value))
        parts.append(f'<path class="mean" d="M{middle:.1f} {y - 5}l5 5l-5 5l-5 -5z"/>')
    parts.append(
        f'<text class="tick" x="{left - 24}" y="{height - 6}" text-anchor="end">'
        f"{'times as much' if log else 'points'}</text>"
    )
    for tick in _ticks(low, high, log):
        sign = "" if log or not tick else "+" if tick > 0 else "−"
        parts.append(
            f'<text class="tick" x="{x(scale(tick)):.1f}" y="{height - 6}" text-anchor="middle">'
            f"{sign}{abs(tick):g}</text>"
        )
    parts.append("</svg>")
    return Markup("".join(parts))


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Three to six round values within the axis, the one of no difference among them."""
    if log:
        known = [
            mantissa * 10.0**power for power in range(-4, 5) for mantissa in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        ]
        inside = [value for value in known if low <= math.log(value) <= high]
        return inside if len(inside) <= 6 else [value for value in inside if f"{value:e}"[0] in "125"]
    step = 10.0 ** math.floor(math.log10(high - low))
    while (high - low) / step > 6:
        step *= 2
    while (high - low) / step < 3:
        step /= 2
    return [round(step * index, 6) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
