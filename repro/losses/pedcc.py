"""PEDCC-loss: Zhu, Zhang, Wang and Ye, *A new loss function for CNN classifier based on predefined
evenly-distributed class centroids*, IEEE Access 2019.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from repro.losses.additive_margin import AdditiveMarginLoss
from repro.losses.centroids import evenly_distributed

DISTANCES = ("squared-norm", "element-mean", "sum")
EMBEDDINGS = ("linear", "linear-bias", "linear-bn")


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
    a feature the loss can't come near its floor. `embedding` says how the projection gives x:

        linear        x = V·f             as in the rest of this class
        linear-bias   x = V·f + b         the ResNet of POD-Loss's public code
        linear-bn     x = BN(V·f)         the VGG of the authors' public code

    BN is BatchNorm1d(n) without γ and β, with torch's ε = 1e-5 and momentum 0.1. In training it normalises by
    batch statistics, so a batch of one raises ValueError; in evaluation by running ones. In all three
    x̂ = x/‖x‖. With `projection=0` only "linear" is allowed: there is no projection to add a bias or BN to.

    Drawn in order: the projection's weight V (n, D), its bias b (n,) if it has one, then the centroids. Batch
    norm draws nothing.
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
        embedding: str = "linear",
    ) -> None:
        if embedding not in EMBEDDINGS or (embedding != "linear" and projection == 0):
            raise ValueError(
                f"embedding: {embedding!r} is none of {', '.join(EMBEDDINGS)}, or needs a projection"
            )
        if distance not in DISTANCES:
            raise ValueError(f"distance: expected one of {', '.join(DISTANCES)}, got {distance!r}")
        super().__init__(
            feature_dim,
            classes,
            scale=scale,
            margin=margin,
            projection=projection,
            projection_bias=embedding == "linear-bias",
        )
        self.norm: nn.Module = nn.Identity()
        if embedding == "linear-bn":
            self.norm = nn.BatchNorm1d(projection, affine=False)
            self.min_training_batch = 2  # over one image the variance is zero
        self.distance_weight, self.distance = distance_weight, distance
        self.register_buffer("centroids", evenly_distributed(classes, self.embedding_dim))

    def embed(self, features: Tensor) -> Tensor:
        """x̂, (B, d) on the unit sphere; in training "linear-bn" also updates its running statistics."""
        return F.normalize(self.norm(self.projection(features)), dim=1)

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
