"""An audit of the paper by its own printed numbers: what they show, and what they cannot.

Everything is computed from `experiments/table*.toml` and the printed sentences in `experiments/claims.toml`.
Each ± is read twice, as a std with ddof = 1 and with ddof = 0, since the paper does not say. A difference is
tested with the spread pooled over its table (48 degrees of freedom in the paper's); Welch's test on the two
stds of a comparison is given beside it, and with three runs on each side it is weak.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special
from tabulate import tabulate

from repro.analysis.effects import reported_effects
from repro.analysis.inference import Estimate, bartlett, holm, signed_rank_p, welch
from repro.analysis.rules import Rules, WorkedExample
from repro.analysis.seeds import PAPER_RUNS, reported_spread, sample_std
from repro.analysis.text import json_text, signed
from repro.errors import RegistryError
from repro.experiments import Row, Table
from repro.registry import Registry

METHOD = "scaled-bn"  # the loss that the paper proposes
WINS_HEADERS = ("column", "scaled BN", "best other", "Δ", "pooled p", "after Holm", "Welch's p", "")


@dataclass(frozen=True)
class PaperAudit:
    """Everything the audit found, in percent and points; `alpha` is the level of its tests.

    `wins` has one row per scaled-BN cell against the best other loss of its column: its place, `mean`,
    `rival`, `rival_mean`, `difference`, and for each reading of the ± (…_ddof1, …_ddof0) the two-sided
    `p_pooled` and `p_pooled_holm` (over all wins), Welch's `t`, `degrees`, `p_welch`, `p_welch_holm`, and
    whether the difference is `shown`: p_pooled ≤ alpha. `scales` is the same of the best m of each column
    against its worst.

    `spreads`, one row per table: its `cells` stds from `smallest` to `largest`, and their pooled value. `p`
    is Bartlett's: a small one finds unequal spreads, a large one proves nothing.

    `claims`, one row per claim of accuracy: its mean effect, in how many `columns` the paper's means are
    `ahead`, and the exact one-sided p of its own test alone. `depth`, one row per table: in how many `rows`
    the `first` network is ahead of all `others`, and by how much. `example` is the worked example recomputed,
    `split` the printed split against the smallest class that is kept.
    """

    alpha: float
    wins: pd.DataFrame
    scales: pd.DataFrame
    spreads: pd.DataFrame
    claims: pd.DataFrame
    depth: pd.DataFrame
    example: dict[str, Any]
    split: dict[str, Any]
    rules_sha256: str


def audit_paper(registry: Registry, rules: Rules) -> PaperAudit:
    """The audit of every table of the paper that reports numbers."""
    tables = [table for table in registry.tables if table.of_paper and table.reports]
    wins, scales = [], []
    for table in tables:
        for network in table.networks:
            rows = sorted(table.rows, key=lambda row: row.reported[network].mean)
            rival = [row for row in rows if row.loss != METHOD][-1]
            own = [row for row in rows if row.loss == METHOD]
            wins += [_compared(table, network, row, rival) for row in table.rows if row.loss == METHOD]
            scales.append(_compared(table, network, own[-1], own[0]))
    alpha = rules.tests.alpha
    return PaperAudit(
        alpha=alpha,
        wins=_tested(wins, alpha),
        scales=_tested(scales, alpha),
        spreads=pd.DataFrame([_spread(table) for table in tables]),
        claims=_claims(registry, rules),
        depth=pd.DataFrame([_depth(table) for table in tables]),
        example=_example(rules.printed.worked_example),
        split=_split(registry, rules),
        rules_sha256=rules.sha256,
    )


def _compared(table: Table, network: str, row: Row, rival: Row) -> dict[str, Any]:
    """Two rows of a column with the tests of their difference, under both readings of the ±."""
    ours, theirs = row.reported[network], rival.reported[network]
    difference = ours.mean - theirs.mean
    found = {
        "dataset": table.dataset,
        "network": network,
        "column": f"{table.title} {table.networks[network]}",
        "row": row.name,
        "mean": ours.mean,
        "rival": rival.name,
        "rival_mean": theirs.mean,
        "difference": difference,
    }
    for ddof in (1, 0):
        spread = reported_spread(table, ddof)
        # One pooled std on both sides is one estimate: its degrees of freedom count once.
        pooled = Estimate(difference, (spread.std or 0.0) * math.sqrt(2 / PAPER_RUNS), spread.degrees)
        first, second = ((sample_std(side.std, ddof), PAPER_RUNS, PAPER_RUNS - 1) for side in (ours, theirs))
        own = welch(difference, first, second)
        found[f"p_pooled_ddof{ddof}"] = pooled.p_beyond(0)
        found[f"t_ddof{ddof}"] = difference / own.standard_error
        found[f"degrees_ddof{ddof}"] = own.degrees
        found[f"p_welch_ddof{ddof}"] = own.p_beyond(0)
    return found


def _tested(rows: Sequence[dict[str, Any]], alpha: float) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    for ddof in (1, 0):
        for p in ("p_pooled", "p_welch"):
            frame[f"{p}_holm_ddof{ddof}"] = holm(frame[f"{p}_ddof{ddof}"])
        frame[f"shown_ddof{ddof}"] = frame[f"p_pooled_ddof{ddof}"] <= alpha
    return frame


def _spread(table: Table) -> dict[str, Any]:
    stds = [reported.std for row in table.rows for reported in row.reported.values()]
    statistic, p = bartlett(stds, PAPER_RUNS)
    return {
        "title": table.title,
        "cells": len(stds),
        "smallest": min(stds),
        "largest": max(stds),
        **{f"pooled_ddof{ddof}": reported_spread(table, ddof).std for ddof in (1, 0)},
        "degrees": reported_spread(table, 1).degrees,
        "bartlett": statistic,
        "p": p,
    }


def _claims(registry: Registry, rules: Rules) -> pd.DataFrame:
    """The claims whose rows the paper all reports."""
    effects = {claim.name: np.array(reported_effects(claim, registry)) for claim in rules.claims}
    return pd.DataFrame(
        {
            "name": claim.name,
            "statement": claim.statement,
            "mean": effects[claim.name].mean(),
            "ahead": int((claim.beyond(effects[claim.name]) > 0).sum()),
            "columns": len(effects[claim.name]),
            "p": signed_rank_p(claim.beyond(effects[claim.name])),
        }
        for claim in rules.claims
        if len(effects[claim.name])
    )


def _depth(table: Table) -> dict[str, Any]:
    means = pd.DataFrame([{name: row.reported[name].mean for name in table.networks} for row in table.rows])
    first, *others = table.networks
    leads = means[others].rsub(means[first], axis=0)
    return {
        "title": table.title,
        "first": table.networks[first],
        "others": " and ".join(table.networks[name] for name in others),
        "rows": len(leads),
        "rows_ahead": int((leads > 0).all(axis=1).sum()),
        "smallest_lead": leads.min().min(),
        "largest_lead": leads.max().max(),
    }


def _example(printed: WorkedExample) -> dict[str, Any]:
    """The last class's probability by softmax, in the paper's worked example."""
    computed = [float(special.softmax(logits)[-1]) for logits in printed.logits]
    return {
        "logits": printed.logits,
        "printed": printed.probabilities,
        "computed": computed,
        "printed_gain": printed.gain_percent,
        "computed_gain": 100 * (computed[1] - computed[0]),
    }


def _split(registry: Registry, rules: Rules) -> dict[str, Any]:
    """A split is not literal where the smallest class that is kept has too few images for it."""
    printed = rules.printed.split
    table = registry.table(printed.table)
    if table.reported_data is None:
        raise RegistryError(f"{table.file}: [reported_data] is missing; {rules.file} has its [printed.split]")
    data, test = table.reported_data, round(printed.test_share * printed.fewest_images)
    return {
        "title": table.title,
        **data.model_dump(),
        "fewest_images": printed.fewest_images,
        "train_of_smallest": printed.fewest_images - test,
        "test_of_smallest": test,
        "literal": printed.fewest_images >= data.train_per_class + data.test_per_class,
    }


def audit_json(audit: PaperAudit) -> str:
    """The fields of PaperAudit; a frame is a list with one object per row."""
    fields = {name: _rows(of) if isinstance(of, pd.DataFrame) else of for name, of in vars(audit).items()}
    return json_text({"schema_version": 2, **fields})


def audit_text(audit: PaperAudit) -> str:
    """The audit on one page: what the wins show, their table, and a line per further finding."""
    parts = [
        "The paper by its own printed numbers. Each pair is for ± read with ddof = 1 / ddof = 0.",
        wins_sentence(audit),
        tabulate(wins_rows(audit), headers=WINS_HEADERS, tablefmt="plain", disable_numparse=True),
        "\n".join(f"- {sentence}" for sentence in finding_sentences(audit)),
        f"Rules: sha256 {audit.rules_sha256}.",
    ]
    return "\n\n".join(parts) + "\n"


def wins_rows(audit: PaperAudit) -> list[tuple[str, ...]]:
    """The table of the wins under WINS_HEADERS; the last column names those that are not shown."""
    marks = {(True, True): "", (False, False): "not shown", (True, False): "not shown if ddof = 0"}
    fields = ("p_pooled", "p_pooled_holm", "p_welch")
    return [
        (
            win["column"],
            f"{win['row']} {win['mean']:.2f}",
            f"{win['rival']} {win['rival_mean']:.2f}",
            signed(win["difference"]),
            *(f"{_p(win[f'{field}_ddof1'])} / {_p(win[f'{field}_ddof0'])}" for field in fields),
            marks[win["shown_ddof1"], win["shown_ddof0"]],
        )
        for win in _rows(audit.wins)
    ]


def wins_sentence(audit: PaperAudit) -> str:
    """How many wins there are and how many are shown, by the pooled test first."""
    wins, alpha = audit.wins, audit.alpha

    def pair(field: str, unlike: str = "") -> str:
        small = [wins[f"{field}_ddof{ddof}"] <= alpha for ddof in (1, 0)]
        if unlike:
            small = [s != (wins[f"{unlike}_ddof{d}"] <= alpha) for s, d in zip(small, (1, 0), strict=True)]
        return " / ".join(str(int(each.sum())) for each in small)

    unequal = ", ".join(audit.spreads["title"][audit.spreads["p"] <= alpha])
    found = f"unequal spreads in {unequal}" if unequal else "no unequal spreads within a table"
    return (
        f"Scaled BN's mean is ahead of the best other loss in {int((wins['difference'] > 0).sum())} of "
        f"{len(wins)} comparisons. With the spread pooled over a table, {pair('p_pooled')} of the "
        f"{len(wins)} are shown (p ≤ {alpha:g}), after Holm {pair('p_pooled_holm')}; the others are not "
        f"shown, which is not the same as no difference. Bartlett's test finds {found}. Welch's t, which is "
        f"weak with three runs on each side, shows {pair('p_welch')} and decides "
        f"{pair('p_welch', 'p_pooled')} differently. The best of the other losses is picked after the fact, "
        "which leans against scaled BN."
    )


def finding_sentences(audit: PaperAudit) -> tuple[str, ...]:
    """What the printed numbers say besides the wins, a sentence per finding."""
    example, scales = audit.example, audit.scales
    best = ", ".join(f"{row} in {count}" for row, count in scales["row"].value_counts().sort_index().items())
    examples = "; ".join(
        f"softmax of [{', '.join(map('{:g}'.format, logits))}] gives {computed:.4f}, printed {printed:.4f}"
        for logits, computed, printed in zip(
            example["logits"], example["computed"], example["printed"], strict=True
        )
    )
    ahead = "{title}: {first} is ahead of {others} in {rows_ahead} of {rows} rows"
    return (
        *(
            f"{row['statement']}, by the printed means: {signed(row['mean'])} points, in {row['ahead']} of "
            f"{row['columns']} columns; Wilcoxon's exact one-sided p = {_p(row['p'])}."
            for row in _rows(audit.claims)
        ),
        f"The best m: {best} of {len(scales)} columns; shown to be ahead of the column's worst in "
        f"{scales['shown_ddof1'].sum()} / {scales['shown_ddof0'].sum()}.",
        *(
            f"{ahead}, by {{smallest_lead:.2f}} to {{largest_lead:.2f}} points.".format(**order)
            if order["rows_ahead"] == order["rows"]
            else f"{ahead}.".format(**order)
            for order in _rows(audit.depth)
        ),
        f"The worked example of Section 3: {examples}. The gain is {example['computed_gain']:.2f} points of "
        f"the true class's probability, printed as {example['printed_gain']:.2f} % of accuracy.",
        "{title}'s split {can} be literal: {classes} classes with {train_per_class} training and "
        "{test_per_class} test images each, but classes are kept from {fewest_images} images on, which gives "
        "{train_of_smallest} and {test_of_smallest}.".format(
            **audit.split, can="can" if audit.split["literal"] else "cannot"
        ),
        *(
            "{title}: {cells} stds from {smallest:.2f} to {largest:.2f}, pooled {pooled_ddof1:.3f} / "
            "{pooled_ddof0:.3f} ({degrees} degrees of freedom); Bartlett's p = {p:.4f}.".format(**spread)
            for spread in _rows(audit.spreads)
        ),
    )


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< .0001"


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
