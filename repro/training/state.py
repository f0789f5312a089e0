"""What a run is at a step: everything that a checkpoint holds and brings back."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from repro.losses import ClassificationLoss
from repro.records import Epoch
from repro.training.checkpoint import Checkpoint, CheckpointUnfitError
from repro.training.metrics import EpochSums
from repro.training.optim import load_optimizer


class Clock:
    """Training images and seconds so far, over every attempt whose steps count: the speed that is recorded.

    Runs only while the device trains: evaluation and checkpoints happen between `stop` and `start`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.images = 0
        self.seconds = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """From now on the device trains."""
        self._started = time.perf_counter()

    def stop(self) -> float:
        """Waits for the device; the seconds since `start`."""
        if self.device.type == "cuda":
            # This run's own stream: others may be training beside it.
            torch.cuda.current_stream(self.device).synchronize()
        lap = self._lap()
        self.seconds += lap
        self._started = None
        return lap

    def images_per_second(self) -> float | None:
        """The speed so far; while running, as far as the host has come."""
        return self.images / (self.seconds + self._lap()) if self.images else None

    def _lap(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started


@dataclass
class TrainingState:
    """A run in the making: modules, optimizer, sums of the epoch in progress, and where it stands.

    `epoch` (0-indexed) is in progress, `step` of its steps are done. The randomness of an epoch is a function
    of seed and epoch, so no generator is here.
    """

    network: nn.Module
    loss: ClassificationLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    clock: Clock
    sums: EpochSums
    epoch: int = 0
    step: int = 0
    epoch_seconds: float = 0.0
    curve: list[Epoch] = field(default_factory=list)

    def begin_epoch(self, epoch: int) -> None:
        """Nothing of it is done yet."""
        self.epoch, self.step, self.epoch_seconds = epoch, 0, 0.0
        self.sums.reset()

    def for_checkpoint(self) -> dict[str, Any]:
        """Plain data and tensors; not copies, so write them before the next step."""
        return {
            "network": self.network.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "sums": self.sums.state(),
            "epoch": self.epoch,
            "step": self.step,
            "epoch_seconds": self.epoch_seconds,
            "curve": [entry.model_dump() for entry in self.curve],
            "clock": (self.clock.images, self.clock.seconds),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from `checkpoint`; after a CheckpointUnfitError this state is good for nothing."""
        saved = checkpoint.state
        try:
            self.network.load_state_dict(saved["network"])
            self.loss.load_state_dict(saved["loss"])
            load_optimizer(self.optimizer, saved["optimizer"])
            if self.scaler:
                self.scaler.load_state_dict(saved["scaler"])
            self.sums.load(saved["sums"])
            self.epoch, self.step = saved["epoch"], saved["step"]
            self.epoch_seconds = saved["epoch_seconds"]
            self.curve = [Epoch.model_validate(entry) for entry in saved["curve"]]
            self.clock.images, self.clock.seconds = saved["clock"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointUnfitError(f"{checkpoint.path} does not fit this run: {error}") from error
