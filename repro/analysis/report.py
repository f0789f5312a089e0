"""`repro report`: everything that the records say, as one HTML file that needs nothing beside it.

    RunState … → CellResult …, TableText …, figures → page/report.html

The page is whole without JavaScript: every number is a link to its runs further down. The script opens them
in place, sorts and filters. The same records give the same bytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from repro.analysis import ablations, audit, claims, curves, figures
from repro.analysis.claims import ClaimVerdict, ClaimWord
from repro.analysis.dot_plot import draw_ablations, draw_effect
from repro.analysis.results import CellResult, summarise
from repro.analysis.rules import Rules
from repro.analysis.style import figure_style, to_svg
from repro.analysis.tables import TableText, build_tables
from repro.analysis.text import plain
from repro.analysis.verdicts import Verdict, judge_cells, seeds_sentences
from repro.config import Preset, format_axis
from repro.record_state import RecordState, RunState
from repro.records import Provenance, RunRecord
from repro.registry import Registry

PAGE = files("repro.analysis") / "page"

# A verdict → its kind, which has a colour, and a symbol that says the same without colour.
CELL_SYMBOLS = {
    Verdict.REPRODUCED: ("good", "●"),
    Verdict.OFF: ("bad", "▲"),
    Verdict.UNDECIDED: ("open", "◐"),
    Verdict.INCOMPLETE: ("open", "○"),
    Verdict.NOT_COMPARABLE: ("open", "–"),
}
CLAIM_SYMBOLS = {
    ClaimWord.SUPPORTED: ("good", "●"),
    ClaimWord.CONTRADICTED: ("bad", "▲"),
    ClaimWord.UNDECIDED: ("open", "◐"),
    ClaimWord.INTERIM: ("open", "○"),
}
_STATE_WORDS = {
    RecordState.DONE: "done",
    RecordState.OLDER_CODE: "done by older code",
    RecordState.OTHER_RECIPE: "other recipe",
    RecordState.CORRUPT: "damaged",
    RecordState.MISPLACED: "damaged",
    RecordState.MISSING: "missing",
}
_STATE_ORDER = ("done", "done by older code", "diverged", "other recipe", "damaged", "missing")


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
    effects: Sequence[ablations.AblationEffect] = (),
) -> str:
    """The page for `states`, which hold every run that a table should show, done or not.

    `further` are runs that the claims need beyond those (`repro.analysis.claims.claim_runs`); `effects` are
    of every alternative of the ablations, run or not.
    """
    results = judge_cells(summarise(states, registry, preset), registry, preset, rules)
    tables = build_tables(results, registry, preset, origin.supplied)
    states_of: dict[str, list[RunState]] = {}
    for state in sorted(states, key=lambda state: state.run.seed):
        states_of.setdefault(state.run.cell.id, []).append(state)
    judged = claims.judge_claims([*states, *further], registry, preset, rules)
    words = [result.verdict.word for result in results if result.verdict]
    comparison = figures.find_comparison(states, registry)
    with figure_style():
        drawn = {
            "figures": _paper_figures(comparison, preset) if comparison else [],
            "columns": [_column(column, preset) for column in curves.columns_of(states, registry)],
            "plots": _cell_plots(results, states_of),
            "claim_plots": _claim_plots(judged),
            "ablation_plot": _ablation_plot(effects, registry, preset),
        }
    return _template("report.html").render(
        **drawn,
        **_headline(results, states, registry),
        **_audit(registry, rules),
        preset=preset,
        origin=origin,
        rules=rules,
        # Another preset is never held against the paper: the page says so once, above everything.
        comparable=preset.name == "paper",
        verdict_counts=[(word, words.count(word)) for word in Verdict if word in words],
        symbols=dict([*CELL_SYMBOLS.items(), *CLAIM_SYMBOLS.items()]),
        tables=[_table_facts(table, results, preset) for table in tables],
        networks=list(dict.fromkeys(column for table in tables for column in table.columns)),
        states_of=states_of,
        state_words=_STATE_WORDS,
        claims=judged,
        claim_texts=[claim.evidence(rules.tests.level) for claim in judged],
        ablation_groups=_ablation_groups(effects, registry),
        computed=sum(effect.difference is not None for effect in effects),
        all_effects=len(effects),
        how_effects=ablations.HOW,
        missing_figures=figures.missing_for_figures(states, preset),
        comparison=comparison,
        logit_rows=_logit_rows(comparison) if comparison else (),
        weight_rows=_weight_rows(comparison) if comparison else (),
        costs=_costs(_records(states)),
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def _records(states: Sequence[RunState]) -> list[RunRecord]:
    """The records that count."""
    return [state.record for state in states if state.counts and state.record is not None]


def _paper_figures(pair: curves.Column, preset: Preset) -> list[tuple[str, Markup]]:
    logits, weights = figures.draw_figure2(pair, preset), figures.draw_figure3(pair, preset)
    return [
        ("Figure 2", to_svg(logits, "figure2", "Figure 2: logits")),
        ("Figure 3", to_svg(weights, "figure3", "Figure 3: weight norms")),
    ]


def _column(column: curves.Column, preset: Preset) -> tuple[str, Markup, Markup]:
    """A column's title, its gradients and its curves."""
    name, title = column.name, column.title
    gradients, accuracy = curves.draw_gradients(column, preset), curves.draw_curves(column, preset)
    first = to_svg(gradients, f"gradients-{name}", f"Gradient norms by epoch: {title}")
    return title, first, to_svg(accuracy, f"curves-{name}", f"Test accuracy by epoch: {title}")


def _cell_plots(
    results: Sequence[CellResult], states_of: Mapping[str, Sequence[RunState]]
) -> dict[str, Markup]:
    """The curves of each cell that has a record, by cell id."""
    plots = {}
    for result in results:
        cell = result.cell.id
        if records := _records(states_of[cell]):
            figure = curves.draw_cell(records, result.reported.mean if result.reported else None)
            description = f"Test accuracy in percent by epoch, a line per seed: {cell}"
            plots[cell] = to_svg(figure, f"plot-{_anchor(cell)}", description)
    return plots


def _claim_plots(judged: Sequence[ClaimVerdict]) -> dict[str, Markup]:
    """The effect of each claim that has one, by the claim's name."""
    plots = {}
    for verdict in judged:
        if verdict.effect.value is not None:
            name, statement = verdict.claim.name, verdict.claim.statement
            description = f"{statement}: the effect in each column"
            plots[name] = to_svg(draw_effect(verdict.effect), f"claim-{name}", description)
    return plots


def _ablation_plot(
    effects: Sequence[ablations.AblationEffect], registry: Registry, preset: Preset
) -> Markup | None:
    if all(effect.difference is None for effect in effects):
        return None
    description = "What the paper leaves open: the effect of each alternative with its interval"
    return to_svg(draw_ablations(effects, registry, preset), "ambiguities", description)


def _audit(registry: Registry, rules: Rules) -> dict[str, Any]:
    """The audit's parts; it is of the paper's three tables, so a project with its own alone has none."""
    if not {table.name for table in registry.tables} >= {1, 2, 3}:
        return {"audit": None}
    found = audit.audit_paper(registry, rules)
    wins = {"wins_headers": audit.WINS_HEADERS, "wins": audit.wins_rows(found)}
    findings = audit.finding_sentences(found)
    return {"audit": found, "audit_lead": audit.wins_sentence(found), "findings": findings, **wins}


def _headline(
    results: Sequence[CellResult], states: Sequence[RunState], registry: Registry
) -> dict[str, Any]:
    """The page in numbers: of the paper's tables where there are any, `beyond` of all others."""
    records = _records(states)
    names = {table.name for table in registry.tables if table.of_paper}
    names = names or {table.name for table in registry.tables}
    own = [result for result in results if result.cell.table in names]
    runs = [run for result in own for run in result.runs]
    counts = Counter("diverged" if run.diverged else _STATE_WORDS[run.record_state] for run in runs)
    return {
        "runs": _runs(own),
        "cells": (sum(result.n == result.expected for result in own), len(own)),
        "beyond": _runs([result for result in results if result.cell.table not in names]),
        "device_hours": _hours(sum(map(_busy, records), timedelta())),
        "devices": list(dict.fromkeys(record.provenance.device for record in records)),
        "newest": max((f"{record.provenance.ended:%Y-%m-%d}" for record in records), default="none yet"),
        "record_states": [(word, counts[word]) for word in _STATE_ORDER if counts[word]],
    }


def _runs(results: Sequence[CellResult]) -> tuple[int, int]:
    """How many runs are counted, of how many."""
    return sum(result.n for result in results), sum(result.expected for result in results)


def _table_facts(table: TableText, results: Sequence[CellResult], preset: Preset) -> dict[str, Any]:
    """A table with its counts, why it is not comparable, and the command for what is missing."""
    beyond = [result for result in results if result.cell.table in table.beyond]
    foreign = (
        result.verdict.reason
        for result in table.results
        if result.verdict and result.verdict.word is Verdict.NOT_COMPARABLE
    )
    names = "".join(f" --table {name}" for name in (table.table, *table.beyond))
    return {
        "text": table,
        "runs": _runs(table.results),
        "beyond": _runs(beyond),
        "to_do": sum(len(result.blanks) - result.diverged for result in (*table.results, *beyond)),
        "foreign": list(dict.fromkeys(foreign)),
        "seeds": seeds_sentences(table.results),
        "command": f"repro run --preset {preset.name}{names}",
    }


def _ablation_groups(effects: Sequence[ablations.AblationEffect], registry: Registry) -> list[dict[str, Any]]:
    """The effects that can be computed, in words, by ablation and cell."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for effect in effects:
        if effect.difference is not None:
            ablation = effect.variation.ablation
            group = {"name": ablation.name, "question": ablation.question, "effects": []}
            place = (ablation.name, effect.variation.baseline.id)
            groups.setdefault(place, group)["effects"].append(ablations.effect_words(effect, registry))
    return list(groups.values())


def _logit_rows(pair: curves.Column) -> list[tuple[str, ...]]:
    """The numbers behind Figure 2: loss, seed, mean, std, quantiles 2.5, 25, 50, 75, 97.5 %."""
    rows = []
    for side, record in zip(pair.series, figures.one_seed(pair), strict=True):
        logits = record.probes.logits
        assert logits is not None, "a comparison is of records with probes"
        numbers = (logits.mean, logits.std, *(logits.quantiles[q] for q in ("2.5", "25", "50", "75", "97.5")))
        rows.append((side.label, str(record.config.seed), *map(plain, numbers)))
    return rows


def _weight_rows(pair: curves.Column) -> list[list[str]]:
    """The numbers behind Figure 3: a class, then each loss's mean over its seeds; the last row is of all."""
    means = [figures.weight_norms(series).mean(axis=0) for series in pair.series]
    named = [(f"class {k}", [values[k] for values in means]) for k in range(min(10, *map(len, means)))]
    named.append(("all classes", [values.mean() for values in means]))
    return [[name, *(f"{value:.3f}" for value in values)] for name, values in named]


def _costs(records: Sequence[RunRecord]) -> list[tuple[Any, ...]]:
    """Data set, network, device, runs, images per second, time and peak memory of alike records."""
    frame = pd.DataFrame(
        {
            "dataset": record.data.title,
            "network": record.config.network,
            "device": _device(record.provenance),
            "speed": record.provenance.images_per_second,
            "seconds": _busy(record).total_seconds(),
            "memory": record.provenance.peak_memory_bytes / 2**30,
        }
        for record in records
    )
    if frame.empty:
        return []
    groups = frame.groupby(["dataset", "network", "device"], sort=False)
    return [
        (
            *names,
            len(group),
            f"{group['speed'].median():,.0f}",
            _hours(timedelta(seconds=group["seconds"].sum())),
            f"{group['memory'].max():.1f} GiB",
        )
        for names, group in groups
    ]


def _busy(record: RunRecord) -> timedelta:
    """How long the run's attempts took together; one that was killed has no end and is not counted."""
    attempts = record.provenance.attempts
    return sum((attempt.ended - attempt.started for attempt in attempts if attempt.ended), timedelta())


def _hours(duration: timedelta) -> str:
    """`2.3 h`, `41 min`."""
    count = duration.total_seconds() / 3600
    return f"{count:.1f} h" if count >= 1 else f"{60 * count:.0f} min"


def _device(made: Provenance) -> str:
    shared = f", shared with {made.runs_on_device - 1} more" if made.runs_on_device > 1 else ""
    return f"{made.device}, {made.precision}{shared}"


def _anchor(cell_id: str) -> str:
    """A cell's id in the page, `cell-…`."""
    return "cell-" + "".join(c if c.isalnum() or c in "-." else "_" for c in cell_id)


def _why(sentence: str, word: str) -> str:
    """A verdict's sentence without the word, which stands before it in the page."""
    return sentence[len(word) :].lstrip(":.,; ") if sentence.lower().startswith(word) else sentence


def _settings(record: RunRecord) -> dict[str, str]:
    """The resolved configuration that the cell's runs share, as it stands in the record."""
    config = record.config
    settings: dict[str, object] = {"network": config.network, "loss": config.loss}
    settings |= {f"loss: {key}": value for key, value in config.loss_parameters.items()}
    settings |= {key: value for key, value in config.recipe.model_dump().items() if value is not None}
    return {key: _plain(value) for key, value in settings.items()}


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return format_axis(value) if isinstance(value, bool | int | float | str) else str(value)


def _asset(name: str) -> Markup:
    """A style sheet or script of ours, to stand in the page as it is."""
    return Markup((PAGE / name).read_text(encoding="utf-8"))


@cache
def _template(name: str) -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "tight": lambda text: text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"),
        "anchor": _anchor,
        "why": _why,
        "settings": _settings,
        "device": _device,
        "time": lambda record: _hours(_busy(record)),
    }
    return environment.from_string((PAGE / name).read_text(encoding="utf-8"))
