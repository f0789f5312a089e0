"""Claims and the audit in words for a terminal, and whole for a program."""

import dataclasses
import json
from collections.abc import Sequence

from tabulate import tabulate

from repro.analysis.audit import DepthOrder, PaperAudit, ReportedClaim, StdSpread
from repro.analysis.cell_verdict import CellVerdict, cells_sentence, signed, verdict_fields
from repro.analysis.claims import ClaimVerdict, effect_text
from repro.analysis.effects import ColumnEffect, Effect
from repro.analysis.layout import network_label, preset_sentence
from repro.analysis.rules import Rules
from repro.config import Preset
from repro.registry import Registry


def claims_text(
    claims: Sequence[ClaimVerdict], cells: Sequence[CellVerdict], preset: Preset, rules: Rules
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


def column_text(column: ColumnEffect, effect: Effect) -> str:
    """A column's effect, both sides' values, and its n."""
    diverged = f"{column.diverged} run{'s' if column.diverged > 1 else ''} diverged"
    if column.value is None:
        return f"{column.label}: {diverged if column.diverged else 'nothing to compare'}"
    number = signed(column.value) if effect.unit == "points" else f"{column.value:.3g}"
    digits = ".2f" if effect.unit == "points" else ".3g"
    text = f"{column.label}: {number} ({column.of_value:{digits}} against {column.over_value:{digits}}, "
    text += f"n = {len(column.seeds)})"
    if column.reported is not None:
        text += f"; the paper {signed(column.reported)}"
    if column.diverged:
        text += f"; {diverged}"
    return text


def judgement_json(
    claims: Sequence[ClaimVerdict], cells: Sequence[CellVerdict], preset: Preset, rules: Rules
) -> str:
    """Everything that was judged.

    {"schema_version": 1, "preset": its name, "rules": {"file", "sha256"},
     "cells": [verdict_fields(…)], "claims": [the fields of ClaimVerdict, Effect and ColumnEffect]}
    """
    content = {
        "schema_version": 1,
        "preset": preset.name,
        "rules": rules_fields(rules),
        "cells": [{"id": verdict.cell.id, **verdict_fields(verdict)} for verdict in cells],
        "claims": [
            {**dataclasses.asdict(verdict), "claim": verdict.claim.model_dump(mode="json")}
            for verdict in claims
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def rules_fields(rules: Rules) -> dict[str, str]:
    """Which rules judged."""
    return {"file": rules.place, "sha256": rules.sha256}


def audit_json(audit: PaperAudit) -> str:
    """The fields of PaperAudit and of everything in it."""
    content = {"schema_version": 1, **dataclasses.asdict(audit)}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def audit_text(audit: PaperAudit, registry: Registry) -> str:
    """The audit for a reader: a heading and its lines for each finding."""
    names = {(table.name, network): f"{table.title} {network_label(table, network)}"
             for table in registry.tables for network in table.networks}  # fmt: skip
    parts = [
        "An audit of the paper by its own printed numbers. Each p is for ± read with ddof = 1 / ddof = 0.",
        "\n".join(claim_sentence(claim) for claim in audit.claims),
        f"{wins_sentence(audit)}\n\n{_wins_table(audit, names)}",
        "\n".join(depth_sentence(order) for order in audit.depth),
        "\n".join(
            [
                "Which m is best, and Welch's p against the worst m of the column:",
                *(
                    f"  {names[scale.table, scale.network]}: {scale.best} "
                    f"({', '.join(f'{mean:.2f}' for _, mean in scale.means)}; "
                    f"p = {_p(scale.p_against_worst[0])} / {_p(scale.p_against_worst[1])})"
                    for scale in audit.scales
                ),
            ]
        ),
        example_sentence(audit),
        split_sentence(audit),
        "\n".join(spread_sentence(spread) for spread in audit.spreads),
        f"Rules: sha256 {audit.rules_sha256}.",
    ]
    return "\n\n".join(parts) + "\n"


def claim_sentence(claim: ReportedClaim) -> str:
    """A claim of accuracy by the paper's own means."""
    return (
        f"{claim.statement}, by the printed means: {signed(claim.mean)} points, in {claim.ahead} of "
        f"{len(claim.effects)} columns; Wilcoxon's exact one-sided p = {_p(claim.p)}."
    )


def wins_sentence(audit: PaperAudit) -> str:
    """How many wins there are, and how many are within the paper's own noise."""
    ahead = sum(win.difference > 0 for win in audit.wins)
    noise = [sum(win.within_noise[place] for win in audit.wins) for place in (0, 1)]
    corrected = [sum(win.within_noise_holm[place] for win in audit.wins) for place in (0, 1)]
    pooled = [sum(win.tests[place].p_pooled_holm > audit.alpha for win in audit.wins) for place in (0, 1)]
    return (
        f"Scaled BN's mean is ahead of the best other loss in {ahead} of {len(audit.wins)} comparisons. By "
        f"Welch's t on the printed numbers {noise[0]} / {noise[1]} of them are within the paper's own noise "
        f"(p > {audit.alpha:g}), after Holm {corrected[0]} / {corrected[1]}; with the spread pooled over a "
        f"table and Holm, {pooled[0]} / {pooled[1]}. The best of five other losses is picked after the fact, "
        "which leans against scaled BN."
    )


def depth_sentence(order: DepthOrder) -> str:
    """Whether the shallow network is ahead of the deep ones."""
    others = " and ".join(order.others)
    text = f"{order.title}: {order.first} is ahead of {others} in {order.rows_ahead} of {order.rows} rows"
    if order.rows_ahead == order.rows:
        text += f", by {order.smallest_lead:.2f} to {order.largest_lead:.2f} points"
    return f"{text}."


def example_sentence(audit: PaperAudit) -> str:
    """The worked example, printed and true."""
    example = audit.example
    pairs = [
        f"softmax of [{', '.join(map('{:g}'.format, logits))}] gives {computed:.4f}, printed {printed:.4f}"
        for logits, computed, printed in zip(example.logits, example.computed, example.printed, strict=True)
    ]
    return (
        f"The worked example of Section 3: {'; '.join(pairs)}. The gain is {example.computed_gain:.2f} "
        f"points of the true class's probability, printed as {example.printed_gain:.2f} % of accuracy."
    )


def split_sentence(audit: PaperAudit) -> str:
    """Whether the printed split can be literal."""
    split = audit.split
    verdict = "can" if split.literal else "cannot"
    return (
        f"{split.title}'s split {verdict} be literal: {split.classes} classes with {split.train_per_class} "
        f"training and {split.test_per_class} test images each, but classes are kept from "
        f"{split.fewest_images} images on, which gives {split.train_of_smallest} and "
        f"{split.test_of_smallest}."
    )


def spread_sentence(spread: StdSpread) -> str:
    """A table's stds against chance."""
    return (
        f"{spread.title}: {spread.cells} stds from {spread.smallest:.2f} to {spread.largest:.2f}, pooled "
        f"{spread.pooled_ddof1:.3f} (ddof = 0: {spread.pooled_ddof0:.3f}; {spread.degrees} degrees of "
        f"freedom). Chance alone puts {100 * spread.level:g} % between {spread.expected_low:.2f} and "
        f"{spread.expected_high:.2f}: {spread.outside} outside, {spread.expected_outside:.1f} expected; "
        f"Bartlett's p = {_p(spread.p)}, so {'one' if spread.p > 0.05 else 'no single'} std fits all cells."
    )


def _wins_table(audit: PaperAudit, names: dict[tuple[int | str, str], str]) -> str:
    marks = {(False, False): "", (True, True): "within noise", (False, True): "within noise if ddof = 0"}
    lines = [
        (
            names[win.table, win.network],
            f"{win.row} {win.mean:.2f}",
            f"{win.rival} {win.rival_mean:.2f}",
            signed(win.difference),
            *(
                f"{_p(getattr(win.tests[0], field))} / {_p(getattr(win.tests[1], field))}"
                for field in ("p", "p_holm", "p_pooled")
            ),
            marks[win.within_noise],
        )
        for win in audit.wins
    ]
    headers = ("column", "scaled BN", "best other", "Δ", "Welch p", "Holm", "pooled p", "")
    return tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True)


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< .0001"
