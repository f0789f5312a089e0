"""Cosine softmax with a learnt scale: Wang, Xiang, Cheng and Yuille, *NormFace: L2 hypersphere embedding for
face verification*, ACM Multimedia 2017, Eq. 7 (the scale is trained along, one for all classes).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.losses.base import ClassificationLoss, check_positive


class CosineLearntScale(ClassificationLoss):
    """Cross-entropy of s · cos θ, s a parameter.

        x̂ = x/‖x‖,  ŵ_k = w_k/‖w_k‖,   z_k = s · ⟨x̂, ŵ_k⟩,    ∂L/∂s = mean_i Σ_k (p_ik − y_ik) · cos θ_ik

    With C classes and a fixed s the loss can't fall below log(1 + (C − 1)·exp(−s·C/(C − 1))); a learnt s
    lowers that floor until weight decay, which acts on s as on every parameter, holds it.

    `initial_scale`: s at the start. `projection` n > 0 puts a Linear(D → n) without bias before the
    normalisation. A norm below 1e-12 counts as 1e-12: a feature of zeros has cosine 0 to every class.
    Drawn in order: the projection (n, D) if there is one, then W (C, n or D).
    """

    def __init__(
        self, feature_dim: int, classes: int, *, initial_scale: float = 10.0, projection: int = 0
    ) -> None:
        super().__init__(feature_dim, classes)
        check_positive(initial_scale=initial_scale)
        self.scale = nn.Parameter(torch.tensor(float(initial_scale)))
        self.projection: nn.Module = (
            nn.Linear(feature_dim, projection, bias=False) if projection else nn.Identity()
        )
        self.classifier = nn.Linear(projection or feature_dim, classes, bias=False)

    def embed(self, features: Tensor) -> Tensor:
        """x̂: the feature, projected if there is a projection, on the unit sphere (B, d)."""
        return F.normalize(self.projection(features), dim=1)

    def classify(self, embedding: Tensor) -> Tensor:
        """s · cos θ, (B, C)."""
        return self.scale * F.linear(embedding, F.normalize(self.classifier.weight, dim=1))

    def class_weights(self) -> Tensor:
        """W, (C, d), before it is normalised."""
        return self.classifier.weight
