"""The training loop: trains one run from its configuration to its result, by the paper's recipe.

`Trainer.steps` reads from top to bottom: per epoch it sets the lr, takes the steps, reads the metrics,
evaluates, and appends an entry to the curve. It yields after each step, so that one process can train several
runs at once. It never waits for the device inside an epoch, except to write a checkpoint.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from repro import losses, models
from repro.config import RunConfig
from repro.data.loader import (
    BatchStream,
    EpochRandomness,
    batch_bounds,
    build_augmentation,
    draw_epoch,
    normalisation,
    subset,
    to_device,
)
from repro.data.prepared import PreparedData
from repro.errors import RunInterruptedError
from repro.losses import ClassificationLoss
from repro.records import Epoch, Probes, Result
from repro.training.checkpoint import Checkpoint, CheckpointFolder, CheckpointMismatchError, NumericSettings
from repro.training.cuda_graph import Capture, CudaCapture, prepare
from repro.training.metrics import (
    EpochMeans,
    EpochSums,
    Evaluation,
    TrainingClock,
    evaluate,
    extract_features,
    logit_and_weight_statistics,
)
from repro.training.optim import load_optimizer, make_optimizer, momentum_buffers, set_lr
from repro.training.precision import DEFAULT, Accelerations, Precision
from repro.training.seeding import derive_seed, generator
from repro.training.step import TrainingStep

CHECKPOINT_INTERVAL = 60.0  # seconds; stretched so that writing checkpoints takes less than 2 % of the time


@dataclass(frozen=True)
class Progress:
    """Where a run is: in `epoch` (0-indexed), `step` of whose `steps` are done; accuracy in percent."""

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
    """The outcome of training: everything in a record except the provenance of the process."""

    result: Result
    curve: tuple[Epoch, ...]
    probes: Probes
    images_per_second: float
    accelerations: tuple[str, ...]


def build(config: RunConfig, image_size: int, classes: int) -> tuple[nn.Module, ClassificationLoss]:
    """Network and loss with the initial weights of the run's seed, on the CPU.

    Each is drawn from its own seed, so seed k gives every loss the same network.
    """
    recipe = config.recipe
    # Only the CPU's generator: torch.manual_seed would also reseed the GPUs', where other runs may train.
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
    """Trains a run from its first step to its last; the options are those of `Trainer`."""
    steps = Trainer(config, data, precision, checkpoints=checkpoints, **options).steps()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            trained: TrainedRun = end.value
            return trained


@dataclass(eq=False, repr=False)
class Trainer:
    """Trains `config` on `data` and measures it; resumes from `start`, made with the same numeric settings.

    `should_stop` is called before every step and every batch of an evaluation. Once it returns True, a
    checkpoint is written and RunInterruptedError raised. `report` is called at the same places, `warn` with a
    line for every acceleration that fails or differs from the eager step and is therefore not used.
    """

    config: RunConfig
    data: PreparedData
    precision: Precision
    _: KW_ONLY
    checkpoints: CheckpointFolder | None = None
    report: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False
    checkpoint_interval: float = CHECKPOINT_INTERVAL  # seconds
    start: Checkpoint | None = None
    accelerations: Accelerations = DEFAULT
    warn: Callable[[str], None] = lambda line: None
    capture: Callable[[torch.device], Capture] = CudaCapture

    def __post_init__(self) -> None:
        self.epoch = 0  # in progress, 0-indexed
        self.step = 0  # number of its steps done
        self.epoch_seconds = 0.0  # spent on them
        self.curve: list[Epoch] = []

    def steps(self) -> Generator[None, None, TrainedRun]:
        """Trains to the end, yielding after each step; call it once. All GPU work goes to the current stream.

        Nothing is allocated before the first step, and the memory is freed with the trainer. A loss that is
        not finite ends the run as diverged after its epoch; so do logits of the last evaluation that are not.
        Raises CheckpointMismatchError if `start` is not of this run, RunInterruptedError on request, and the
        device's error if memory runs out.
        """
        recipe = self.config.recipe
        self._build()
        randomness = self._draw(min(self.epoch, recipe.epochs - 1))
        self._batches.begin(randomness)
        take_step = self._prepare_step()
        final: Evaluation | None = None
        while self.epoch < recipe.epochs:
            is_last = self.epoch + 1 == recipe.epochs
            lr = recipe.lr_at(self.epoch)
            set_lr(self.optimizer, lr)
            if recipe.momentum_reset and self.epoch in recipe.lr_drops and self.step == 0:
                for buffer in momentum_buffers(self.optimizer):
                    buffer.zero_()
            self._batches.begin(randomness, sum(self._sizes[: self.step]))

            self._clock.start()
            for size in self._sizes[self.step :]:
                self._stop_or_save_if_due()
                self._report("training")
                with self._dropout_seed():
                    take_step(size)
                self.sums.count += size
                self._clock.images += size
                self.step += 1
                yield
            if not is_last:
                randomness = self._draw(self.epoch + 1)  # on the CPU while the device is still busy
            means = self.sums.read()
            self.epoch_seconds += self._clock.stop()

            diverged = not math.isfinite(means.train_loss)
            tested = None
            if not diverged and (is_last or (self.epoch + 1) % recipe.evaluate_every == 0):
                tested = self._evaluate(keep_logits=is_last)
                diverged = is_last and not tested.finite
            self.curve.append(self._curve_entry(lr, means, tested))
            if diverged:
                return self._trained_run(None)
            final = tested
            self.epoch, self.step, self.epoch_seconds = self.epoch + 1, 0, 0.0
            self.sums.reset()
        return self._trained_run(final)

    def _build(self) -> None:
        """Data, network, loss and optimizer on the device, as they are at `start`."""
        recipe, device = self.config.recipe, self.precision.device
        self._train, self._test = (to_device(arrays, device) for arrays in subset(self.data, recipe))
        manifest, folder = self.data.manifest, self.config.folder
        self._augmentation = build_augmentation(recipe.augmentation, manifest.image_size, device, folder)
        self.network, self.loss = build(self.config, manifest.image_size, manifest.classes)
        self.precision = self.accelerations.layout(self.precision.for_network(self.network))
        self._normalised = normalisation(self.data, recipe, device, self.precision.memory_format)
        self.loss.check_labels(torch.cat([self._train.labels, self._test.labels]))
        self.network.to(device).to(memory_format=self.precision.memory_format).train()
        self.loss.to(device).train()
        # A graph has to read the lr from the device; as a number on the host it would be a constant in it.
        lr_device = device if self.accelerations.cuda_graph else None
        fused = self.accelerations.fused_sgd
        self.optimizer = make_optimizer(self.network, self.loss, recipe, fused, lr_device)
        self._scaler = self.precision.scaler()
        self._clock = TrainingClock(device)
        self.sums = EpochSums(device)
        self._batches = BatchStream(self._train, recipe.crop_padding, self._normalised, self._augmentation)
        self._sizes = [end - begin for begin, end in batch_bounds(self._train.count, recipe.batch_size)]
        self._saves = _SaveTimer(self.checkpoint_interval)
        if self.start:
            self._restore(self.start)

    def _prepare_step(self) -> Callable[[int], None]:
        """The step in the fastest form that works here; `_used` are the accelerations in it."""
        step = TrainingStep(
            self.network, self.loss, self.optimizer, self._scaler, self.precision, self._batches, self.sums
        )
        allowed = self.accelerations
        self._drops_out = any(isinstance(module, nn.Dropout) for module in self.network.modules())
        if self._drops_out:
            # Dropout draws from the device's own generator, which is seeded before each step.
            allowed = allowed.switched(off=("cuda-graph", "compile"))
        exact = torch.are_deterministic_algorithms_enabled()
        capture = partial(self.capture, self.precision.device)
        take_step, self._used = prepare(
            step, tuple(dict.fromkeys(self._sizes)), allowed, capture, exact, self.warn
        )
        return take_step

    def _draw(self, epoch: int) -> EpochRandomness:
        count, recipe, seed = self._train.count, self.config.recipe, self.config.seed
        return draw_epoch(count, recipe, lambda purpose: generator(seed, purpose, epoch), self._augmentation)

    @contextmanager
    def _dropout_seed(self) -> Generator[None, None, None]:
        """Seeds the global generators for a step if the network has dropout, and restores them after it."""
        if not self._drops_out:
            yield
            return
        device = self.precision.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.config.seed, "dropout", self._steps_done()))
            yield

    def _evaluate(self, keep_logits: bool) -> Evaluation:
        how = self._normalised, self.precision, self._between_test_batches
        self.loss.recompute_statistics(partial(extract_features, self.network, self._train, *how))
        return evaluate(self.network, self.loss, self._test, *how, keep_logits=keep_logits)

    def _between_test_batches(self) -> None:
        if self.should_stop():
            self._stop()
        self._report("evaluating")

    def _stop_or_save_if_due(self) -> None:
        stop = self.should_stop()
        if stop or (self.checkpoints and self._saves.due()):
            self.epoch_seconds += self._clock.stop()
            if stop:
                self._stop()
            self._save()
            self._clock.start()

    def _stop(self) -> NoReturn:
        at_start = self.start is not None and self.start.step == self._steps_done()
        where = "there" if at_start or self._save() else "its last checkpoint, if there is one"
        raise RunInterruptedError(
            f"stopped in epoch {self.epoch + 1} of {self.config.recipe.epochs}; "
            f"when started again, it resumes from {where}"
        )

    def _steps_done(self) -> int:
        return self.epoch * len(self._sizes) + self.step

    def _save(self) -> Path | None:
        if self.checkpoints is None:
            return None
        # The accelerations asked for: a resumed run makes its own choice of what works among them.
        asked = self.accelerations.names()
        settings = NumericSettings.here(self.precision.device, self.precision.name, asked)
        with self._saves:
            return self.checkpoints.save(self._steps_done(), settings, self._state())

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds: plain data and tensors, not copies; write it before the next step.

        No generator is in it, because the randomness of an epoch is a function of seed and epoch.
        """
        return {
            "network": self.network.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict() if self._scaler else {},
            "sums": self.sums.state(),
            "epoch": self.epoch,
            "step": self.step,
            "epoch_seconds": self.epoch_seconds,
            "curve": [entry.model_dump() for entry in self.curve],
            "clock": (self._clock.images, self._clock.seconds),
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.state
        try:
            self.network.load_state_dict(saved["network"])
            self.loss.load_state_dict(saved["loss"])
            load_optimizer(self.optimizer, saved["optimizer"])
            if self._scaler:
                self._scaler.load_state_dict(saved["scaler"])
            self.sums.load(saved["sums"])
            self.epoch, self.step = saved["epoch"], saved["step"]
            self.epoch_seconds = saved["epoch_seconds"]
            self.curve = [Epoch.model_validate(entry) for entry in saved["curve"]]
            self._clock.images, self._clock.seconds = saved["clock"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointMismatchError(f"{checkpoint.path} does not fit this run: {error}") from error

    def _report(self, state: str) -> None:
        accuracies = (entry.test_accuracy for entry in reversed(self.curve))
        self.report(
            Progress(
                state=state,
                epoch=self.epoch,
                epochs=self.config.recipe.epochs,
                step=self.step,
                steps=len(self._sizes),
                images_per_second=self._clock.images_per_second(),
                train_loss=self.curve[-1].train_loss if self.curve else None,
                test_accuracy=next((accuracy for accuracy in accuracies if accuracy is not None), None),
            )
        )

    def _curve_entry(self, lr: float, means: EpochMeans, tested: Evaluation | None) -> Epoch:
        return Epoch(
            epoch=self.epoch,
            lr=lr,
            **{name: value if math.isfinite(value) else None for name, value in asdict(means).items()},
            test_loss=tested.loss if tested else None,
            test_accuracy=tested.accuracy if tested else None,
            seconds=self.epoch_seconds,
        )

    def _trained_run(self, final: Evaluation | None) -> TrainedRun:
        """The outcome, given the evaluation after the last epoch; None if the run has diverged."""
        best = max(
            (entry for entry in self.curve if entry.test_accuracy is not None),
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
            correct_images=final.packed_mask() if final else None,
            diverged_in=None if final else self.curve[-1].epoch,
        )
        probes = Probes(logits=None, weight_norms=None)
        if final and final.logits is not None:
            probes = logit_and_weight_statistics(final.logits, self.loss)
        used = self._used
        if self.precision.memory_format != torch.channels_last:
            used = used.switched(off=("channels-last",))
        return TrainedRun(
            result=result,
            curve=tuple(self.curve),
            probes=probes,
            images_per_second=self._clock.images / self._clock.seconds if self._clock.images else 0.0,
            accelerations=("resident-data", *used.names()),
        )


class _SaveTimer:
    """Decides when a checkpoint is due: after the interval, and after 50 times what the last one took."""

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
