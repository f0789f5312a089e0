"""The losses, by the names that experiments/*.toml use; where each is written says `repro.implementations`.

Adding one: a file with a `ClassificationLoss`, a line in `repro.implementations.LOSSES`, its parameters in
`repro.config`. One of the user's own needs none of this: a file of theirs and its name in their TOML.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repro.errors import OwnCodeError, UsageError
from repro.implementations import LOSSES, find, load
from repro.losses.base import ClassificationLoss
from repro.own_code import try_loss


def parameters(kind: str, folder: Path | None = None) -> Mapping[str, inspect.Parameter]:
    """The parameters of a loss by name, with annotation and default; OwnCodeError for an unknown loss.

    `folder` is what a file of the user's own is relative to.
    """
    return _parameters(_implementation(kind, folder))


def build(
    kind: str, feature_dim: int, classes: int, folder: Path | None = None, /, **values: Any
) -> ClassificationLoss:
    """The loss called `kind` on features of `feature_dim` numbers for `classes` classes.

    Built on the CPU from torch's global generator, which the caller seeds. Raises UsageError for an unknown
    loss or parameter, one that is missing, and a value out of range; OwnCodeError for a loss of the user's
    own that does not do what a loss must.
    """
    made = _implementation(kind, folder)
    known = _parameters(made)
    listed = ", ".join(known) or "none"
    if unknown := [name for name in values if name not in known]:
        raise UsageError(f"{kind} has no parameter {', '.join(unknown)}; it has {listed}")
    required = [name for name, value in known.items() if value.default is value.empty]
    if missing := [name for name in required if name not in values]:
        raise UsageError(f"{kind} needs {', '.join(missing)}; its parameters are {listed}")
    if kind in LOSSES:
        return made(feature_dim, classes, **values)
    return try_loss(kind, lambda: made(feature_dim, classes, **values))


def _implementation(kind: str, folder: Path | None) -> type[ClassificationLoss]:
    made = load(find("losses", kind, folder))
    if not (isinstance(made, type) and issubclass(made, ClassificationLoss)):
        raise OwnCodeError(
            f"{kind}: expected a class derived from repro.losses.ClassificationLoss, got {made!r}"
        )
    return made


def _parameters(made: type[ClassificationLoss]) -> dict[str, inspect.Parameter]:
    # The first two are always feature_dim and classes.
    return dict(list(inspect.signature(made).parameters.items())[2:])


__all__ = ["LOSSES", "ClassificationLoss", "build", "parameters"]
