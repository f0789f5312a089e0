"""The losses, by the names that experiments/*.toml use; where each is written says `repro.plugins`.

Adding one: a file with a `ClassificationLoss`, a line in `repro.plugins.LOSSES`, its parameters in
`repro.config`. One of the user's own needs none of this: a file of theirs and its name in their TOML.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from repro.config import known_keys
from repro.errors import OwnCodeError, UsageError
from repro.losses.base import ClassificationLoss
from repro.plugins import LOSSES, find, load, loss_parameters
from repro.trial import try_loss


def build(
    kind: str, feature_dim: int, classes: int, folder: Path | None = None, /, **values: Any
) -> ClassificationLoss:
    """The loss called `kind` on features of `feature_dim` numbers for `classes` classes.

    Built on the CPU from torch's global generator, which the caller seeds. `folder` is what a file of the
    user's own is relative to. Raises UsageError for an unknown loss or parameter, one that is missing, and a
    value out of range; OwnCodeError for a loss of the user's own that does not do what a loss must.
    """
    made = load(find("losses", kind, folder))
    if not (isinstance(made, type) and issubclass(made, ClassificationLoss)):
        raise OwnCodeError(
            f"{kind}: expected a class derived from repro.losses.ClassificationLoss, got {made!r}"
        )
    schema = loss_parameters(kind, folder)
    try:
        checked = schema.model_validate(known_keys(values, schema.model_fields)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{key}: " for key in first["loc"])
        raise UsageError(f"{kind}: {where}{first['msg']}, got {first['input']!r}") from None
    except ValueError as error:
        raise UsageError(f"{kind}: {error}") from None
    if kind in LOSSES:
        try:
            return made(feature_dim, classes, **checked)
        except ValueError as error:  # of the number of classes, which no schema knows
            raise UsageError(f"{kind}: {error}") from None
    return try_loss(kind, lambda: made(feature_dim, classes, **checked))


__all__ = ["LOSSES", "ClassificationLoss", "build"]
