"""Trains one run from its configuration to its result: the paper's recipe, in one loop.

`train_run` draws an epoch's randomness, steps through the batches, and evaluates. It never waits for the
device inside an epoch, except to write a checkpoint.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from repro import losses, models
from repro.data.loader import batch_bounds, draw_epoch, normalisation, subset, to_device, training_batch
from repro.data.prepared import PreparedData
from repro.errors import RunInterruptedError
from repro.losses import ClassificationLoss
from repro.recipes import RunConfig
from repro.records import Epoch, Probes, Result
from repro.training.checkpoint import CheckpointFolder
from repro.training.metrics import EpochSums, evaluate
from repro.training.optim import make_optimizer, set_lr
from repro.training.precision import Precision
from repro.training.probes import take_probes
from repro.training.randomness import derive_seed, generator

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
    resumed_at_step: int
    techniques: tuple[str, ...]


class _Clock:
    """Training images and seconds of this attempt, for the speed that it records.

    Runs only while the device trains: evaluation and checkpoints happen between `stop` and `start`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.images = 0
        self.seconds = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> float:
        """Waits for the device; the seconds since `start`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        lap = time.perf_counter() - self.started
        self.seconds += lap
        return lap

    def images_per_second(self) -> float | None:
        """The speed so far; while running, as far as the host has come."""
        seconds = self.seconds + time.perf_counter() - self.started
        return self.images / seconds if self.images else None


@dataclass
class _Position:
    """Where training stands; what a checkpoint holds beside weights and momentum."""

    epoch: int = 0
    step: int = 0
    curve: list[Epoch] = field(default_factory=list)
    epoch_seconds: float = 0.0


def build(config: RunConfig, image_size: int, classes: int) -> tuple[nn.Module, ClassificationLoss]:
    """Network and loss with the initial weights of the run's seed, on the CPU.

    The two draw from generators of their own: seed k gives every loss the same network.
    """
    recipe = config.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "network"))
        network = models.build(config.network, image_size, width=recipe.width, stem_pool=recipe.stem_pool)
        torch.manual_seed(derive_seed(config.seed, "loss"))
        loss = losses.build(config.loss, network.feature_dim, classes, **config.loss_parameters)
    return network, loss


def train_run(
    config: RunConfig,
    data: PreparedData,
    precision: Precision,
    checkpoints: CheckpointFolder | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint_interval: float = CHECKPOINT_INTERVAL,
) -> TrainedRun:
    """Trains `config` on `data` and measures it; goes on from the newest checkpoint if there is one.

    `should_stop` is asked before every step; once it says yes a checkpoint is written and
    RunInterruptedError raised. A loss that is not finite ends the run as diverged after its epoch.
    """
    recipe, device = config.recipe, precision.device
    train_arrays, test_arrays = subset(data, recipe)
    train, test = to_device(train_arrays, device), to_device(test_arrays, device)
    network, loss = build(config, data.manifest.image_size, data.manifest.classes)
    precision = precision.for_network(network)
    normalised = normalisation(data, recipe, device, precision.memory_format)
    loss.check_labels(torch.cat([train.labels, test.labels]))
    network.to(device).to(memory_format=precision.memory_format).train()
    loss.to(device).train()
    optimizer = make_optimizer(network, loss, recipe)
    scaler = precision.scaler()
    sums = EpochSums(device)
    position = _Position()
    drops_out = any(isinstance(module, nn.Dropout) for module in network.modules())

    def state() -> dict[str, object]:
        return {
            "network": network.state_dict(),
            "loss": loss.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "sums": sums.state(),
            "epoch": position.epoch,
            "step": position.step,
            "epoch_seconds": position.epoch_seconds,
            "curve": [entry.model_dump() for entry in position.curve],
        }

    bounds = batch_bounds(train.count, recipe.batch_size)
    steps = len(bounds)
    resumed_at_step = 0
    if checkpoints and (found := checkpoints.newest()):
        resumed_at_step, saved = found
        network.load_state_dict(saved["network"])
        loss.load_state_dict(saved["loss"])
        optimizer.load_state_dict(saved["optimizer"])
        if scaler:
            scaler.load_state_dict(saved["scaler"])
        sums.load(saved["sums"])
        curve = [Epoch.model_validate(entry) for entry in saved["curve"]]
        position = _Position(saved["epoch"], saved["step"], curve, saved["epoch_seconds"])

    clock = _Clock(device)
    saves = _SaveTimer(checkpoint_interval)
    final = None
    while position.epoch < recipe.epochs:
        epoch = position.epoch
        lr = recipe.lr_at(epoch)
        set_lr(optimizer, lr)
        draws = draw_epoch(train.count, recipe, partial(_generator, config.seed, epoch)).to(device)
        clock.start()
        last = position.curve[-1] if position.curve else None
        while position.step < steps:
            if should_stop():
                position.epoch_seconds += clock.stop()
                if checkpoints:
                    checkpoints.save(epoch * steps + position.step, state())
                raise RunInterruptedError(f"stopped in epoch {epoch + 1} of {recipe.epochs}")
            if checkpoints and saves.due():
                position.epoch_seconds += clock.stop()
                with saves:
                    checkpoints.save(epoch * steps + position.step, state())
                clock.start()
            report(
                Progress(
                    "training",
                    epoch,
                    recipe.epochs,
                    position.step,
                    steps,
                    clock.images_per_second(),
                    last.train_loss if last else None,
                    _latest_accuracy(position.curve),
                )
            )
            if drops_out:
                torch.manual_seed(derive_seed(config.seed, "dropout", epoch * steps + position.step))
            images, labels = training_batch(
                train, draws, bounds[position.step], recipe.crop_padding, normalised
            )
            _step(network, loss, optimizer, scaler, precision, sums, images, labels)
            clock.images += labels.shape[0]
            position.step += 1
        means = sums.read()
        position.epoch_seconds += clock.stop()

        finite = math.isfinite(means.loss)
        is_last = epoch + 1 == recipe.epochs
        tested = None
        if finite and (is_last or (epoch + 1) % recipe.evaluate_every == 0):
            tested = evaluate(network, loss, test, normalised, precision, keep_logits=is_last)
            final = tested if is_last else None
        position.curve.append(
            Epoch(
                epoch=epoch,
                lr=lr,
                train_loss=means.loss if finite else None,
                train_accuracy=means.accuracy,
                gradient_at_logits=_finite(means.gradient_at_logits),
                gradient_at_features=_finite(means.gradient_at_features),
                test_loss=tested.loss if tested else None,
                test_accuracy=tested.accuracy if tested else None,
                seconds=position.epoch_seconds,
            )
        )
        if not finite:
            break
        position = _Position(epoch + 1, 0, position.curve)
        sums = EpochSums(device)

    best = max(
        (entry for entry in position.curve if entry.test_accuracy is not None),
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
        diverged_in=None if final else position.curve[-1].epoch,
    )
    probes = Probes(logits=None, weight_norms=None)
    if final and final.logits is not None:
        probes = take_probes(final.logits, loss)
    techniques = ["resident data", "fused SGD"]
    if precision.memory_format == torch.channels_last:
        techniques.append("channels_last")
    return TrainedRun(
        result=result,
        curve=tuple(position.curve),
        probes=probes,
        images_per_second=clock.images / clock.seconds if clock.images else 0.0,
        resumed_at_step=resumed_at_step,
        techniques=tuple(techniques),
    )


def _step(
    network: nn.Module,
    loss: ClassificationLoss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    precision: Precision,
    sums: EpochSums,
    images: Tensor,
    labels: Tensor,
) -> None:
    """One step of SGD; adds what it measured to `sums` without waiting for the device."""
    optimizer.zero_grad(set_to_none=True)
    with precision.autocast():
        features = network(images)
    features.retain_grad()
    value, logits = loss(features, labels)
    assert value is not None
    if scaler is None:
        value.backward()
        optimizer.step()
        gradient = features.grad
    else:
        scaler.scale(value).backward()
        # The scale as a tensor: get_scale() would wait for the device.
        gradient = features.grad.float() / scaler.scale(torch.ones((), device=labels.device))
        scaler.step(optimizer)
        scaler.update()
    assert gradient is not None
    sums.add(value.detach(), logits.detach(), loss.softmax_input(logits.detach(), labels), gradient, labels)


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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
