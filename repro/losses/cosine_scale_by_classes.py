"""Cosine softmax with a scale from the number of classes: Zhang, Zhao, Qiao, Wang and Li, *AdaCos: adaptively
scaling cosine logits for effectively learning deep face representations*, CVPR 2019, Eq. 12 (fixed AdaCos).
"""

import math

from repro.losses.am_softmax import AMSoftmax


class CosineScaleByClasses(AMSoftmax):
    """Cross-entropy of s · cos θ without a margin, s = √2 · ln(C − 1).

    The source takes the scale at which the target's probability changes fastest at θ = π/4, with the other
    C − 1 classes at right angles: s = ln(C − 1) / cos(π/4), for C = 100 / 200 / 361: 6.50 / 7.49 / 8.32.

    Otherwise as AM-Softmax with m = 0. ValueError for two classes, for which s would be 0.
    """

    def __init__(self, feature_dim: int, classes: int, *, projection: int = 0) -> None:
        if classes < 3:
            raise ValueError(f"classes: expected at least 3 for a scale of √2·ln(C − 1), got {classes!r}")
        scale = math.sqrt(2) * math.log(classes - 1)
        super().__init__(feature_dim, classes, scale=scale, margin=0.0, projection=projection)
