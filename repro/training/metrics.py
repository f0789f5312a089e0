"""Metrics: sums that stay on the device until the epoch ends, the evaluation, and the training speed.

Nothing here waits for the device inside an epoch; `EpochSums.read` does, once.
"""

import base64
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from repro.data.loader import DeviceSplit, Normalisation, evaluation_batches
from repro.losses import ClassificationLoss
from repro.records import HISTOGRAM_BINS, HISTOGRAM_RANGE, QUANTILES, LogitHistogram, Probes
from repro.training.precision import Precision

EVALUATION_BATCH = 1000  # images per batch; the training batch size does not matter here


@dataclass(frozen=True)
class EpochMeans:
    """Means over all training images of an epoch, named as in `repro.records.Epoch`; accuracy in percent."""

    train_loss: float
    train_accuracy: float
    gradient_at_logits: float
    gradient_at_features: float
    feature_norm: float
    gradient_times_feature: float


class EpochSums:
    """Sums over the images of an epoch so far: `values` (len(NAMES),) float64 on the device.

    `values` is always the same tensor. `count`, the number of images in it, is kept on the host by the
    caller. `inputs` is Σ (label + 1) · ‖image‖₂: it shows whether a captured step has read the right batches.
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
        """The entries of such a tensor by name; waits for the device."""
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
        """Adds a batch of `images` (B, 3, H, W) with its mean `loss` and its `logits` (B, C).

        `softmax_gradient` (B, C) is the gradient at the softmax's input: p − y under cross-entropy.
        `feature_gradient` (B, D) is ∂`loss`/∂`features`. Both are summed as gradients of the loss summed over
        the batch, hence the factor B for the second.
        """
        batch = labels.shape[0]
        # The product per image: the mean of the products is not the product of the means.
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
        """Zeroes the sums, in place."""
        self.values.zero_()
        self.count = 0

    def read(self) -> EpochMeans:
        """The means over `count` images; waits for the device."""
        means = self.named(self.values / self.count)
        del means["inputs"]
        loss, correct = means.pop("loss"), means.pop("correct")
        # Where the loss is not finite logits may be NaN, and an argmax of NaN says nothing.
        accuracy = 100.0 * correct if math.isfinite(loss) else math.nan
        return EpochMeans(train_loss=loss, train_accuracy=accuracy, **means)

    def state(self) -> dict[str, Tensor | int]:
        """The sums for a checkpoint."""
        return {"values": self.values.cpu(), "count": self.count}

    def load(self, state: dict[str, Tensor | int]) -> None:
        """Restores the sums from a checkpoint, in place."""
        values, count = state["values"], state["count"]
        assert isinstance(values, Tensor)
        self.values.copy_(values)
        self.count = int(count)


@dataclass(frozen=True)
class Evaluation:
    """Top-1 over all test images; `loss` is the mean without margin, None if not finite.

    `correct_mask` (N,) bool on the CPU: which images were classified correctly. `finite`: no logit was NaN or
    infinite; otherwise the argmax is meaningless and accuracy is None. `logits` (N, C) float32 on the CPU, if
    they were asked for.
    """

    correct_mask: Tensor
    loss: float | None
    finite: bool
    logits: Tensor | None

    @property
    def total(self) -> int:
        """The number of test images."""
        return self.correct_mask.shape[0]

    @property
    def correct(self) -> int:
        """The number of correctly classified images."""
        return int(self.correct_mask.sum())

    @property
    def accuracy(self) -> float | None:
        """Top-1 in percent."""
        return 100 * self.correct / self.total if self.finite else None

    def packed_mask(self) -> str:
        """`correct_mask` as one bit per image, base64: the format of `repro.records.Result`."""
        return base64.urlsafe_b64encode(np.packbits(self.correct_mask.numpy()).tobytes()).decode()


@torch.no_grad()
def extract_features(
    network: nn.Module,
    split: DeviceSplit,
    normalised: Normalisation,
    precision: Precision,
    before_batch: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Yields the features (B, D) of every image of a split: no augmentation, network in evaluation mode.

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
    """Evaluates a split in evaluation mode, then puts both modules back into training mode.

    `before_batch` is called before every batch; an exception it raises ends the evaluation.
    """
    network.eval()
    loss.eval()
    total_loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    finite = torch.ones((), dtype=torch.bool, device=split.labels.device)
    correct: list[Tensor] = []
    kept: list[Tensor] = []
    for images, labels in evaluation_batches(split, EVALUATION_BATCH, normalised):
        before_batch()
        with precision.autocast():
            features = network(images)
        batch_loss, logits = loss(features, labels)
        assert batch_loss is not None
        total_loss += batch_loss.double() * labels.shape[0]
        finite &= torch.isfinite(logits).all()
        correct.append(logits.argmax(dim=1) == labels)
        if keep_logits:
            kept.append(logits.float())
    network.train()
    loss.train()
    mean = float(total_loss) / split.count
    return Evaluation(
        correct_mask=torch.cat(correct).cpu(),
        loss=mean if math.isfinite(mean) else None,
        finite=bool(finite),
        logits=torch.cat(kept).cpu() if keep_logits else None,
    )


def logit_and_weight_statistics(logits: Tensor, loss: ClassificationLoss) -> Probes:
    """The distribution of the logits and the norms of the class weights.

    `logits` (N, C) are those of the test split in evaluation mode, on the CPU. There is no histogram if one
    of them is not finite, and there are no norms if one weight is not.
    """
    norms = loss.class_weight_norms().detach().double().cpu()
    finite = bool(torch.isfinite(norms).all())
    return Probes(
        logits=_histogram(logits.double().numpy().ravel()),
        weight_norms=tuple(norms.tolist()) if finite else None,
    )


def _histogram(logits: np.ndarray) -> LogitHistogram | None:
    if not np.isfinite(logits).all():
        return None
    low, high = HISTOGRAM_RANGE
    inside = logits[(logits >= low) & (logits < high)]
    counts, _ = np.histogram(inside, bins=HISTOGRAM_BINS, range=HISTOGRAM_RANGE)
    return LogitHistogram(
        low=low,
        high=high,
        counts=tuple(int(count) for count in counts),
        underflow=int((logits < low).sum()),
        overflow=int((logits >= high).sum()),
        mean=float(logits.mean()),
        std=float(logits.std()),
        quantiles={
            f"{q:g}": float(v) for q, v in zip(QUANTILES, np.percentile(logits, QUANTILES), strict=True)
        },
    )


class TrainingClock:
    """Images trained on and seconds spent so far, over every attempt whose steps count: the recorded speed.

    It runs only while the device trains, not during evaluation and checkpoints.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.images = 0
        self.seconds = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """Starts counting seconds."""
        self._started = time.perf_counter()

    def stop(self) -> float:
        """Waits for the device and stops; returns the seconds since `start`."""
        if self.device.type == "cuda":
            # This run's own stream, not the whole device: other runs may be training on other streams.
            torch.cuda.current_stream(self.device).synchronize()
        lap = self._lap()
        self.seconds += lap
        self._started = None
        return lap

    def images_per_second(self) -> float | None:
        """The mean speed so far; while the clock runs, of the steps that the host has launched."""
        return self.images / (self.seconds + self._lap()) if self.images else None

    def _lap(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started
