"""The networks, by the names that experiments/*.toml use; a builder takes image size, width and stem_pool."""

import math
from collections.abc import Callable

from repro.errors import UsageError
from repro.models.network import Network
from repro.models.resnet import ResNet, resnet18, resnet50
from repro.models.stem import STEM_POOLS
from repro.models.vgg import VGG, LSoftmaxVGG

# A VGG's stem never pools, whatever `stem_pool` says.
NETWORKS: dict[str, Callable[[int, float, str], Network]] = {
    "vgg16": lambda image_size, width, _: VGG("vgg16", image_size, width),
    "vgg13": lambda image_size, width, _: VGG("vgg13", image_size, width),
    "vgg16-4096": lambda image_size, width, _: VGG("vgg16", image_size, width, head=4096),
    "vgg-lsoftmax": lambda image_size, width, _: LSoftmaxVGG(image_size, width),
    "resnet18": resnet18,
    "resnet50": resnet50,
}


def build(name: str, image_size: int, width: float = 1.0, stem_pool: str = "auto") -> Network:
    """The network called `name`, a module from (B, 3, S, S) images to (B, `feature_dim`) pooled features.

    `width` multiplies every number of channels (rounded to a multiple of 4, at least 4). `stem_pool` is a
    ResNet's: `auto` puts a 3×3/2 max-pool after the stem from 64 pixels on, `never` at no size, `always` at
    every size. Built on the CPU from torch's global generator, which the caller seeds. UsageError for a
    name, size, width or stem_pool that there is not.
    """
    if name not in NETWORKS:
        raise UsageError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}")
    number = isinstance(width, int | float) and not isinstance(width, bool) and math.isfinite(width)
    if not number or width <= 0:
        raise UsageError(f"width: expected a finite number above 0, got {width!r}")
    if stem_pool not in STEM_POOLS:
        raise UsageError(f"stem_pool: expected one of {', '.join(STEM_POOLS)}, got {stem_pool!r}")
    return NETWORKS[name](image_size, width, stem_pool)


__all__ = ["NETWORKS", "STEM_POOLS", "build", "Network", "VGG", "LSoftmaxVGG", "ResNet"]
