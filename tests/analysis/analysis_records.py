"""Made-up records that look like real ones: the shapes of curves, logits and norms are those of the networks.

Everything is a pure function of the run, so that golden texts and pictures stay as they are.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import NormalDist

import numpy as np
from pretended_environment import PRETENDED, correct_images

from repro.config import Preset
from repro.paths import Project
from repro.record_state import RecordState, RunState
from repro.records import (
    HISTOGRAM_BINS,
    HISTOGRAM_RANGE,
    Attempt,
    DataSummary,
    Epoch,
    LogitHistogram,
    Probes,
    Provenance,
    Result,
    RunRecord,
    Signature,
)
from repro.registry import Registry, Run
from repro.signature import config_hash, data_hash

CODE = "c" * 64
FINGERPRINT = "f" * 64
EXPERIMENTS = Path(__file__).parents[2] / "experiments"

SMALL_TABLE = """
table = 1
dataset = "cifar100"
title = "CIFAR-100"
networks = { vgg16 = "VGG", resnet18 = "ResNet-18" }
[[rows]]
name = "cross-entropy"
label = "Cross-entropy Loss"
loss = "cross-entropy"
reported = { vgg16 = { mean = 71.86, std = 0.14 }, resnet18 = { mean = 75.10, std = 0.34 } }
[[rows]]
name = "scaled-bn-m1"
label = "Our Loss (m = 1)"
loss = "scaled-bn"
scale = 1.0
reported = { vgg16 = { mean = 73.24, std = 0.06 }, resnet18 = { mean = 76.08, std = 0.30 } }
"""

SMALL_PAPER = """
title = "Batch Norm on Logits"
authors = ["Ada Lovelace", "Bo Diddley", "Cy Twombly"]
year = 2021
reported = { runs = 3 }
method = { name = "Our Loss", rows = ["scaled-bn-m1"] }
[figures.logits]
name = "Figure 2"
cells = ["cifar100/resnet18/cross-entropy", "cifar100/resnet18/scaled-bn-m1"]
[figures.weight_norms]
name = "Figure 3"
cells = ["cifar100/resnet18/cross-entropy", "cifar100/resnet18/scaled-bn-m1"]
"""

SMALL_PRESETS = """
[recipe]
data = "real"
batch_size = 128
epochs = 8
lr = 0.1
lr_drops = [3, 5]
lr_factor = 0.1
momentum = 0.9
nesterov = false
weight_decay = 5e-4
flip = true
crop_padding = 4
rotation = 0.0
normalization = "dataset"
width = 1.0
stem_pool = "auto"
evaluate_every = 1
[presets]
paper = { title = "", description = "the paper's recipe", seeds = [0, 1, 2], threads = 1 }
quick = { title = "QUICK", description = "few images: it proves nothing about the paper", seeds = [0, 1, 2], threads = 1 }
[presets.smoke]
title = "SMOKE"
description = "handwritten digits"
seeds = [0]
threads = 1
recipe = { data = "digits", classes = 10, images_per_class = 16, test_images_per_class = 8, epochs = 3, lr_drops = [1, 2] }
"""


def write_experiments(folder: Path) -> Path:
    """An experiments folder of two losses by two networks, apart from the real one and its edits."""
    folder.mkdir(parents=True)
    (folder / "table1.toml").write_text(SMALL_TABLE)
    (folder / "presets.toml").write_text(SMALL_PRESETS)
    (folder / "paper.toml").write_text(SMALL_PAPER)
    return folder


STARTED = datetime(2025, 3, 1, 8, 0, tzinfo=UTC)


def make_record(
    registry: Registry,
    preset: Preset,
    run: Run,
    accuracy: float | None = None,
    *,
    diverged_in: int | None = None,
    device: str = "NVIDIA GeForce GTX 1080 Ti",
    precision: str = "float32",
    code: str = CODE,
    fingerprint: str = FINGERPRINT,
    partial: str | None = None,
    test_images: int | None = None,
) -> RunRecord:
    """A record of `run`; its accuracy defaults to one near the paper's, its data to those of the paper."""
    config = registry.config(run, preset)
    random = np.random.default_rng(int(hashlib.sha256(run.id.encode()).hexdigest()[:8], 16))
    if accuracy is None:
        mean = run.cell.reported.mean if run.cell.reported else 70.0
        accuracy = mean + float(random.normal(0, 0.25))
    table = registry.table(run.cell.table)
    papers = next((t.reported_data for t in registry.tables if t.dataset == table.dataset), None)
    classes = config.recipe.classes or (papers.classes if papers else 100)
    test_images = test_images or classes * (papers.test_per_class if papers else 100)
    correct = round(accuracy * test_images / 100)
    accuracy = 100 * correct / test_images
    curve = _curve(config.loss, dict(config.loss_parameters), accuracy, config.recipe, diverged_in, random)
    evaluated = [(epoch.test_accuracy, epoch.epoch) for epoch in curve if epoch.test_accuracy is not None]
    best, best_epoch = max(evaluated, default=(None, None))
    ended_well = diverged_in is None
    result = Result(
        accuracy=accuracy if ended_well else None,
        correct=correct if ended_well else 0,
        total=test_images if ended_well else 0,
        test_loss=1.2 if ended_well else None,
        best_accuracy=best,
        best_epoch=best_epoch,
        correct_images=correct_images(correct, test_images) if ended_well else None,
        diverged_in=diverged_in,
    )
    probes = Probes(logits=None, weight_norms=None)
    if ended_well:
        probes = _probes(config.loss, dict(config.loss_parameters), classes, test_images, random)
    ended = STARTED + timedelta(hours=2, minutes=17)
    return RunRecord(
        run=run.id,
        preset=preset.name,
        signature=Signature(config=config_hash(config), data=data_hash(fingerprint, config), code=code),
        config=config,
        data=DataSummary(
            name="digits" if config.recipe.data == "digits" else run.cell.dataset,
            title=table.title,
            generated=False,
            partial=partial,
            sources={"cifar-100-python.tar.gz": "a" * 64},
            preparation_version=1,
            arrays={"train-images.npy": "b" * 64},
            classes=classes,
            train_images=classes
            * (config.recipe.images_per_class or (papers.train_per_class if papers else 500)),
            test_images=test_images,
            mean=(0.507, 0.487, 0.441),
            std=(0.267, 0.256, 0.276),
        ),
        result=result,
        curve=curve,
        probes=probes,
        provenance=Provenance(
            **{**dict(PRETENDED), "device": device},
            precision=precision,
            threads=1,
            deterministic=False,
            accelerations=("channels-last",),
            runs_on_device=1,
            images_per_second=2400.0,
            peak_memory_bytes=2 * 2**30,
            energy_joules=None,
            attempts=(
                Attempt(number=1, started=STARTED, ended=ended, outcome="finished", resumed_at_step=0),
            ),
            started=STARTED,
            ended=ended,
        ),
    )


def done(record: RunRecord, registry: Registry, record_state: RecordState = RecordState.DONE) -> RunState:
    """The state of a record that counts."""
    return RunState(registry.parse(record.run), record_state, record)


def recorded(
    registry: Registry, preset: Preset, runs: Iterable[Run], accuracy: float | None = None, **values
) -> list[RunState]:
    """The states of runs that all have a record."""
    return [done(make_record(registry, preset, run, accuracy, **values), registry) for run in runs]


def missing(runs: Sequence[Run]) -> list[RunState]:
    """The states of runs that have no record."""
    return [RunState(run, RecordState.MISSING, reason="not run yet") for run in runs]


def write_record(project: Project, record: RunRecord) -> Path:
    """Puts a record where the project looks for it."""
    path = project.run(record.preset, record.run).record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.to_json(), encoding="utf-8")
    return path


def edit_by_hand(path: Path, accuracy: float) -> None:
    """Changes the accuracy in a record's file, as somebody with an editor would."""
    content = json.loads(path.read_text())
    content["result"]["accuracy"] = accuracy
    path.write_text(json.dumps(content))


def _curve(loss, parameters, accuracy, recipe, diverged_in, random) -> tuple[Epoch, ...]:
    bounded = loss in ("am-softmax", "pedcc")
    scale = float(parameters.get("scale", 1.0))
    features = {"cross-entropy": 0.9, "scaled-bn": 2.2 * scale, "pedcc": 0.03 * scale}.get(loss, 0.02 * scale)
    length = {"cross-entropy": 14.0, "scaled-bn": 9.0}.get(loss, 11.0)
    epochs = []
    for epoch in range(recipe.epochs):
        drops = sum(epoch >= drop for drop in recipe.lr_drops)
        # Jumps where the learning rate drops, as these networks do.
        share = (0.6, 0.92, 0.98, 0.99)[min(drops, 3)]
        remaining, last = 1.02 - share, epoch == recipe.epochs - 1
        test = accuracy if last else accuracy * share + float(random.normal(0, 0.2))
        logits = 0.35 + 0.7 * remaining if bounded else 1.1 * remaining
        if loss == "scaled-bn":
            logits = 0.12 / scale + 0.95 * remaining
        logits *= float(np.exp(random.normal(0, 0.01)))
        hot = diverged_in is not None and epoch >= diverged_in
        unseen = hot or not (last or (epoch + 1) % recipe.evaluate_every == 0)
        numbers = {
            "train_loss": 4.6 * remaining,
            "train_accuracy": 100 * share,
            "gradient_at_logits": logits,
            "gradient_at_features": logits * features,
            "feature_norm": length,
            "gradient_times_feature": 0.9 * logits * features * length,
        }
        tested = {"test_loss": 1.2, "test_accuracy": test}
        numbers = (dict.fromkeys(numbers) if hot else numbers) | (dict.fromkeys(tested) if unseen else tested)
        epochs.append(Epoch(epoch=epoch, lr=recipe.lr_at(epoch), seconds=41.0, **numbers))
        if hot:
            break
    return tuple(epochs)


def _probes(loss, parameters, classes, images, random) -> Probes:
    scale = float(parameters.get("scale", 1.0))
    # Most logits belong to other classes; one in `classes` is the image's own, far to the right.
    others, own, norms = {
        "cross-entropy": (NormalDist(-0.1, 2.4), NormalDist(11.0, 3.6), (1.45, 0.06)),
        "scaled-bn": (
            NormalDist(-0.085 * scale, 0.62 * scale),
            NormalDist(6.9 * scale, 1.9 * scale),
            (0.52, 0.02),
        ),
    }.get(loss, (NormalDist(0.0, 0.06 * scale), NormalDist(0.7 * scale, 0.1 * scale), (1.0, 0.03)))
    low, high = HISTOGRAM_RANGE
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    below = np.array([((classes - 1) * others.cdf(edge) + own.cdf(edge)) / classes for edge in edges])
    counts = np.round(np.diff(below) * images * classes).astype(int)
    counts[counts.argmax()] += images * classes - counts.sum()  # what rounding lost
    middles = (edges[1:] + edges[:-1]) / 2
    mean = float(np.average(middles, weights=counts))
    quantiles = {f"{q:g}": float(np.interp(q / 100, below, edges)) for q in (2.5, 25, 50, 75, 97.5)}
    return Probes(
        logits=LogitHistogram(
            low=low,
            high=high,
            counts=tuple(map(int, counts)),
            underflow=0,
            overflow=0,
            mean=mean,
            std=float(np.sqrt(np.average((middles - mean) ** 2, weights=counts))),
            quantiles=quantiles,
        ),
        weight_norms=tuple(float(norm) for norm in random.normal(*norms, size=classes)),
    )
