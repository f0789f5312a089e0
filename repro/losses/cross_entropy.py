"""Softmax cross-entropy on a linear classifier (Eqs. 1 and 5): the baseline of every table."""

from torch import Tensor, nn

from repro.losses.base import ClassificationLoss


class CrossEntropy(ClassificationLoss):
    """z = W·x + b, then cross-entropy.

        L = −(1/B) Σ_i log softmax(z_i)[y_i]        (Eqs. 1, 5),    ∂L/∂z_i = (p_i − y_i) / B        (Eq. 8)

    `bias`: whether there is a b; the paper writes z = W·x but does not say, the field's habit is a bias.
    Drawn in order: W (C, D), then b (C,).
    """

    def __init__(self, feature_dim: int, classes: int, *, bias: bool = True) -> None:
        super().__init__(feature_dim, classes)
        self.classifier = nn.Linear(feature_dim, classes, bias=bias)

    def classify(self, embedding: Tensor) -> Tensor:
        """W·x + b, (B, C)."""
        return self.classifier(embedding)

    def class_weights(self) -> Tensor:
        """W, (C, D); the bias is no part of it."""
        return self.classifier.weight
