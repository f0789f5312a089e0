"""An audit of the paper by its own printed numbers: what they show, and what they cannot.

Everything is computed from `experiments/table*.toml`, `paper.toml` and the printed sentences in
`claims.toml`. Where the paper does not say which std it prints, each is read twice, with ddof = 1 and with
ddof = 0. A difference is tested with the spread pooled over its table; Welch's test on the two stds of a
comparison is given beside it, and with a few runs on each side it is weak. Without printed stds nothing can
be tested.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special
from tabulate import tabulate

from repro.analysis.effects import reported_effects
from repro.analysis.inference import Estimate, bartlett, holm, signed_rank_p, welch
from repro.analysis.rules import Claim, Printed, PrintedSplit, Rules, TestRules, WorkedExample
from repro.analysis.seeds import reported_spread, sample_std
from repro.analysis.text import json_text, signed
from repro.errors import RegistryError, counted
from repro.experiments import Row, Table
from repro.paper import PAPER_FILE, Method, Metric, Paper
from repro.registry import Registry


@dataclass(frozen=True)
class PaperAudit:
    """Everything the audit found, in percent and points; `alpha` is the level of its tests.

    `method` is what the paper proposes. `wins` has one row per proposed cell against the best rival of its
    column: its place, `mean`, `rival`, `rival_mean`, `difference` and whether that is `ahead`, and for each
    of the `readings` of the ± (…_ddof1, …_ddof0) the two-sided `p_pooled` and `p_pooled_holm` (over all
    wins), Welch's `t`, `degrees`, `p_welch`, `p_welch_holm`, and whether the difference is `shown`: p_pooled
    ≤ alpha. Without printed stds there are no readings. `scales` is the same of the best proposed row of each
    column against the worst.

    `spreads`, one row per table: its `cells` stds from `smallest` to `largest`, and their pooled value. `p`
    is Bartlett's: a small one finds unequal spreads, a large one proves nothing.

    `claims`, one row per claim of accuracy: its mean effect, in how many `columns` the paper's means are
    `ahead`, and the exact one-sided p of its own test alone. `depth`, one row per table of several networks:
    in how many `rows` the `first` network is ahead of all `others`, and by how much. `example` is the worked
    example recomputed, `split` the printed split against the smallest class that is kept; None where nothing
    is printed.
    """

    alpha: float
    method: str
    runs: int | None
    readings: tuple[int, ...]
    wins: pd.DataFrame
    scales: pd.DataFrame
    spreads: pd.DataFrame
    claims: pd.DataFrame
    depth: pd.DataFrame
    example: dict[str, Any] | None
    split: dict[str, Any] | None
    rules_sha256: str | None


def can_audit(registry: Registry) -> bool:
    """Whether the project says what its paper proposes, and a table of the paper has it beside a rival."""
    return any(_contestants(table, registry.paper.method) for table in _audited(registry))


def _audited(registry: Registry) -> list[Table]:
    return [table for table in registry.tables if table.of_paper and table.reports]


def _contestants(table: Table, method: Method | None) -> tuple[list[Row], list[Row]] | None:
    """The proposed rows of a table and their rivals; None where it lacks either."""
    if method is None:
        return None
    own = [row for row in table.rows if row.name in method.rows]
    rivals = [
        row for row in table.rows if row not in own and (row.name in method.rivals or not method.rivals)
    ]
    return (own, rivals) if own and rivals else None


def audit_paper(registry: Registry, rules: Rules | None) -> PaperAudit:
    """The audit of every table of the paper that reports numbers.

    Raises RegistryError where the project does not say what its paper proposes.
    """
    paper, tables = registry.paper, _audited(registry)
    if paper.method is None or not can_audit(registry):
        raise RegistryError(
            f"{registry.folder}/{PAPER_FILE}: an audit needs [method], with the rows that the paper "
            "proposes, and a table with printed numbers that has one of them beside a rival"
        )
    # Stds over a number of runs that the paper does not say, or only some of them, test nothing.
    stds = [cell.std for table in tables for row in table.rows for cell in row.reported.values()]
    readings = paper.reported.readings if (paper.reported.runs or 1) > 1 and None not in stds else ()
    wins, scales = [], []
    for table in tables:
        found = _contestants(table, paper.method)
        for network in table.networks if found else ():
            own, rivals = (
                sorted(rows, key=lambda row: paper.metric.of(row.reported[network].mean))
                for rows in found or ()
            )
            wins += [
                _compared(table, network, row, rivals[-1], paper, readings)
                for row in table.rows
                if row in own
            ]
            if len(own) > 1:
                scales.append(_compared(table, network, own[-1], own[0], paper, readings))
    alpha = rules.tests.alpha if rules else TestRules().alpha
    printed = rules.printed if rules else Printed()
    return PaperAudit(
        alpha=alpha,
        method=paper.method.name,
        runs=paper.reported.runs,
        readings=readings,
        wins=_tested(wins, readings, alpha),
        scales=_tested(scales, readings, alpha),
        spreads=pd.DataFrame([_spread(table, paper) for table in tables if readings]),
        claims=_claims(registry, rules.claims if rules else ()),
        depth=pd.DataFrame([_depth(table, paper.metric) for table in tables if len(table.networks) > 1]),
        example=_example(printed.worked_example) if printed.worked_example else None,
        split=_split(registry, printed.split) if printed.split else None,
        rules_sha256=rules.sha256 if rules else None,
    )


def _compared(
    table: Table, network: str, row: Row, rival: Row, paper: Paper, readings: Sequence[int]
) -> dict[str, Any]:
    """Two rows of a column with the tests of their difference, under each reading of the ±."""
    ours, theirs, runs = row.reported[network], rival.reported[network], paper.reported.runs or 1
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
        "ahead": paper.metric.is_worse(theirs.mean, ours.mean),
    }
    for ddof in readings:
        spread = reported_spread(table, paper, ddof)
        # One pooled std on both sides is one estimate: its degrees of freedom count once.
        pooled = Estimate(difference, (spread.std or 0.0) * math.sqrt(2 / runs), spread.degrees)
        first, second = ((sample_std(side.std, ddof, runs) or 0.0, runs, runs - 1) for side in (ours, theirs))
        own = welch(difference, first, second)
        found[f"p_pooled_ddof{ddof}"] = pooled.p_beyond(0)
        found[f"t_ddof{ddof}"] = difference / own.standard_error
        found[f"degrees_ddof{ddof}"] = own.degrees
        found[f"p_welch_ddof{ddof}"] = own.p_beyond(0)
    return found


def _tested(rows: Sequence[dict[str, Any]], readings: Sequence[int], alpha: float) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    for ddof in readings if rows else ():
        for p in ("p_pooled", "p_welch"):
            frame[f"{p}_holm_ddof{ddof}"] = holm(frame[f"{p}_ddof{ddof}"])
        frame[f"shown_ddof{ddof}"] = frame[f"p_pooled_ddof{ddof}"] <= alpha
    return frame


def _spread(table: Table, paper: Paper) -> dict[str, Any]:
    stds = [cell.std for row in table.rows for cell in row.reported.values() if cell.std is not None]
    statistic, p = bartlett(stds, paper.reported.runs or 1)
    spreads = {ddof: reported_spread(table, paper, ddof) for ddof in paper.reported.readings}
    return {
        "title": table.title,
        "cells": len(stds),
        "smallest": min(stds),
        "largest": max(stds),
        **{f"pooled_ddof{ddof}": spread.std for ddof, spread in spreads.items()},
        "degrees": next(iter(spreads.values())).degrees,
        "bartlett": statistic,
        "p": p,
    }


def _claims(registry: Registry, claims: Sequence[Claim]) -> pd.DataFrame:
    """The claims whose rows the paper all reports."""
    effects = {claim.name: np.array(reported_effects(claim, registry)) for claim in claims}
    return pd.DataFrame(
        {
            "name": claim.name,
            "statement": claim.statement,
            "mean": effects[claim.name].mean(),
            "ahead": int((claim.beyond(effects[claim.name]) > 0).sum()),
            "columns": len(effects[claim.name]),
            "p": signed_rank_p(claim.beyond(effects[claim.name])),
        }
        for claim in claims
        if len(effects[claim.name])
    )


def _depth(table: Table, metric: Metric) -> dict[str, Any]:
    means = pd.DataFrame(
        [{name: metric.of(row.reported[name].mean) for name in table.networks} for row in table.rows]
    )
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


def _split(registry: Registry, printed: PrintedSplit) -> dict[str, Any]:
    """A split is not literal where the smallest class that is kept has too few images for it."""
    table = registry.table(printed.table)
    if table.reported_data is None:
        raise RegistryError(f"{table.file}: [reported_data] is missing; claims.toml has its [printed.split]")
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
    both = " Each pair is for ± read with ddof = 1 / ddof = 0." if len(audit.readings) > 1 else ""
    parts = [
        f"The paper by its own printed numbers.{both}",
        wins_sentence(audit),
        tabulate(wins_rows(audit), headers=wins_headers(audit), tablefmt="plain", disable_numparse=True),
        "\n".join(f"- {sentence}" for sentence in finding_sentences(audit)),
        f"Rules: sha256 {audit.rules_sha256}." if audit.rules_sha256 else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def wins_headers(audit: PaperAudit) -> tuple[str, ...]:
    """The headers of the columns of `wins_rows`."""
    tests = ("pooled p", "after Holm", "Welch's p", "") if audit.readings else ()
    return ("column", audit.method, "best other", "Δ", *tests)


def wins_rows(audit: PaperAudit) -> list[tuple[str, ...]]:
    """The table of the wins; the last column names those that are not shown."""
    fields = ("p_pooled", "p_pooled_holm", "p_welch") if audit.readings else ()

    def mark(win: dict[str, Any]) -> str:
        not_shown = [ddof for ddof in audit.readings if not win[f"shown_ddof{ddof}"]]
        if len(not_shown) == len(audit.readings):
            return "not shown"
        return f"not shown if ddof = {not_shown[0]}" if not_shown else ""

    return [
        (
            win["column"],
            f"{win['row']} {win['mean']:.2f}",
            f"{win['rival']} {win['rival_mean']:.2f}",
            signed(win["difference"]),
            *(" / ".join(_p(win[f"{field}_ddof{ddof}"]) for ddof in audit.readings) for field in fields),
            *([mark(win)] if audit.readings else []),
        )
        for win in _rows(audit.wins)
    ]


def wins_sentence(audit: PaperAudit) -> str:
    """How many wins there are and how many are shown, by the pooled test first."""
    wins, alpha, count = audit.wins, audit.alpha, len(audit.wins)
    ahead = f"{audit.method}'s mean is ahead of the best other loss in {int(wins['ahead'].sum())} of "
    ahead += f"{counted(count, 'comparison')}."
    if not audit.readings:
        return f"{ahead} The paper prints no spread over a number of runs, so no difference can be tested."

    def pair(field: str, unlike: str = "") -> str:
        small = {ddof: wins[f"{field}_ddof{ddof}"] <= alpha for ddof in audit.readings}
        if unlike:
            small = {ddof: each != (wins[f"{unlike}_ddof{ddof}"] <= alpha) for ddof, each in small.items()}
        return " / ".join(str(int(each.sum())) for each in small.values())

    unequal = ", ".join(audit.spreads["title"][audit.spreads["p"] <= alpha])
    found = f"unequal spreads in {unequal}" if unequal else "no unequal spreads within a table"
    return (
        f"{ahead} With the spread pooled over a table, {pair('p_pooled')} of the "
        f"{count} are shown (p ≤ {alpha:g}), after Holm {pair('p_pooled_holm')}; the others are not "
        f"shown, which is not the same as no difference. Bartlett's test finds {found}. Welch's t, which is "
        f"weak with {audit.runs} runs on each side, shows {pair('p_welch')} and decides "
        f"{pair('p_welch', 'p_pooled')} differently. The best of the other losses is picked after the fact, "
        f"which leans against {audit.method}."
    )


def finding_sentences(audit: PaperAudit) -> tuple[str, ...]:
    """What the printed numbers say besides the wins, a sentence per finding."""
    claims = (
        f"{row['statement']}, by the printed means: {signed(row['mean'])} points, in {row['ahead']} of "
        f"{row['columns']} columns; Wilcoxon's exact one-sided p = {_p(row['p'])}."
        for row in _rows(audit.claims)
    )
    ahead = "{title}: {first} is ahead of {others} in {rows_ahead} of {rows} rows"
    depth = (
        f"{ahead}, by {{smallest_lead:.2f}} to {{largest_lead:.2f}} points.".format(**order)
        if order["rows_ahead"] == order["rows"]
        else f"{ahead}.".format(**order)
        for order in _rows(audit.depth)
    )
    pooled = " / ".join(f"{{pooled_ddof{ddof}:.3f}}" for ddof in audit.readings)
    spreads = (
        f"{{title}}: {{cells}} stds from {{smallest:.2f}} to {{largest:.2f}}, pooled {pooled} "
        "({degrees} degrees of freedom); Bartlett's p = {p:.4f}.".format(**spread)
        for spread in _rows(audit.spreads)
    )
    return (*claims, *_scale_sentences(audit), *depth, *_printed_sentences(audit), *spreads)


def _scale_sentences(audit: PaperAudit) -> Iterator[str]:
    """Which of several proposed rows is the best."""
    scales = audit.scales
    if len(scales):
        best = ", ".join(
            f"{row} in {count}" for row, count in scales["row"].value_counts().sort_index().items()
        )
        shown = " / ".join(str(scales[f"shown_ddof{ddof}"].sum()) for ddof in audit.readings)
        ahead = f"; shown to be ahead of the column's worst in {shown}" if shown else ""
        yield f"The best proposed row: {best} of {len(scales)} columns{ahead}."


def _printed_sentences(audit: PaperAudit) -> Iterator[str]:
    """What the paper prints outside its tables, recomputed."""
    if example := audit.example:
        examples = "; ".join(
            f"softmax of [{', '.join(map('{:g}'.format, logits))}] gives {computed:.4f}, "
            f"printed {printed:.4f}"
            for logits, computed, printed in zip(
                example["logits"], example["computed"], example["printed"], strict=True
            )
        )
        yield (
            f"The worked example: {examples}. The gain is {example['computed_gain']:.2f} points of the true "
            f"class's probability, printed as {example['printed_gain']:.2f} % of accuracy."
        )
    if split := audit.split:
        yield (
            "{title}'s split {can} be literal: {classes} classes with {train_per_class} training and "
            "{test_per_class} test images each, but classes are kept from {fewest_images} images on, which "
            "gives {train_of_smallest} and {test_of_smallest}.".format(
                **split, can="can" if split["literal"] else "cannot"
            )
        )


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< .0001"


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
