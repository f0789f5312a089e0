"""PEDCC-loss: Zhu, Zhang, Wang and Ye, *A new loss function for CNN classifier based on predefined
evenly-distributed class centroids*, IEEE Access 2019.
"""

from torch import Tensor

from repro.errors import UsageError
from repro.losses.additive_margin import AdditiveMarginLoss
from repro.losses.arguments import non_negative
from repro.losses.centroids import evenly_distributed

DISTANCES = ("squared-norm", "element-mean", "sum")


class PEDCC(AdditiveMarginLoss):
    """The additive margin (Eq. 2) against fixed centroids, and the distance of a feature to its own.

        L = L_AM(x̂, c) + w · mean_i ‖x̂_i − c_{y_i}‖²

    The centroids c_k are evenly distributed on the unit sphere (`repro.losses.centroids`) and never trained:
    a buffer, saved with the state. By `distance` the second term is

        squared-norm   mean_i ‖x̂_i − c_{y_i}‖²  =  mean_i 2 (1 − cos θ_{y_i})
        element-mean   the same over d, the mean over all B·d elements
        sum            the same times B, the sum over the batch

    and w is `distance_weight`. It has no margin and is part of the loss in evaluation too, where the loss is
    therefore the plain cross-entropy of the logits plus w times the distance.

    `projection`: 512 by default, because a pooled feature comes after a ReLU. Against a randomly rotated
    simplex a vector without negative entries can't pass a cosine of about √½, so with `projection=0` on such
    a feature the loss can't come near its floor. Drawn in order: the projection (n, D), then the centroids.
    """

    centroids: Tensor

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        scale: float,
        margin: float,
        distance_weight: float = 1.0,
        distance: str = "squared-norm",
        projection: int = 512,
    ) -> None:
        super().__init__(feature_dim, classes, scale=scale, margin=margin, projection=projection)
        self.distance_weight = non_negative("distance_weight", distance_weight)
        if distance not in DISTANCES:
            raise UsageError(f"distance: expected one of {', '.join(DISTANCES)}, got {distance!r}")
        self.distance = distance
        self.register_buffer("centroids", evenly_distributed(classes, self.embedding_dim))

    def extra_loss(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """w times the distance of the embeddings (B, d) to their own centroids, a scalar."""
        squared = (embedding - self.centroids[labels]).square()
        match self.distance:
            case "squared-norm":
                distance = squared.sum(dim=1).mean()
            case "element-mean":
                distance = squared.mean()
            case _:
                distance = squared.sum()
        return self.distance_weight * distance

    def class_weights(self) -> Tensor:
        """The centroids, (C, d), of norm one."""
        return self.centroids
