"""Scaled batch norm on the logits (Eq. 9): the paper's proposal."""

from torch import Tensor, nn

from repro.losses.arguments import positive, truth
from repro.losses.base import ClassificationLoss


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
    ) -> None:
        super().__init__(feature_dim, classes)
        self.scale = positive("scale", scale)
        self.classifier = nn.Linear(feature_dim, classes, bias=False)
        self.norm = nn.BatchNorm1d(
            classes,
            eps=positive("eps", eps),
            momentum=positive("momentum", momentum, at_most=1.0),
            affine=truth("affine", affine),
        )

    def classify(self, embedding: Tensor) -> Tensor:
        """m · BN(W·f), (B, C); in training it also updates the running statistics."""
        return self.scale * self.norm(self.classifier(embedding))

    def class_weights(self) -> Tensor:
        """W, (C, D), before the normalisation."""
        return self.classifier.weight
