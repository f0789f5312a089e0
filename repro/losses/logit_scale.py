"""Softmax cross-entropy of a linear classifier's logits times a fixed scale: the control of scaled BN."""

from torch import Tensor, nn

from repro.losses.base import ClassificationLoss, check_positive


class LogitScale(ClassificationLoss):
    """z = s · (W·x + b), then cross-entropy: what scaled BN is without the batch norm.

        L = −(1/B) Σ_i log softmax(s · (W·x_i + b))[y_i]

    The paper's own example doubles logits, s = 2, and counts the gain in probability; yet what s·W can do W
    can do alone. At the same logits the gradients at W and at x are s times those of s = 1, so only the path
    of the training differs: with s = 2 it is that of a W of twice the length, a step four times as large and
    a weight decay that is weaker by as much.

    `scale` s; `bias`: whether there is a b, by default none, as under scaled BN.
    Drawn in order: W (C, D), then b (C,).
    """

    def __init__(self, feature_dim: int, classes: int, *, scale: float, bias: bool = False) -> None:
        super().__init__(feature_dim, classes)
        check_positive(scale=scale)
        self.scale = scale
        self.classifier = nn.Linear(feature_dim, classes, bias=bias)

    def classify(self, embedding: Tensor) -> Tensor:
        """s · (W·x + b), (B, C)."""
        return self.scale * self.classifier(embedding)

    def class_weights(self) -> Tensor:
        """W, (C, D), before the scale."""
        return self.classifier.weight
