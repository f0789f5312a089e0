"""LogitNorm: Wei, Xie, Cheng, Feng, An and Li, *Mitigating neural network overconfidence with logit
normalization*, ICML 2022 (arXiv 2205.09310), Eq. 5.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from repro.losses.base import ClassificationLoss, check_positive


class LogitNorm(ClassificationLoss):
    """x = W·f + b, put on a sphere a sample at a time, then cross-entropy.

        z_i = x_i / (τ · ‖x_i‖₂)

    so that ‖z_i‖ = 1/τ whatever the training does, and ⟨∂L/∂x_i, x_i⟩ = 0. The source normalises in training
    alone and reads raw logits afterwards; here both modes give z, for the class of the largest is the same.

    `temperature` τ: the source's .04 for CIFAR-10, hence |z| up to 25. `bias`: whether there is a b. A norm
    below 1e-12 counts as 1e-12. Drawn in order: W (C, D), then b (C,).
    """

    def __init__(
        self, feature_dim: int, classes: int, *, temperature: float = 0.04, bias: bool = True
    ) -> None:
        super().__init__(feature_dim, classes)
        check_positive(temperature=temperature)
        self.temperature = temperature
        self.classifier = nn.Linear(feature_dim, classes, bias=bias)

    def classify(self, embedding: Tensor) -> Tensor:
        """x / (τ·‖x‖), (B, C), each row of length 1/τ."""
        return F.normalize(self.classifier(embedding), dim=1) / self.temperature

    def class_weights(self) -> Tensor:
        """W, (C, D), before the normalisation."""
        return self.classifier.weight
