"""`repro compare`: two sets of results cell by cell, as yours against those in another's bundle."""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from repro.cli.options import DATA_DIR, JSON, PRESET, command, end_if_damaged, select
from repro.errors import UsageError

if TYPE_CHECKING:
    from repro.analysis.results import CellResult
    from repro.cli.context import Context
    from repro.paper import Metric
    from repro.record_state import RunState
    from repro.registry import Run, Selection

_SET = (
    "--set, --study: every run with a record is compared, overrides too; --loss, --network, … narrow it down"
)


@command()
@click.argument("first", metavar="A", type=click.Path(exists=True, path_type=Path))
@click.argument("second", metavar="B", type=click.Path(exists=True, path_type=Path))
@PRESET
@DATA_DIR
@select(axes=_SET, studies=_SET)
@JSON
def compare(
    first: Path, second: Path, preset: str, data_dir: Path | None, selected: "Selection", as_json: bool
) -> None:
    """Compare two results folders, or files that `repro bundle` made, cell by cell.

    The difference is B − A in points with its 95 % interval: over the seeds that both have, paired; with
    fewer than two of these Welch's of the two means. Shown, not tested. Of the runs that both have, it counts
    those with equal accuracy and those that are identical in every number of result, curve and probes.
    """
    from repro.analysis.results import summarise
    from repro.cli.context import Context
    from repro.record_state import recorded_runs

    with tempfile.TemporaryDirectory(prefix="repro-compare-") as scratch:
        sides = [
            Context.open(preset, _folder(path, Path(scratch) / name, data_dir), data_dir)
            for path, name in ((first, "a"), (second, "b"))
        ]
        found = [recorded_runs(side.project, side.preset, side.registry)[0] for side in sides]
        runs = list(dict.fromkeys([*found[0], *found[1]]))
        if any(vars(selected).values()):
            places = {cell.place for cell in sides[0].registry.select_cells(selected)}
            seeds = selected.seeds or [run.seed for run in runs]
            runs = [run for run in runs if run.cell.place in places and run.seed in seeds]
        digests: list[dict[str, str]] = [{}, {}]
        results = [
            summarise(_watched(side, runs, numbers), side.registry, side.preset)
            for side, numbers in zip(sides, digests, strict=True)
        ]
    metric = sides[0].registry.paper.metric
    rows = [_row(a, b, digests, metric) for a, b in zip(*results, strict=True) if a.n and b.n]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        click.echo(_markdown(rows, first, second, len(results[0]) - len(rows)))
    end_if_damaged(sides[0].damaged | sides[1].damaged)


def _folder(path: Path, scratch: Path, data: Path | None) -> Path:
    """A folder of results: `path` itself, or where the records of a bundle were unpacked."""
    from repro.cli.context import Context
    from repro.cli.share import Fate, merge_bundles

    if path.is_dir():
        return path
    offers = merge_bundles(Context.open("paper", scratch, data), [path])
    if refused := [offer for offer in offers if offer.fate is Fate.REFUSED]:
        raise UsageError(f"{path}: {refused[0].name}: {refused[0].reason}")
    return scratch


def _watched(context: "Context", runs: "list[Run]", digests: dict[str, str]) -> "Iterator[RunState]":
    """The states without curves; `digests` gets a hash of every number of each record that counts."""
    from repro.record_state import trimmed

    for state in context.states(runs):
        if state.counts and state.record is not None:
            content = state.record.comparable()
            numbers = {key: content[key] for key in ("result", "curve", "probes")}
            digests[state.run.id] = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
        yield trimmed(state)


def _row(a: "CellResult", b: "CellResult", digests: list[dict[str, str]], metric: "Metric") -> dict[str, Any]:
    from repro.analysis.ablations import LEVEL
    from repro.analysis.inference import paired, welch

    values = [{run.seed: metric.of(run.accuracy or 0.0) for run in each.averaged} for each in (a, b)]
    shared = [seed for seed in values[0] if seed in values[1]]
    differences = [values[1][seed] - values[0][seed] for seed in shared]
    means = (b.mean or 0.0) - (a.mean or 0.0)
    estimate = paired(differences)
    if estimate is None and a.std is not None and b.std is not None:
        estimate = welch(means, (a.std, a.n, a.n - 1), (b.std, b.n, b.n - 1))
    low, high = estimate.interval(LEVEL) if estimate else (None, None)
    ids = [f"{a.cell.id}/seed{seed}" for seed in shared]
    return {
        "cell": a.cell.id,
        **{name: {"mean": each.mean, "std": each.std, "n": each.n} for name, each in (("a", a), ("b", b))},
        "difference": fmean(differences) if len(differences) > 1 else means,
        "low": low,
        "high": high,
        "pairs": len(shared),
        "equal_accuracy": sum(math.isclose(difference, 0.0, abs_tol=1e-9) for difference in differences),
        "identical": sum(digests[0].get(run) == digests[1].get(run) for run in ids),
    }


def _markdown(rows: list[dict[str, Any]], first: Path, second: Path, rest: int) -> str:
    from tabulate import tabulate

    from repro.analysis.text import mean_text, signed
    from repro.errors import counted

    table = [
        {
            "cell": row["cell"],
            **{side.upper(): f"{mean_text(row[side]['mean'], row[side]['std'])} (n = {row[side]['n']})"
               for side in ("a", "b")},
            "B − A": signed(row["difference"])
            + ("" if row["low"] is None else f" ({signed(row['low'])} to {signed(row['high'])})"),
            "paired seeds": row["pairs"],
            "equal accuracy": row["equal_accuracy"],
            "identical": row["identical"],
        }
        for row in rows
    ]  # fmt: skip
    lines = [f"A: {first}", f"B: {second}", ""]
    if table:
        lines += [tabulate(table, headers="keys", tablefmt="pipe", disable_numparse=True), ""]
    lines.append(f"{counted(len(rows), 'cell')} with records that count on both sides, {rest} without")
    return "\n".join(lines)
