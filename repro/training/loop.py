"""Trains one run from its configuration to its result: the paper's recipe, in one loop.

`train_run` draws an epoch's randomness, steps through the batches, and evaluates. It never waits for the
device inside an epoch, except to write a checkpoint. `training` is the same a step at a time, so that one
process can train several runs at once.
"""

import base64
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from repro import losses, models
from repro.config import RunConfig
from repro.data.loader import EpochDraws, Feed, batch_bounds, draw_epoch, normalisation, subset, to_device
from repro.data.prepared import PreparedData
from repro.errors import RunInterruptedError
from repro.losses import ClassificationLoss
from repro.records import Epoch, Probes, Result
from repro.training.capture import Capture, CudaCapture, prepare
from repro.training.checkpoint import Arithmetic, Checkpoint, CheckpointFolder
from repro.training.metrics import EpochSums, evaluate, plain_features
from repro.training.optim import make_optimizer, momentum_buffers, set_lr
from repro.training.precision import Precision
from repro.training.probes import take_probes
from repro.training.randomness import derive_seed, generator
from repro.training.state import Clock, TrainingState
from repro.training.step import TrainingStep
from repro.training.techniques import DEFAULT, Techniques

CHECKPOINT_INTERVAL = 60.0
"""Seconds between checkpoints; stretched so that writing them takes less than 2 % of the time."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: `epoch` (0-indexed) is in progress, `step` of its `steps` are done."""

    state: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float | None
    train_loss: float | None
    test_accuracy: float | None


@dataclass
class TrainedRun:
    """What training leaves: everything of a record that is not provenance of the process."""

    result: Result
    curve: tuple[Epoch, ...]
    probes: Probes
    images_per_second: float
    techniques: tuple[str, ...]


def build(config: RunConfig, image_size: int, classes: int) -> tuple[nn.Module, ClassificationLoss]:
    """Network and loss with the initial weights of the run's seed, on the CPU.

    The two draw from generators of their own: seed k gives every loss the same network.
    """
    recipe = config.recipe
    # The CPU's generator alone: torch.manual_seed would reseed every GPU's too, beside which others train.
    cpu = torch.default_generator
    with torch.random.fork_rng(devices=[]):
        cpu.manual_seed(derive_seed(config.seed, "network"))
        network = models.build(config.network, image_size, recipe.width, recipe.stem_pool, config.folder)
        cpu.manual_seed(derive_seed(config.seed, "loss"))
        features: int = network.feature_dim  # type: ignore[assignment]  # nn.Module's attributes have no types
        loss = losses.build(config.loss, features, classes, config.folder, **config.loss_parameters)
    loss.full_batch = recipe.batch_size
    return network, loss


def train_run(
    config: RunConfig,
    data: PreparedData,
    precision: Precision,
    checkpoints: CheckpointFolder | None = None,
    **options: Any,
) -> TrainedRun:
    """`training` with the same arguments, from its first step to its last."""
    steps = training(config, data, precision, checkpoints, **options)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            trained: TrainedRun = end.value
            return trained


def training(
    config: RunConfig,
    data: PreparedData,
    precision: Precision,
    checkpoints: CheckpointFolder | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint_interval: float = CHECKPOINT_INTERVAL,
    start: Checkpoint | None = None,
    techniques: Techniques = DEFAULT,
    say: Callable[[str], None] = lambda line: None,
    capture: Callable[[torch.device], Capture] = CudaCapture,
) -> Generator[None, None, TrainedRun]:
    """Trains `config` on `data` and measures it, yielding after each step; goes on from `start`.

    `start` was made in the same arithmetic. `should_stop` is asked before every step and every batch of an
    evaluation; once it says yes a checkpoint is written and RunInterruptedError raised. A loss that is not
    finite ends the run as diverged after its epoch, and so do logits of the last evaluation that are not.
    Raises CheckpointUnfitError if `start` is not of this run. A technique that fails or differs from the
    plain step is left out, and `say` hears why; running out of memory is an error. All that is done on a GPU
    goes to the stream that is current.
    """
    recipe, device = config.recipe, precision.device
    train_arrays, test_arrays = subset(data, recipe)
    train, test = to_device(train_arrays, device), to_device(test_arrays, device)
    network, loss = build(config, data.manifest.image_size, data.manifest.classes)
    precision = techniques.layout(precision.for_network(network))
    normalised = normalisation(data, recipe, device, precision.memory_format)
    loss.check_labels(torch.cat([train.labels, test.labels]))
    network.to(device).to(memory_format=precision.memory_format).train()
    loss.to(device).train()
    clock = Clock(device)
    lr_device = device if techniques.cuda_graph else None
    optimizer = make_optimizer(network, loss, recipe, techniques.fused_sgd, lr_device)
    state = TrainingState(network, loss, optimizer, precision.scaler(), clock, EpochSums(device))
    if start:
        state.restore(start)
    asked = techniques.names()
    drops_out = any(isinstance(module, nn.Dropout) for module in network.modules())
    if drops_out:
        # It draws from the device's own generator, which is seeded before each step.
        techniques = techniques.switched(off=("cuda-graph", "compile"))
    bounds = batch_bounds(train.count, recipe.batch_size)
    steps = len(bounds)
    saves = _SaveTimer(checkpoint_interval)
    feed = Feed(train, recipe.crop_padding, normalised)
    step = TrainingStep(network, loss, optimizer, state.scaler, precision, feed, state.sums)

    def draw(epoch: int) -> EpochDraws:
        return draw_epoch(train.count, recipe, partial(_generator, config.seed, epoch))

    def save() -> Path | None:
        if checkpoints is None:
            return None
        arithmetic = Arithmetic.here(device, precision.name, asked)
        with saves:
            return checkpoints.save(state.epoch * steps + state.step, arithmetic, state.for_checkpoint())

    def stop() -> NoReturn:
        at_start = start is not None and start.step == state.epoch * steps + state.step
        where = "there" if at_start or save() else "its last checkpoint, if it has one"
        raise RunInterruptedError(
            f"stopped in epoch {state.epoch + 1} of {recipe.epochs}; started again it goes on from {where}"
        )

    def tell(doing: str) -> None:
        last = state.curve[-1].train_loss if state.curve else None
        speed, accuracy = clock.images_per_second(), _latest_accuracy(state.curve)
        report(Progress(doing, state.epoch, recipe.epochs, state.step, steps, speed, last, accuracy))

    def between_test_batches() -> None:
        if should_stop():
            stop()
        tell("evaluating")

    final, draws = None, draw(min(state.epoch, recipe.epochs - 1))
    feed.begin(draws)
    sizes = tuple(dict.fromkeys(end - begin for begin, end in bounds))
    exact = torch.are_deterministic_algorithms_enabled()
    take_step, techniques = prepare(step, sizes, techniques, lambda: capture(device), exact, say)
    while state.epoch < recipe.epochs:
        epoch = state.epoch
        lr = recipe.lr_at(epoch)
        set_lr(optimizer, lr)
        if recipe.momentum_reset and epoch in recipe.lr_drops and state.step == 0:
            for buffer in momentum_buffers(optimizer):
                buffer.zero_()
        feed.begin(draws, bounds[state.step][0] if state.step < steps else train.count)
        clock.start()
        while state.step < steps:
            if should_stop():
                state.epoch_seconds += clock.stop()
                stop()
            if checkpoints and saves.due():
                state.epoch_seconds += clock.stop()
                save()
                clock.start()
            tell("training")
            begin, end = bounds[state.step]
            if drops_out:
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    torch.manual_seed(derive_seed(config.seed, "dropout", epoch * steps + state.step))
                    take_step(end - begin)
            else:
                take_step(end - begin)
            state.sums.count += end - begin
            clock.images += end - begin
            state.step += 1
            yield
        if epoch + 1 != recipe.epochs:
            draws = draw(epoch + 1)  # while the device is at work
        means = state.sums.read()
        state.epoch_seconds += clock.stop()

        diverged = not math.isfinite(means.loss)
        is_last = epoch + 1 == recipe.epochs
        tested = None
        if not diverged and (is_last or (epoch + 1) % recipe.evaluate_every == 0):
            loss.recompute_statistics(
                partial(plain_features, network, train, normalised, precision, between_test_batches)
            )
            tested = evaluate(
                network, loss, test, normalised, precision, between_test_batches, keep_logits=is_last
            )
            if is_last:
                diverged = not tested.finite
                final = None if diverged else tested
        state.curve.append(
            Epoch(
                epoch=epoch,
                lr=lr,
                train_loss=_finite(means.loss),
                train_accuracy=means.accuracy if math.isfinite(means.loss) else None,
                gradient_at_logits=_finite(means.gradient_at_logits),
                gradient_at_features=_finite(means.gradient_at_features),
                feature_norm=_finite(means.feature_norm),
                gradient_times_feature=_finite(means.gradient_times_feature),
                test_loss=tested.loss if tested else None,
                test_accuracy=tested.accuracy if tested else None,
                seconds=state.epoch_seconds,
            )
        )
        if diverged:
            break
        state.begin_epoch(epoch + 1)

    best = max(
        (entry for entry in state.curve if entry.test_accuracy is not None),
        key=lambda entry: (entry.test_accuracy, -entry.epoch),
        default=None,
    )
    result = Result(
        accuracy=final.accuracy if final else None,
        correct=final.correct if final else 0,
        total=final.total if final else 0,
        test_loss=final.loss if final else None,
        best_accuracy=best.test_accuracy if best else None,
        best_epoch=best.epoch if best else None,
        correct_images=_packed(final.right) if final else None,
        diverged_in=None if final else state.curve[-1].epoch,
    )
    probes = Probes(logits=None, weight_norms=None)
    if final and final.logits is not None:
        probes = take_probes(final.logits, loss)
    if precision.memory_format != torch.channels_last:
        techniques = techniques.switched(off=("channels-last",))
    return TrainedRun(
        result=result,
        curve=tuple(state.curve),
        probes=probes,
        images_per_second=clock.images / clock.seconds if clock.images else 0.0,
        techniques=("resident-data", *techniques.names()),
    )


class _SaveTimer:
    """Says when a checkpoint is due: after the interval, and 50 times what the last one took."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.next = time.monotonic() + interval

    def due(self) -> bool:
        return time.monotonic() >= self.next

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        now = time.monotonic()
        self.next = now + max(self.interval, 50 * (now - self.began))


def _generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    return generator(seed, purpose, epoch)


def _latest_accuracy(curve: list[Epoch]) -> float | None:
    return next((e.test_accuracy for e in reversed(curve) if e.test_accuracy is not None), None)


def _packed(right: torch.Tensor) -> str:
    """One bit per image, base64, as `repro.records.Result` has it."""
    return base64.urlsafe_b64encode(np.packbits(right.numpy()).tobytes()).decode()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
