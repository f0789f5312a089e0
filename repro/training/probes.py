"""What Figures 2 and 3 need of a trained network: the logits' distribution and the class weights' norms."""

import numpy as np
import torch
from torch import Tensor

from repro.losses import ClassificationLoss
from repro.records import HISTOGRAM_BINS, HISTOGRAM_RANGE, LogitHistogram, Probes

QUANTILES = (2.5, 25.0, 50.0, 75.0, 97.5)


def take_probes(logits: Tensor, loss: ClassificationLoss) -> Probes:
    """Probes from the evaluation-mode logits (N, C) of the test split and the loss's class weights.

    Logits that are not all finite have no histogram, weights that are not no norms.
    """
    norms = loss.class_weight_norms().detach().double().cpu()
    finite = bool(torch.isfinite(norms).all())
    return Probes(
        logits=_histogram(logits.double().numpy().ravel()),
        weight_norms=tuple(norms.tolist()) if finite else None,
    )


def _histogram(logits: np.ndarray) -> LogitHistogram | None:
    if not np.isfinite(logits).all():
        return None
    low, high = HISTOGRAM_RANGE
    inside = logits[(logits >= low) & (logits < high)]
    counts, _ = np.histogram(inside, bins=HISTOGRAM_BINS, range=HISTOGRAM_RANGE)
    return LogitHistogram(
        low=low,
        high=high,
        counts=tuple(int(count) for count in counts),
        underflow=int((logits < low).sum()),
        overflow=int((logits >= high).sum()),
        mean=float(logits.mean()),
        std=float(logits.std()),
        quantiles={
            f"{q:g}": float(v) for q, v in zip(QUANTILES, np.percentile(logits, QUANTILES), strict=True)
        },
    )
