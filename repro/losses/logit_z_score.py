"""Logits z-scored over the classes of each sample, after Sun, Ren, Li, Wang and Cao, *Logit standardization
in knowledge distillation*, CVPR 2024 (arXiv 2403.01427), where they are those of a teacher and a student.
"""

from torch import Tensor, nn

from repro.losses.base import ClassificationLoss, check_positive

EPS = 1e-12
"""Added to the variance, so that a sample whose logits are all alike has finite gradients."""


class LogitZScore(ClassificationLoss):
    """x = W·f, standardised over a sample's classes, over τ, then cross-entropy: batch norm's other axis.

        z_ik = (x_ik − μ_i) / (τ · √(σ²_i + ε)),    μ_i, σ²_i: mean and biased variance of x_i's C numbers

    Scaled BN takes a class over the batch, this a sample over the classes: it needs no running statistics
    and is the same in both modes. Each row has mean 0 and length √C/τ: ⟨∂L/∂x_i, x_i⟩ = 0, Σ_k ∂L/∂x_ik = 0.

    `temperature` τ. No bias, as under scaled BN. ε = 1e-12. Drawn: W (C, D).
    """

    def __init__(self, feature_dim: int, classes: int, *, temperature: float = 1.0) -> None:
        super().__init__(feature_dim, classes)
        check_positive(temperature=temperature)
        self.temperature = temperature
        self.classifier = nn.Linear(feature_dim, classes, bias=False)

    def classify(self, embedding: Tensor) -> Tensor:
        """The z-scores over τ, (B, C)."""
        raw = self.classifier(embedding)
        centred = raw - raw.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return centred * (variance + EPS).rsqrt() / self.temperature

    def class_weights(self) -> Tensor:
        """W, (C, D), before the normalisation."""
        return self.classifier.weight
