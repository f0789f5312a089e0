"""The losses, by the names that experiments/*.toml use.

Adding one: a file with a `ClassificationLoss`, a line in `LOSSES`, its parameters in the registry's schema.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from repro.errors import UsageError
from repro.losses.am_softmax import AMSoftmax
from repro.losses.base import ClassificationLoss
from repro.losses.cross_entropy import CrossEntropy
from repro.losses.pedcc import PEDCC
from repro.losses.scaled_bn import ScaledBN

LOSSES: dict[str, type[ClassificationLoss]] = {
    "cross-entropy": CrossEntropy,
    "am-softmax": AMSoftmax,
    "pedcc": PEDCC,
    "scaled-bn": ScaledBN,
}


def parameters(kind: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a loss by name, with annotation and default; UsageError for an unknown loss."""
    if kind not in LOSSES:
        raise UsageError(f"loss: expected one of {', '.join(LOSSES)}, got {kind!r}")
    signature = inspect.signature(LOSSES[kind]).parameters
    return {name: value for name, value in signature.items() if value.kind is value.KEYWORD_ONLY}


def build(kind: str, feature_dim: int, classes: int, **values: Any) -> ClassificationLoss:
    """The loss called `kind` on features of `feature_dim` numbers for `classes` classes.

    Built on the CPU from torch's global generator, which the caller seeds. Raises UsageError for an unknown
    loss or parameter, one that is missing, and a value out of range.
    """
    known = parameters(kind)
    listed = ", ".join(known)
    if unknown := [name for name in values if name not in known]:
        raise UsageError(f"{kind} has no parameter {', '.join(unknown)}; it has {listed}")
    required = [name for name, value in known.items() if value.default is value.empty]
    if missing := [name for name in required if name not in values]:
        raise UsageError(f"{kind} needs {', '.join(missing)}; its parameters are {listed}")
    return LOSSES[kind](feature_dim, classes, **values)


__all__ = [
    "LOSSES",
    "build",
    "parameters",
    "ClassificationLoss",
    "CrossEntropy",
    "AMSoftmax",
    "PEDCC",
    "ScaledBN",
]
