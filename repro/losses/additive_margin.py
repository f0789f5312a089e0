"""The additive margin on a cosine (Eq. 2), whatever the class directions are: AM-Softmax's and PEDCC's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.losses.base import ClassificationLoss, check_positive


class AdditiveMarginLoss(ClassificationLoss):
    """Cross-entropy of scaled cosines, with a margin on the target (Eq. 2).

        x̂ = x/‖x‖,  ŵ_k = w_k/‖w_k‖,  cos θ_k = ⟨x̂, ŵ_k⟩
        logits:         z_k = s · cos θ_k
        softmax input:  z_k − s·m·[k = y]   in training,   z_k   in evaluation

    `scale` s, `margin` m; `projection` n > 0 puts a Linear(D → n) before the normalisation, without a bias
    unless `projection_bias`, which then is the first thing drawn (the weight, then the bias), and 0 takes the
    feature as it is. A norm below 1e-12 counts as 1e-12: a feature of zeros has cosine 0 to every class.

    The loss has a floor above zero, for s is finite: with C classes on a regular simplex it is
    log(1 + (C − 1) · exp(s · (m − C/(C − 1)))), e.g. .531 for C = 100, s = 7.5, m = .35.
    """

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        scale: float,
        margin: float,
        projection: int,
        projection_bias: bool = False,
    ) -> None:
        super().__init__(feature_dim, classes)
        check_positive(scale=scale)
        self.scale, self.margin = scale, margin
        self.embedding_dim = projection or feature_dim
        self.projection: nn.Module = (
            nn.Linear(feature_dim, projection, bias=projection_bias) if projection else nn.Identity()
        )

    def embed(self, features: Tensor) -> Tensor:
        """x̂: the feature, projected if there is a projection, on the unit sphere (B, d)."""
        return F.normalize(self.projection(features), dim=1)

    def classify(self, embedding: Tensor) -> Tensor:
        """s · cos θ, (B, C), within ±s."""
        return self.scale * F.linear(embedding, F.normalize(self.class_weights(), dim=1))

    def softmax_input(self, logits: Tensor, labels: Tensor) -> Tensor:
        """In training the logits with s·m taken off each target, (B, C); in evaluation the logits."""
        if not self.training:
            return logits
        # A comparison instead of a scatter: deterministic, fused when compiled, no value read on the host.
        target = labels.unsqueeze(1) == torch.arange(self.classes, device=labels.device)
        return logits - (self.scale * self.margin) * target
