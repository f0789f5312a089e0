"""Records and attempts that never were, and the parts of them: nothing here trains or needs torch."""

import base64
import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from short_project import PROJECT

from repro.attempts import AttemptNote
from repro.cli.context import Context
from repro.paths import Project
from repro.records import DataSummary, Environment, Epoch, Probes, Provenance, Result, RunRecord, Signature
from repro.registry import Registry, Run
from repro.signature import code_hash, config_hash

ROOT = Path(__file__).resolve().parent.parent

PRETENDED = Environment(
    git_commit="0" * 40,
    git_dirty=False,
    packages={"torch": "2.6.0"},
    python="3.11.2",
    system="Debian GNU/Linux 12",
    kernel="Linux 6.1",
    processor="a processor",
    device="a bench",
    device_memory_bytes=11 * 2**30,
    compute_capability=None,
    cuda=None,
    cudnn=None,
    driver=None,
)


def correct_images(correct: int, total: int) -> str:
    """The last `correct` of `total` test images were classified correctly."""
    bits = ((1 << correct) - 1) << (-total % 8)  # the last byte is filled up with zeros
    return base64.urlsafe_b64encode(bits.to_bytes(math.ceil(total / 8))).decode()


@cache
def _registry() -> Registry:
    return Registry.load(PROJECT / "experiments")


def context_at(results: Path) -> Context:
    """The project's registry and the short smoke preset, with records, figures and data below `results`."""
    project = Project(PROJECT, results, results / "figures", results / "data")
    return Context(project, _registry(), _registry().preset("smoke"))


def with_row_recipe(context: Context, **changes) -> Context:
    """The context with these changes of the recipe in every row of its tables."""
    tables = [
        table.model_copy(
            update={"rows": tuple(row.model_copy(update={"recipe": changes}) for row in table.rows)}
        )
        for table in context.registry.tables
    ]
    return replace(context, registry=replace(context.registry, tables=tables))


def first_runs(context: Context, count, dataset="cifar100", network="resnet18", seeds=(0,)) -> list[Run]:
    """The first `count` runs of a column."""
    return list(context.runs(datasets=(dataset,), networks=(network,), seeds=seeds))[:count]


def attempt_note(outcome: str, number: int = 1, **changes) -> AttemptNote:
    """What an attempt leaves behind that came to `outcome`."""
    now = datetime.now(UTC)
    ended = None if outcome == "running" else now
    note = AttemptNote(number=number, started=now, ended=ended, outcome=outcome, resumed_at_step=0)
    return note.model_copy(update=changes)


def make_record(
    context: Context,
    run: Run,
    code: str | None = None,
    accuracy: float | None = 40.0,
    device: str = "a bench",
    images_per_second: float = 1000.0,
    at_once: int = 1,
    config_signature: str | None = None,
) -> RunRecord:
    """A valid record, of today's code unless told; without an accuracy the run has diverged."""
    config = context.registry.config(run, context.preset)
    now = datetime(2025, 3, 1, 8, tzinfo=UTC)
    done = accuracy is not None
    loss, correct, total = (1.0, round(0.8 * accuracy), 80) if done else (None, 0, 0)
    accuracy = 100 * correct / 80 if done else None
    hashes = {"config": config_signature or config_hash(config), "code": code or code_hash(config)}
    unknown = ("gradient_at_logits", "gradient_at_features", "feature_norm", "gradient_times_feature")
    epoch = Epoch(
        **{"epoch": 0, "lr": 0.1, "seconds": 492.0, "train_accuracy": 50.0 if done else None},
        **{"train_loss": loss, "test_loss": loss, "test_accuracy": accuracy, **dict.fromkeys(unknown)},
    )
    trained_on = "digits" if config.recipe.data == "digits" else config.dataset
    data = DataSummary(
        **{"name": trained_on, "title": "pretended", "generated": False, "partial": None, "sources": {}},
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
        **{"run": run.id, "preset": context.preset.name, "config": config, "data": data, "result": result},
        signature=Signature(data="d" * 64, **hashes),
        curve=tuple(
            epoch.model_copy(update={"epoch": n}) for n in range(config.recipe.epochs if done else 1)
        ),
        probes=Probes(logits=None, weight_norms=None),
        provenance=provenance,
    )
