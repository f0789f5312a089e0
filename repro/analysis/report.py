"""`repro report`: everything that the records say, as one HTML file that needs nothing beside it.

    RunState … → CellResult …, TableText …, figures → page/report.html

The page is whole without JavaScript: every number is a link to its runs further down. The script opens them
in place, sorts and filters. The same records give the same bytes.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from repro.analysis import ablations, audit, curves, dot_plot, figures, style
from repro.analysis.claims import ClaimVerdict, judge_claims
from repro.analysis.results import CellResult, summarise
from repro.analysis.rules import Rules
from repro.analysis.tables import build_tables
from repro.analysis.text import plain
from repro.analysis.verdicts import Verdict, judge_cells, seeds_sentences
from repro.attempts import NOT_RUN_YET
from repro.config import Preset, format_axis
from repro.errors import counted
from repro.paper import Metric
from repro.record_state import RecordState, RunState
from repro.records import Provenance, RunRecord
from repro.registry import Cell, Registry

PAGE = files("repro.analysis") / "page"


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
    rules: Rules | None,
    origin: Origin,
    effects: Sequence[ablations.AblationEffect] = (),
    cells: Collection[Cell] | None = None,
) -> str:
    """The page for `states`, which hold every run that a table should show, done or not.

    `further` are runs that the claims need beyond those (`repro.analysis.claims.claim_runs`); `effects` are
    of every alternative of the ablations, run or not. Only cells among `cells` are on the page, by default
    all; verdicts and claims rest on all `states` whichever are shown.
    """
    results = summarise(states, registry, preset)
    if rules is not None:
        results = judge_cells(results, registry, preset, rules)
    claims = judge_claims([*states, *further], registry, preset, rules) if rules else ()
    if cells is not None:
        results = tuple(result for result in results if result.cell in cells)
        states = [state for state in states if state.run.cell in cells]
    tables = build_tables(results, registry, preset, origin.supplied)
    shown: dict[str, list[RunState]] = {}
    for state in sorted(states, key=lambda state: state.run.seed):
        # A run that does not exist takes no space; one that failed, was interrupted, or is running does.
        if state.record_state is not RecordState.MISSING or state.reason != NOT_RUN_YET:
            shown.setdefault(state.run.cell.id, []).append(state)
    words = [result.verdict.word for result in results if result.verdict]
    # The template calls what draws, so that a figure is described where it stands in the page.
    with style.figure_style():
        return _template("report.html").render(
            **_headline(results, states, registry),
            answer=_answer(words, claims, preset),
            plot=_plot,
            shown=shown,
            curves=curves,
            draw=dot_plot,
            figures=figures,
            ablations=ablations,
            audits=audit,
            to_svg=style.to_svg,
            preset=preset,
            origin=origin,
            registry=registry,
            paper=registry.paper,
            rules=rules,
            # Another preset is never held against the paper: the page says so once, above everything.
            comparable=preset.name == "paper" and rules is not None,
            verdict_counts=[(word, words.count(word)) for word in Verdict if word in words],
            tables=tables,
            seeds_sentences=seeds_sentences,
            networks=list(dict.fromkeys(column for table in tables for column in table.columns)),
            audit=audit.audit_paper(registry, rules) if audit.can_audit(registry) else None,
            claims=claims,
            effects=effects,
            ablation_groups=_ablation_groups(effects),
            missing_figures=figures.missing_for_figures(states, registry, preset),
            redrawn=list(figures.redrawn(states, registry, preset)),
            columns=curves.columns_of(states, registry),
            costs=_costs(_records(states)),
            style=_asset("report.css"),
            script=_asset("report.js"),
        )


def _records(states: Iterable[RunState]) -> list[RunRecord]:
    """The records that count."""
    return [state.record for state in states if state.counts and state.record is not None]


def _headline(
    results: Sequence[CellResult], states: Sequence[RunState], registry: Registry
) -> dict[str, Any]:
    """The page in numbers: of the paper's tables where there are any, `beyond` of all others."""
    records = _records(states)
    names = {table.name for table in registry.tables if table.of_paper}
    names = names or {table.name for table in registry.tables}
    own = [result for result in results if result.cell.table in names]
    runs = [run for result in own for run in result.runs]
    counts = Counter("diverged" if run.diverged else str(run.record_state) for run in runs)
    return {
        "own": own,
        "missing_runs": sum(result.missing for result in own),
        "beyond": [result for result in results if result.cell.table not in names],
        "device_hours": _hours(sum(map(_busy, records))),
        "devices": list(dict.fromkeys(record.provenance.device for record in records)),
        "newest": max((f"{record.provenance.ended:%Y-%m-%d}" for record in records), default="none yet"),
        "record_states": [(word, counts[word]) for word in (*RecordState, "diverged") if counts[word]],
    }


def _answer(words: Sequence[Verdict], claims: Sequence[ClaimVerdict], preset: Preset) -> str:
    """The page's answer in a sentence: what is reproduced and what is not."""
    if preset.name != "paper":
        return f"These runs are of the preset {preset.name}: they say nothing about the paper."
    counts = Counter(words)
    open_cells = len(words) - counts[Verdict.REPRODUCED] - counts[Verdict.OFF]
    found = f"{counts[Verdict.REPRODUCED]} reproduced, {counts[Verdict.OFF]} off, {open_cells} open"
    parts = [f"Of {counted(len(words), 'cell')}: {found}."] if words else []
    if claims:
        decided = Counter(str(claim.word) for claim in claims)
        texts = ", ".join(f"{number} {word}" for word, number in decided.items())
        parts.append(f"Of {counted(len(claims), 'claim')}: {texts}.")
    return " ".join(parts) or "The paper reports no number that is compared here."


def _plot(records: Sequence[RunRecord], reported: float | None, metric: Metric, cell: str) -> Markup:
    """The test metric by epoch as a small `<svg>`: a line per seed, the paper's number dashed.

    Drawn by hand: a page has 72 of them, and matplotlib takes a fifth of a second for each.
    """
    width, height, left, bottom = 340, 150, 30, 132
    epochs = max(record.config.recipe.epochs for record in records)
    lines = [
        [(e.epoch + 1, metric.of(e.test_accuracy)) for e in record.curve if e.test_accuracy is not None]
        for record in records
    ]
    top = max([value for line in lines for _, value in line] + ([reported] if reported else []), default=1)
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100) if top <= 4 * step)

    def place(epoch: float, value: float) -> str:
        x, y = left + (width - left - 14) * epoch / epochs, bottom - (bottom - 8) * value / (4 * step)
        return f"{x:.1f},{y:.1f}"

    marks = []
    for value in range(0, 4 * step + 1, step):
        y = place(0, value).partition(",")[2]
        marks.append(f'<path class="grid" d="M{left} {y}H{width - 14}"/>')
        marks.append(f'<text x="{left - 4}" y="{y}" dy="3" text-anchor="end">{value}</text>')
    for epoch in (0, epochs // 2, epochs):
        x = place(epoch, 0).partition(",")[0]
        marks.append(f'<text x="{x}" y="{height - 4}" text-anchor="middle">{epoch}</text>')
    if reported is not None:
        y = place(0, reported).partition(",")[2]
        marks.append(f'<path class="reported" d="M{left} {y}H{width - 14}"/>')
        marks.append(f'<text x="{width - 14}" y="{y}" dy="-3" text-anchor="end">paper</text>')
    for seed, line in enumerate(lines):
        points = " ".join(place(*point) for point in line)
        marks.append(f'<polyline class="seed-{seed % 3}" points="{points}"/>')
    label = f"Test {metric.measure} in percent by epoch, a line per seed: {cell}"
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup("".join([svg, *marks, "</svg>"]))


def _ablation_groups(effects: Sequence[ablations.AblationEffect]) -> list[list[ablations.AblationEffect]]:
    """The effects that can be computed, by ablation and cell."""
    groups: dict[tuple[str, str], list[ablations.AblationEffect]] = {}
    for effect in effects:
        if effect.difference is not None:
            place = (effect.variation.ablation.name, effect.variation.baseline.id)
            groups.setdefault(place, []).append(effect)
    return list(groups.values())


def _costs(records: Sequence[RunRecord]) -> list[dict[Any, Any]]:
    """Runs, median images per second, seconds and peak GiB of alike records."""
    columns = ["dataset", "network", "device", "speed", "seconds", "memory"]
    rows = [
        (
            record.data.title,
            record.config.network,
            _device(record.provenance),
            record.provenance.images_per_second,
            _busy(record),
            record.provenance.peak_memory_bytes / 2**30,
        )
        for record in records
    ]
    groups = pd.DataFrame(rows, columns=columns).groupby(columns[:3], sort=False)
    costs = groups.agg(
        runs=("speed", "size"),
        speed=("speed", "median"),
        seconds=("seconds", "sum"),
        memory=("memory", "max"),
    )
    return costs.reset_index().to_dict("records")


def _busy(record: RunRecord) -> float:
    """Seconds that the run's attempts took together; one that was killed has no end and is not counted."""
    attempts = record.provenance.attempts
    return sum((attempt.ended - attempt.started).total_seconds() for attempt in attempts if attempt.ended)


def _hours(seconds: float) -> str:
    """`2.3 h`, `41 min`, `8 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _device(made: Provenance) -> str:
    shared = f", {made.runs_on_device} runs at once" if made.runs_on_device > 1 else ""
    return f"{made.device}, {made.precision}{shared}"


def _anchor(cell_id: str) -> str:
    """A cell's id in the page, `cell-…`."""
    return "cell-" + "".join(c if c.isalnum() or c in "-." else "_" for c in cell_id)


def _why(sentence: str, word: str) -> str:
    """A verdict's sentence without the word, which stands before it in the page."""
    return sentence[len(word) :].lstrip(":.,; ") if sentence.lower().startswith(word) else sentence


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
        "tight": lambda text: text.replace(" = ", "\xa0=\xa0").replace(" %", "\xa0%"),  # no line breaks
        "anchor": _anchor,
        "why": _why,
        "setting": _plain,
        "device": _device,
        "busy": _busy,
        "hours": _hours,
        "plain": plain,
    }
    return environment.from_string((PAGE / name).read_text(encoding="utf-8"))
