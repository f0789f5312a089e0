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
    feature_norm: float
    gradient_times_feature: float


class EpochSums:
    """Sums over the images of an epoch so far, by the names in `NAMES`; float64, on the device.

    `values` stays one tensor; `count`, how many images are in it, is kept on the host by who adds batches.
    `inputs` tells which batches were read: Σ (label + 1) · ‖image‖₂; a recorded step is checked by it.
    """

    NAMES = (
        "loss",
        "correct",
        "gradient_at_logits",
        "gradient_at_features",
        "feature_norm",
        "gradient_times_feature",
        "inputs",
    )

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
        self.count = 0

    @classmethod
    def named(cls, values: Tensor) -> dict[str, float]:
        """The values of such a tensor by name; waits for the device."""
        return dict(zip(cls.NAMES, values.tolist(), strict=True))

    @torch.no_grad()
    def add(
        self,
        loss: Tensor,
        logits: Tensor,
        softmax_gradient: Tensor,
        features: Tensor,
        feature_gradient: Tensor,
        images: Tensor,
        labels: Tensor,
    ) -> None:
        """Adds a batch of `images` (B, 3, H, W): `loss` is its mean, `feature_gradient` (B, D) is ∂`loss`/∂f.

        `softmax_gradient` (B, C) is that at the softmax's input, p − y (Eq. 8) under cross-entropy. Both are
        recorded of the loss summed over the batch, hence a factor B for the second.
        """
        batch = labels.shape[0]
        # The product image by image: the mean of the products is not the product of the means.
        norms = torch.linalg.vector_norm(features.float(), dim=1).double()
        gradients = torch.linalg.vector_norm(feature_gradient.float(), dim=1).double() * batch
        read = torch.linalg.vector_norm(images, dim=(1, 2, 3)).double() * (labels + 1)
        self.values += torch.stack(
            [
                loss.double() * batch,
                (logits.argmax(dim=1) == labels).sum().double(),
                torch.linalg.vector_norm(softmax_gradient.float(), dim=1).sum().double(),
                gradients.sum(),
                norms.sum(),
                (gradients * norms).sum(),
                read.sum(),
            ]
        )

    def reset(self) -> None:
        """Nothing is in them any more."""
        self.values.zero_()
        self.count = 0

    def read(self) -> EpochMeans:
        """The means; waits for the device."""
        means = self.named(self.values / self.count)
        del means["inputs"]
        return EpochMeans(accuracy=100.0 * means.pop("correct"), **means)

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

    `right` (N,) bool on the CPU says which images were classified correctly. `finite`: no logit was NaN or
    infinite; where one was, the argmax says nothing and accuracy is None. `logits` (N, C) float32 on the CPU,
    where they were asked for.
    """

    right: Tensor
    loss: float | None
    finite: bool
    logits: Tensor | None

    @property
    def total(self) -> int:
        """How many test images."""
        return self.right.shape[0]

    @property
    def correct(self) -> int:
        """How many of them were classified correctly."""
        return int(self.right.sum())

    @property
    def accuracy(self) -> float | None:
        """Percent top-1."""
        return 100 * self.correct / self.total if self.finite else None


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
    total_loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    finite = torch.ones((), dtype=torch.bool, device=split.labels.device)
    right: list[Tensor] = []
    kept: list[Tensor] = []
    for images, labels in evaluation_batches(split, EVALUATION_BATCH, normalised):
        before_batch()
        with precision.autocast():
            features = network(images)
        batch_loss, logits = loss(features, labels)
        assert batch_loss is not None
        total_loss += batch_loss.double() * labels.shape[0]
        finite &= torch.isfinite(logits).all()
        right.append(logits.argmax(dim=1) == labels)
        if keep_logits:
            kept.append(logits.float())
    network.train()
    loss.train()
    mean = float(total_loss) / split.count
    return Evaluation(
        right=torch.cat(right).cpu(),
        loss=mean if math.isfinite(mean) else None,
        finite=bool(finite),
        logits=torch.cat(kept).cpu() if keep_logits else None,
    )
