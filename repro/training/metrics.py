"""What is measured while training: sums that stay on the device until the epoch ends, and evaluation.

Nothing here waits for the device inside an epoch; `EpochSums.read` does, once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.data.loader import DeviceSplit, Normalisation, evaluation_batches
from repro.losses import ClassificationLoss
from repro.training.precision import Precision

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class EpochMeans:
    """Means over every training image of an epoch; accuracy in percent."""

    loss: float
    accuracy: float
    gradient_at_logits: float
    gradient_at_features: float


class EpochSums:
    """Sums over the images of an epoch so far: loss, correct, two gradient norms; float64, on the device.

    `values` stays one tensor; `count`, how many images are in it, is kept on the host by who adds batches.
    """

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(4, dtype=torch.float64, device=device)
        self.count = 0

    @torch.no_grad()
    def add(
        self, loss: Tensor, logits: Tensor, softmax_gradient: Tensor, feature_gradient: Tensor, labels: Tensor
    ) -> None:
        """Adds a batch. `loss` is the batch mean; `feature_gradient` (B, D) is ∂loss/∂features.

        `softmax_gradient` (B, C) is that at the softmax's input, p − y (Eq. 8) under cross-entropy. Both are
        recorded of the loss summed over the batch, hence a factor B for the second.
        """
        batch = labels.shape[0]
        self.values += torch.stack(
            [
                loss.double() * batch,
                (logits.argmax(dim=1) == labels).sum().double(),
                torch.linalg.vector_norm(softmax_gradient.float(), dim=1).sum().double(),
                torch.linalg.vector_norm(feature_gradient.float(), dim=1).sum().double() * batch,
            ]
        )

    def reset(self) -> None:
        """Nothing is in them any more."""
        self.values.zero_()
        self.count = 0

    def read(self) -> EpochMeans:
        """The means; waits for the device."""
        loss, correct, at_logits, at_features = (self.values / self.count).tolist()
        return EpochMeans(loss, 100.0 * correct, at_logits, at_features)

    def state(self) -> dict[str, Tensor | int]:
        """For a checkpoint."""
        return {"values": self.values.cpu(), "count": self.count}

    def load(self, state: dict[str, Tensor | int]) -> None:
        """From a checkpoint."""
        values, count = state["values"], state["count"]
        assert isinstance(values, Tensor)
        self.values.copy_(values)
        self.count = int(count)


@dataclass(frozen=True)
class Evaluation:
    """Top-1 over every test image, counted once; `loss` is the margin-free mean, None if not finite.

    `logits` (N, C) float32 on the CPU, where they were asked for.
    """

    correct: int
    total: int
    loss: float | None
    logits: Tensor | None

    @property
    def accuracy(self) -> float:
        """Percent top-1."""
        return 100 * self.correct / self.total


@torch.no_grad()
def plain_features(
    network: nn.Module,
    split: DeviceSplit,
    normalised: Normalisation,
    precision: Precision,
    before_batch: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """The pooled features of every image of a split, without augmentation, the network in evaluation mode.

    `before_batch` is as in `evaluate`.
    """
    network.eval()
    for images, _ in evaluation_batches(split, EVALUATION_BATCH, normalised):
        before_batch()
        with precision.autocast():
            yield network(images)
    network.train()


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loss: ClassificationLoss,
    split: DeviceSplit,
    normalised: Normalisation,
    precision: Precision,
    before_batch: Callable[[], None] = lambda: None,
    keep_logits: bool = False,
) -> Evaluation:
    """Evaluates in evaluation mode and puts both modules back into training mode.

    `before_batch` is called before every batch; what it raises ends the evaluation.
    """
    network.eval()
    loss.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=split.labels.device)
    kept: list[Tensor] = []
    for images, labels in evaluation_batches(split, EVALUATION_BATCH, normalised):
        before_batch()
        with precision.autocast():
            features = network(images)
        batch_loss, logits = loss(features, labels)
        assert batch_loss is not None
        correct = (logits.argmax(dim=1) == labels).sum().double()
        sums += torch.stack([batch_loss.double() * labels.shape[0], correct])
        if keep_logits:
            kept.append(logits.float())
    network.train()
    loss.train()
    total_loss, correct_images = sums.tolist()
    mean = total_loss / split.count
    return Evaluation(
        correct=int(correct_images),
        total=split.count,
        loss=mean if math.isfinite(mean) else None,
        logits=torch.cat(kept).cpu() if keep_logits else None,
    )
