"""Facts of this package's networks, for planning without torch; a test compares them with what is built."""

from collections.abc import Mapping
from dataclasses import dataclass, field

POOLED_FROM = 64  # pixels: from here on a ResNet's stem ends in a max-pool, unless its recipe says otherwise


@dataclass(frozen=True)
class NetworkFacts:
    """One network at full width.

    `images_per_second` are those of training if every kernel took only what its arithmetic or its memory
    traffic must take (see docs on performance), by the model in the device's name and the image size in px.
    """

    builder: str  # module:function; it takes image_size, width and, where it has one, stem_pool
    parameters: float  # on images of 64 px; they go with the square of the width
    kept_bytes: float  # in float32, by the forward pass for the backward one, per image of 32 px
    images_per_second: Mapping[tuple[str, int], float] = field(default_factory=dict)


# The RTX 4090's are not measured: from the data sheet, 165 TFLOP/s (bf16, dense, summed in float32) and
# 0.9 × 1,008 GB/s.
NETWORK_FACTS: Mapping[str, NetworkFacts] = {
    "vgg16": NetworkFacts(
        "repro.models.vgg:vgg16", 14.7e6, 2.60e6,
        {
            ("H200", 32): 225e3, ("H100", 32): 196e3, ("A100", 32): 96e3,
            ("RTX 4090", 32): 49e3, ("RTX 3090", 32): 28e3, ("GTX 1080 Ti", 32): 5.2e3,
            ("H200", 64): 66e3, ("H100", 64): 57e3, ("A100", 64): 28e3,
            ("RTX 4090", 64): 14e3, ("RTX 3090", 64): 7.6e3, ("GTX 1080 Ti", 64): 1.3e3,
        },
    ),
    "vgg13": NetworkFacts("repro.models.vgg:vgg13", 9.4e6, 2.38e6),
    "vgg16-4096": NetworkFacts("repro.models.vgg:vgg16_4096", 33.6e6, 2.68e6),
    "vgg-lsoftmax": NetworkFacts("repro.models.vgg:LSoftmaxVGG", 18.7e6, 9.97e6),
    "resnet18": NetworkFacts(
        "repro.models.resnet:resnet18", 11.2e6, 4.70e6,
        {
            ("H200", 32): 127e3, ("H100", 32): 108e3, ("A100", 32): 54e3,
            ("RTX 4090", 32): 27e3, ("RTX 3090", 32): 16e3, ("GTX 1080 Ti", 32): 2.9e3,
        },
    ),
    "resnet50": NetworkFacts(
        "repro.models.resnet:resnet50", 23.5e6, 25.5e6,
        {
            ("H200", 32): 32e3, ("H100", 32): 24e3, ("A100", 32): 14e3,
            ("RTX 4090", 32): 6.9e3, ("RTX 3090", 32): 5.1e3, ("GTX 1080 Ti", 32): 1.0e3,
        },
    ),
}  # fmt: skip


def has_stem_pool(network: str, image_size: int, stem_pool: str) -> bool:
    """Whether a ResNet's stem halves the map; False for any other network."""
    pooled = stem_pool == "always" or (stem_pool == "auto" and image_size >= POOLED_FROM)
    return network.startswith("resnet") and pooled
