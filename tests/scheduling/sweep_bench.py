"""The project's registry with a results folder of its own, and records that nobody trained."""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# tools/ import this file with tests/scheduling alone on the path.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from pretended_environment import PRETENDED, correct_images

from repro.config import Preset
from repro.paths import Project
from repro.records import DataSummary, Epoch, Probes, Provenance, Result, RunRecord, Signature
from repro.registry import Registry, Run, Selection
from repro.signature import code_hash, config_hash

ROOT = Path(__file__).resolve().parents[2]
PRESET = "smoke"


@dataclass(frozen=True)
class Bench:
    """One results folder and everything needed to sweep into it."""

    project: Project
    registry: Registry
    preset: Preset

    @classmethod
    def at(cls, results: Path) -> "Bench":
        registry = Registry.load(ROOT / "experiments")
        project = Project(ROOT, results, results / "figures", results / "data")
        return cls(project, registry, registry.preset(PRESET))

    def runs(
        self, count: int, dataset: str = "cifar100", network: str = "resnet18", seeds: tuple[int, ...] = (0,)
    ) -> list[Run]:
        """The first `count` runs of a column."""
        selection = Selection(datasets=(dataset,), networks=(network,), seeds=seeds)
        return list(self.registry.select_runs(selection, self.preset))[:count]


def make_record(
    bench: Bench,
    run: Run,
    code: str | None = None,
    accuracy: float | None = 40.0,
    device: str = "a bench",
    images_per_second: float = 1000.0,
    at_once: int = 1,
    config_signature: str | None = None,
) -> RunRecord:
    """A valid record, of today's code unless told; without an accuracy the run has diverged."""
    config = bench.registry.config(run, bench.preset)
    now = datetime(2025, 3, 1, 8, tzinfo=UTC)
    done = accuracy is not None
    loss, correct, total = (1.0, round(10 * accuracy), 1000) if done else (None, 0, 0)
    hashes = {"config": config_signature or config_hash(config), "code": code or code_hash(config)}
    unknown = ("gradient_at_logits", "gradient_at_features", "feature_norm", "gradient_times_feature")
    epoch = Epoch(
        **{"epoch": 0, "lr": 0.1, "seconds": 492.0, "train_accuracy": 50.0 if done else None},
        **{"train_loss": loss, "test_loss": loss, "test_accuracy": accuracy, **dict.fromkeys(unknown)},
    )
    data = DataSummary(
        **{"name": run.cell.dataset, "title": "pretended", "generated": True, "partial": None, "sources": {}},
        **{"preparation_version": 1, "arrays": {}, "classes": 10, "train_images": 160, "test_images": 80},
        **{"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)},
    )
    result = Result(
        **{"accuracy": accuracy, "correct": correct, "total": total, "test_loss": loss},
        **{"best_accuracy": accuracy, "best_epoch": 0 if done else None},
        correct_images=correct_images(correct, total) if done else None,
        diverged_in=None if done else 0,
    )
    provenance = Provenance(
        **{**dict(PRETENDED), "device": device, "runs_on_device": at_once, "precision": "fp32", "threads": 1},
        **{"deterministic": False, "accelerations": (), "images_per_second": images_per_second},
        **{"peak_memory_bytes": 0, "energy_joules": None, "attempts": (), "started": now, "ended": now},
    )
    return RunRecord(
        **{"run": run.id, "preset": PRESET, "config": config, "data": data, "result": result},
        signature=Signature(data="d" * 64, **hashes),
        curve=(epoch,),
        probes=Probes(logits=None, weight_norms=None),
        provenance=provenance,
    )
