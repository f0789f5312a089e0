"""AM-Softmax (Eq. 2): Wang, Cheng, Liu and Liu, *Additive margin softmax for face verification*, 2018."""

from torch import Tensor, nn

from repro.losses.additive_margin import AdditiveMarginLoss


class AMSoftmax(AdditiveMarginLoss):
    """The additive margin against learnt class weights.

        L = −(1/B) Σ_i log( e^{s(cos θ_y − m)} / (e^{s(cos θ_y − m)} + Σ_{j≠y} e^{s cos θ_j}) )        (Eq. 2)

    with y = y_i and the cosines those of sample i.

    `class_weight_norms` are those of the raw weight: the loss does not depend on them, weight decay does.
    Drawn in order: the projection (n, D) if there is one, then W (C, n or D).
    """

    def __init__(
        self, feature_dim: int, classes: int, *, scale: float, margin: float, projection: int = 0
    ) -> None:
        super().__init__(feature_dim, classes, scale=scale, margin=margin, projection=projection)
        self.classifier = nn.Linear(self.embedding_dim, classes, bias=False)

    def class_weights(self) -> Tensor:
        """W, (C, d), before it is normalised."""
        return self.classifier.weight
