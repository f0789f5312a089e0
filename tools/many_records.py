"""A project with as many records as asked for: `many_records.py FOLDER RECORDS [--seeds N]`.

FOLDER becomes a project of its own (set REPRO_ROOT to it) whose preset `many` has seeds enough for RECORDS
runs, `--seeds` more if some are to stay queued, and the paper's 100 epochs per record; 100,000
records are 4 GB. Needs tests on PYTHONPATH.
"""

import argparse
import shutil
import sys
from pathlib import Path

from pretended_environment import ROOT, make_record

from repro.cli.context import Context
from repro.paths import Project
from repro.records import LogitHistogram, Probes
from repro.registry import Registry, Selection
from repro.signature import code_hash

_PRESET = """
[presets.many]
title = "MANY"
description = "records without a meaning, to see how long reading them takes"
seeds = {seeds}
threads = 1
"""


def make_project(folder: Path, records: int, more_seeds: int = 0) -> Context:
    """Writes the experiments and the first `records` of the preset's runs, column by column.

    Those that are there already stay, so that an interrupted call can be repeated.
    """
    shutil.copytree(ROOT / "experiments", folder / "experiments", dirs_exist_ok=True)
    cells = len(Registry.load(ROOT / "experiments").cells)
    seeds = -(-records // cells) + more_seeds
    with (folder / "experiments" / "presets.toml").open("a") as file:
        file.write(_PRESET.format(seeds=list(range(max(1, seeds)))))
    registry = Registry.load(folder / "experiments")
    project = Project(folder, folder / "results", folder / "figures", folder / "data")
    bench = Context(project, registry, registry.preset("many"))
    histogram = LogitHistogram(
        low=-40,
        high=40,
        counts=tuple(n % 40 for n in range(400)),
        underflow=200,
        overflow=0,
        mean=0.1,
        std=1.1,
        quantiles={"2.5": -2.0, "25": -0.7, "50": 0.0, "75": 0.7, "97.5": 2.0},
    )
    probes = Probes(logits=histogram, weight_norms=tuple(1 + k / 7 for k in range(100)))
    for run in registry.select_runs(Selection(), bench.preset)[:records]:
        path = project.run("many", run.id).record
        if path.exists():
            continue
        record = make_record(
            bench, run, code_hash(registry.config(run, bench.preset)), accuracy=40 + run.seed % 10
        )
        curve = tuple(
            epoch.model_copy(update={"train_loss": 3 / (n + 3), "seconds": 1 + n / 7})
            for n, epoch in enumerate(record.curve)
        )
        data = record.data.model_copy(update={"classes": 100})
        record = record.model_copy(update={"preset": "many", "data": data, "curve": curve, "probes": probes})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json(), encoding="utf-8")
    return bench


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("records", type=int)
    parser.add_argument("--seeds", type=int, default=0)
    asked = parser.parse_args()
    made = make_project(asked.folder.absolute(), asked.records, asked.seeds)
    print(f"REPRO_ROOT={made.project.root} python -m repro plan --preset many", file=sys.stderr)
