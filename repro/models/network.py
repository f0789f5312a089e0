"""What every network is: images in, one pooled feature per image out; the classifier belongs to the loss."""

import math

import torch
from torch import Tensor, nn

from repro.errors import UsageError


class Network(nn.Module):
    """A backbone without its classifier: (B, 3, S, S) float → (B, feature_dim).

    Under autocast the feature is float32 where a global average gives it, and autocast's dtype where a Linear
    does. A subclass defines `features` and calls `initialise` once its layers stand.
    """

    def __init__(self, image_size: int, feature_dim: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.feature_dim = feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """The pooled features (B, feature_dim) of images (B, 3, S, S); ValueError for another shape."""
        expected = (3, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[1:] != expected or not images.is_floating_point():
            raise ValueError(
                f"images: expected floating point of shape (batch, {', '.join(map(str, expected))}), "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """The pooled features, shapes being right."""
        raise NotImplementedError


def global_average(maps: Tensor) -> Tensor:
    """The mean over space, (B, C) from (B, C, H, W).

    Summed and returned in float32 where the maps are half precision: the loss is computed in float32, and
    rounding its input once more would cost accuracy and save nothing.
    """
    return maps.mean(dim=(2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


def initialise(network: nn.Module) -> None:
    """He initialisation: convolutions N(0, 2 / fan_out), batch norm 1 and 0; linear layers keep torch's own.

    He et al., *Delving deep into rectifiers*, 2015, Eq. 14 (fan_out), as in torchvision's VGG and ResNet.
    Drawn from torch's global CPU generator in the order of `network.modules()`.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a multiple of 4, halves up, and at least 4."""
    return max(4, 4 * math.floor(channels * width / 4 + 0.5))


def check_image_size(network: str, image_size: int, multiple: int) -> None:
    """Raise UsageError unless the network can halve an image of this size as often as it does."""
    if (
        isinstance(image_size, bool)
        or not isinstance(image_size, int)
        or image_size < 1
        or image_size % multiple
    ):
        raise UsageError(
            f"image_size: {network} takes a multiple of {multiple} "
            f"({multiple}, {2 * multiple}, {3 * multiple}, …), got {image_size!r}"
        )
