"""Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, *Rethinking the inception architecture for
computer vision*, CVPR 2016, section 7.
"""

import torch.nn.functional as F
from torch import Tensor

from repro.losses.cross_entropy import CrossEntropy


class LabelSmoothing(CrossEntropy):
    """z = W·x + b, then in training the cross-entropy against targets that are not quite one-hot.

        q_ik = (1 − α)·[k = y_i] + α/C,    L = −(1/B) Σ_i Σ_k q_ik log p_ik,    ∂L/∂z_i = (p_i − q_i) / B

    `smoothing` α, 0 ≤ α < 1. In evaluation the loss is the plain cross-entropy. The rest as cross-entropy.
    """

    def __init__(self, feature_dim: int, classes: int, *, smoothing: float = 0.1, bias: bool = True) -> None:
        super().__init__(feature_dim, classes, bias=bias)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing: expected a number from 0 to below 1, got {smoothing!r}")
        self.smoothing = smoothing

    def criterion(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy against q in training, against y in evaluation; a scalar."""
        return F.cross_entropy(inputs, labels, label_smoothing=self.smoothing if self.training else 0.0)
