"""The networks, by the names that experiments/*.toml use; `repro.plugins` says where each is."""

import inspect
import math
from pathlib import Path

from torch import nn

from repro.errors import OwnCodeError, UsageError
from repro.models.network import Network
from repro.plugins import NETWORKS, find, load
from repro.trial import try_network

STEM_POOLS = (
    "auto",
    "never",
    "always",
)  # where a ResNet's stem ends in a max-pool: from 64 px on, at no size, …


def build(
    name: str, image_size: int, width: float = 1.0, stem_pool: str = "auto", folder: Path | None = None
) -> nn.Module:
    """The network called `name`, a module from (B, 3, S, S) images to (B, `feature_dim`) pooled features.

    `width` multiplies every number of channels (rounded to a multiple of 4, at least 4). `stem_pool` is a
    ResNet's: `auto` puts a 3×3/2 max-pool after the stem from 64 pixels on, `never` at no size, `always` at
    every size. A network that takes neither stays as it is. Built on the CPU from torch's global generator,
    which the caller seeds. UsageError for a name, size, width or stem_pool that there is not; OwnCodeError
    for a network of the user's own, in a file relative to `folder`, that does not do what a network must.
    """
    number = isinstance(width, int | float) and not isinstance(width, bool) and math.isfinite(width)
    if not number or width <= 0:
        raise UsageError(f"width: expected a finite number above 0, got {width!r}")
    if stem_pool not in STEM_POOLS:
        raise UsageError(f"stem_pool: expected one of {', '.join(STEM_POOLS)}, got {stem_pool!r}")
    builder = load(find("networks", name, folder))
    if not callable(builder):
        raise OwnCodeError(f"{name}: expected a class or function, got {builder!r}")
    taken = inspect.signature(builder).parameters
    options = {"width": width, "stem_pool": stem_pool}
    values = {option: value for option, value in options.items() if option in taken}
    if name in NETWORKS:
        return builder(image_size, **values)
    return try_network(name, lambda: builder(image_size, **values), image_size)


__all__ = ["NETWORKS", "STEM_POOLS", "Network", "build"]
