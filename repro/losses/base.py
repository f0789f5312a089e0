"""What every loss is: a classifier's weights, the logits they give, and a scalar to minimise.

    features (B, D) ─ embed ─► (B, d) ─ classify ─► logits (B, C) ─ softmax_input ─► criterion (+ extra)

Softmax and its cross-entropy over a batch, with C classes and the target y_i of sample i (Eqs. 5 and 1):

    p_j = exp(z_j) / Σ_k exp(z_k),    L = −(1/B) Σ_i log p_{i, y_i},    ∂L/∂z_i = (p_i − y_i) / B  (Eqs. 6–8)

A loss differs from another one in `embed`, `classify`, `softmax_input`, `criterion` (cross-entropy unless a
loss overrides it) and `extra_loss`, and in nothing else.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_positive(**values: float) -> None:
    """Raises ValueError for a value that is not a finite number above 0: it would train to nonsense."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")


class ClassificationLoss(nn.Module):
    """A classifier on pooled features together with the loss that trains it.

    Precision: everything is computed in float32, or in float64 where the features (and then, after
    `.double()`, the weights) are float64. Autocast is switched off inside, so half-precision features are
    widened and the loss is never a half-precision number. A float32 product still follows the process's
    `torch.set_float32_matmul_precision`.

    Modes: in training (`.train()`) the margin, if any, is on and batch norm uses the batch; in evaluation
    (`.eval()`) the margin is off and batch norm uses its running statistics.

    The hot path reads no tensor's value on the host: it can be compiled, and captured in a CUDA graph. Hence
    labels are not checked there; call `check_labels` once a data set. A feature that is NaN or infinite is
    not caught either: it makes the loss NaN, which training records as a diverged run.

    Initial values come from torch's global CPU generator, in the order that the class's docstring gives;
    the caller seeds it. Linear layers keep the initialisation of torch's `nn.Linear`, uniform in ±1/√fan_in.

    A loss's parameters are checked where a TOML or `losses.build` gives them, by their schema in
    `repro.config`; a constructor itself raises `ValueError` for what would train to nonsense, and every loss
    for a tensor of the wrong shape or dtype.
    """

    min_training_batch = 1
    full_batch: int | None = None
    """How many images a batch of training has, where it is not the short last one; training says so."""

    def __init__(self, feature_dim: int, classes: int) -> None:
        super().__init__()
        if feature_dim < 1 or classes < 2:
            raise ValueError(f"expected 1 feature and 2 classes or more, got {feature_dim} and {classes}")
        self.feature_dim, self.classes = feature_dim, classes

    def forward(self, features: Tensor, labels: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """The loss, a scalar (None without labels), and the logits (B, C), never with the margin in them.

        `features` (B, D) of any floating dtype, `labels` (B,) int64.
        """
        self._check_features(features)
        if labels is not None:
            self._check_labels_shape(labels, features.shape[0])
        with torch.autocast(features.device.type, enabled=False):
            embedding = self.embed(_widened(features))
            logits = self.classify(embedding)
            if labels is None:
                return None, logits
            loss = self.criterion(self.softmax_input(logits, labels), labels)
            extra = self.extra_loss(embedding, labels)
            return (loss if extra is None else loss + extra), logits

    def logits(self, features: Tensor) -> Tensor:
        """The logits (B, C) of features (B, D), in the current mode; what argmax and Figure 2 read."""
        return self(features)[1]

    def embed(self, features: Tensor) -> Tensor:
        """What the classifier reads, (B, d) from (B, D): the feature itself unless a loss overrides it."""
        return features

    def classify(self, embedding: Tensor) -> Tensor:
        """The logits (B, C) of embeddings (B, d)."""
        raise NotImplementedError

    def softmax_input(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What enters the softmax: the logits, in training with the margin taken off each target."""
        return logits

    def criterion(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of what enters the softmax (B, C), a mean over the batch: a scalar."""
        return F.cross_entropy(inputs, labels)

    def extra_loss(self, embedding: Tensor, labels: Tensor) -> Tensor | None:
        """A second term of the loss, a scalar, in both modes; None where there is none."""
        return None

    def softmax_gradient(self, logits: Tensor, labels: Tensor) -> Tensor:
        """∂(B·L)/∂(softmax input), (B, C), at detached `logits`: p − y under cross-entropy (Eq. 8)."""
        with torch.enable_grad():
            inputs = self.softmax_input(logits, labels).requires_grad_()
            (gradient,) = torch.autograd.grad(self.criterion(inputs, labels), inputs)
        return gradient * labels.shape[0]

    def recompute_statistics(self, features: Callable[[], Iterable[Tensor]]) -> None:
        """Called before every evaluation; `features()` passes over the training set's features, (B, D) each.

        They come from images without augmentation through the network in evaluation mode. Does nothing unless
        a loss overrides it.
        """

    def class_weights(self) -> Tensor:
        """The class weights w_k as rows (C, d), as they are stored."""
        raise NotImplementedError

    @torch.no_grad()
    def class_weight_norms(self) -> Tensor:
        """‖w_k‖₂ of each class (C,): what Figure 3 draws."""
        return torch.linalg.vector_norm(self.class_weights(), dim=1)

    def check_labels(self, labels: Tensor) -> None:
        """Raise ValueError unless `labels` are int64 in 0 … C − 1; waits for the device, so once a data set.

        Without it cross-entropy ignores −100 in silence, and on a GPU any other stray label ends the process.
        """
        self._check_labels_shape(labels, labels.numel())
        if labels.numel() == 0:
            raise ValueError("labels: expected at least one, got none")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise ValueError(
                f"labels: expected classes 0 … {self.classes - 1}, got values from {low} to {high}; "
                "the data set and the loss disagree on the number of classes"
            )

    def _check_features(self, features: Tensor) -> None:
        """Shape and dtype only: both are known on the host."""
        if features.ndim != 2 or features.shape[1] != self.feature_dim or not features.is_floating_point():
            raise ValueError(
                f"features: expected floating point of shape (batch, {self.feature_dim}), "
                f"got {features.dtype} of shape {tuple(features.shape)}"
            )
        least = self.min_training_batch if self.training else 1
        if features.shape[0] < least:
            raise ValueError(
                f"features: expected a batch of at least {least}, got {features.shape[0]}"
                + ("; in training, batch norm needs at least two samples" if least > 1 else "")
            )

    def _check_labels_shape(self, labels: Tensor, batch: int) -> None:
        if labels.shape != (batch,) or labels.dtype != torch.int64:
            raise ValueError(
                f"labels: expected torch.int64 of shape ({batch},), "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )


def _widened(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
