"""Scaled batch norm on the logits (Eq. 9): the paper's proposal."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.losses.base import ClassificationLoss, check_positive

STATISTICS = ("running", "full-batches", "training-set")


class ScaledBN(ClassificationLoss):
    """x = W·f, normalised over the batch a class at a time, times a fixed scale, then cross-entropy.

        z^(k) = m · (x^(k) − E[x^(k)]) / √(Var[x^(k)] + ε)        (Eq. 9; Eq. 3 with ε added)

    In training E and Var are the batch's (Var biased, as batch norm has it); in evaluation they are the
    running ones, updated with `momentum` at every forward pass in training mode. W has no bias: the mean
    would take it off again. The rows of W are scale-invariant, exactly as ε → 0:

        ⟨∂L/∂w_k, w_k⟩ = ε / (Var[x^(k)] + ε) · Σ_i ∂L/∂z_i^(k) · z_i^(k)

    so ‖w_k‖ is set by weight decay and step size rather than by the fit.

    `scale`: the paper's m. `affine`: adds the learnable γ and β of Eq. 4 (initially 1 and 0), so that
    z = m (γ x̂ + β); the paper leaves them out on purpose. `eps`: above 0, for torch refuses 0 in training;
    1e-30 changes no variance in sight. Drawn: W (C, D), nothing else.

    `statistics`: which E and Var evaluation uses, for the paper does not say, and the last batch of an epoch
    sets a `momentum`'s share of the running ones just before it:

        running        the running ones of every batch, as torch has it
        full-batches   those of every batch but a short last one, which is normalised and leaves them alone
        training-set   E and Var (unbiased) over the whole training set, again before each evaluation

    A batch of one in training raises ValueError: its variance is zero. The statistics always belong to one
    device's batch.
    """

    min_training_batch = 2

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        scale: float,
        affine: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
        statistics: str = "running",
    ) -> None:
        super().__init__(feature_dim, classes)
        check_positive(scale=scale, eps=eps, momentum=momentum)
        if statistics not in STATISTICS:
            raise ValueError(f"statistics: expected one of {', '.join(STATISTICS)}, got {statistics!r}")
        self.scale, self.statistics = scale, statistics
        self.classifier = nn.Linear(feature_dim, classes, bias=False)
        self.norm = nn.BatchNorm1d(classes, eps=eps, momentum=momentum, affine=affine)

    def classify(self, embedding: Tensor) -> Tensor:
        """m · BN(W·f), (B, C); in training it also updates the running statistics."""
        raw = self.classifier(embedding)
        if self.training and self.statistics == "full-batches" and raw.shape[0] < (self.full_batch or 0):
            norm = self.norm
            return self.scale * F.batch_norm(
                raw, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
            )
        return self.scale * self.norm(raw)

    @torch.no_grad()
    def recompute_statistics(self, features: Callable[[], Iterable[Tensor]]) -> None:
        """Under `training-set`: sets E and Var of W·f to those over all `features()`, summed in float64."""
        if self.statistics != "training-set":
            return
        count = 0
        sums = torch.zeros(2, self.classes, dtype=torch.float64, device=self.classifier.weight.device)
        for batch in features():
            with torch.autocast(batch.device.type, enabled=False):
                raw = self.classifier(batch.to(self.classifier.weight.dtype)).double()
            sums += torch.stack([raw.sum(dim=0), raw.square().sum(dim=0)])
            count += raw.shape[0]
        mean = sums[0] / count
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_((sums[1] / count - mean.square()).clamp_min(0.0) * count / (count - 1))

    def class_weights(self) -> Tensor:
        """W, (C, D), before the normalisation."""
        return self.classifier.weight
