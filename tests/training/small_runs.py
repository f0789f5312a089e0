"""Small runs on few images, and the results of uninterrupted ones, trained once for all tests."""

from functools import cache
from pathlib import Path

import pytest
import torch
from smoke_project import PROJECT

from repro.config import RunConfig
from repro.data import open_for_training
from repro.data.prepared import PreparedData
from repro.errors import RunInterruptedError
from repro.records import Signature
from repro.registry import Registry
from repro.training.checkpoint import Checkpoint, CheckpointFolder
from repro.training.loop import TrainedRun, Trainer, train_run
from repro.training.precision import Precision

CPU = torch.device("cpu")
SIGNATURE = Signature(config="1" * 64, data="2" * 64, code="3" * 64)
LOSSES = ("cross-entropy", "am-softmax-s10-m0.5", "pedcc-s10-m0.5", "scaled-bn-m1")
FURTHER_LOSSES = (
    "logit-scale-s2",
    "affine-bn",
    "cosine-learnt-scale-s10",
    "cosine-scale-by-classes",
    "logit-norm-t0.04",
    "logit-z-score",
    "label-smoothing-0.1",
    "scaled-bn-m1+statistics=full-batches",
)

_registry = cache(lambda: Registry.load(PROJECT / "experiments"))


def config_of(loss="cross-entropy", network="resnet18", seed=0, **recipe) -> RunConfig:
    """The short smoke preset: 3 epochs with 2 lr drops, 160 images in 5 batches; for the rest `recipe` counts."""
    run = _registry().parse(f"cifar100/{network}/{loss}/seed{seed}")
    config = _registry().config(run, _registry().preset("smoke"))
    return config.model_copy(update={"recipe": config.recipe.model_copy(update=recipe)})


def data_of(config: RunConfig) -> PreparedData:
    return open_for_training(config, PROJECT / "no data needed")


def on_cpu(name="fp32", memory_format=torch.contiguous_format) -> Precision:
    return Precision(name, CPU, memory_format)


def train(config: RunConfig, precision: Precision | None = None, **options) -> TrainedRun:
    return train_run(config, data_of(config), precision or on_cpu(), **options)


def comparable(trained: TrainedRun):
    """Everything but the times."""
    return trained.result, [e.model_dump(exclude={"seconds"}) for e in trained.curve], trained.probes


@cache
def straight(loss="cross-entropy", network="resnet18", precision="fp32", **recipe) -> TrainedRun:
    """The uninterrupted, eager run."""
    return train(config_of(loss, network, **recipe), on_cpu(precision))


def checkpoints_in(folder: Path, attempt=1) -> CheckpointFolder:
    own = folder / str(attempt)
    own.mkdir(parents=True)
    return CheckpointFolder(folder, own, SIGNATURE)


def stopped_at(config, when, folder, precision=None, **options) -> Checkpoint:
    """Trains until `when` is true of the last report; returns the checkpoint written then."""
    checkpoints, seen = checkpoints_in(folder), []
    options.update(checkpoints=checkpoints, report=seen.append)
    with pytest.raises(RunInterruptedError, match="when started again, it resumes from there"):
        train(config, precision, should_stop=lambda: bool(seen) and when(seen[-1]), **options)
    return checkpoints.newest()


def in_turns(trainers: list[Trainer], streams) -> list[TrainedRun]:
    """Trains several runs in this process, a step of each in turn."""
    going, ended = {number: trainer.steps() for number, trainer in enumerate(trainers)}, {}
    while going:
        for number in list(going):
            with torch.cuda.stream(streams[number]):
                try:
                    next(going[number])
                except StopIteration as end:
                    ended[number] = end.value
                    del going[number]
    return [ended[number] for number in range(len(trainers))]
