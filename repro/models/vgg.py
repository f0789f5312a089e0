"""VGG: Simonyan and Zisserman, *Very deep convolutional networks for large-scale image recognition*, 2014.

Each convolution 3×3 with BN; without the classifier. Which VGG the paper ran it does not say: `vgg16` is the
default here, and the others are what public sources of the same figures or of the cited losses use.
"""

from collections.abc import Callable

from torch import Tensor, nn

from repro.models.network import Network, check_image_size, global_average, initialise, scaled

STAGES = {
    "vgg13": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg-lsoftmax": ((96,) * 5, (192,) * 4, (384,) * 4),
}
"""The channels of each convolution; every stage ends in a 2×2 max-pool."""


class VGG(Network):
    """conv 3×3, BN, ReLU, thirteen or ten times, five max-pools, global average: (B, 512·width).

    The last map is 1 × 1 at 32 pixels and 2 × 2 at 64. `image_size` a multiple of 32 (five halvings).

    `head` > 0 adds the original's two hidden layers, Linear(→ head·width), ReLU, dropout .5, twice, after the
    global average; the feature is then the second one's output. Dropout draws from its device's generator.
    """

    def __init__(self, stages: str, image_size: int, width: float, head: int = 0) -> None:
        check_image_size(stages, image_size, multiple=32)
        pooled, hidden = scaled(512, width), scaled(head, width) if head else 0
        super().__init__(image_size, feature_dim=hidden or pooled)
        self.stages = _convolutions(stages, width, activation=lambda: nn.ReLU(inplace=True))
        self.head = nn.Sequential()
        for inputs in (pooled, hidden) if hidden else ():
            self.head.extend([nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5)])
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """The global average after the last ReLU, through the head if there is one; no entry negative."""
        return self.head(global_average(self.stages(images)))


class LSoftmaxVGG(Network):
    """The VGG-like network of L-Softmax for CIFAR-100, as public sources of the cited losses have it.

    conv 96; 4 × conv 96, pool; 4 × conv 192, pool; 4 × conv 384, pool, each conv 3×3 with BN and PReLU (one
    slope a layer, initially .25: torch's default); flattened; Linear to 512 without bias; BN without affine.
    Liu et al., *Large-margin softmax loss for convolutional neural networks*, 2016, Table 1. The feature is
    signed. `image_size` a multiple of 8 (three halvings); at 64 pixels the Linear has four times the inputs.
    """

    def __init__(self, image_size: int, width: float) -> None:
        check_image_size("vgg-lsoftmax", image_size, multiple=8)
        super().__init__(image_size, feature_dim=scaled(512, width))
        self.stages = _convolutions("vgg-lsoftmax", width, activation=nn.PReLU)
        self.linear = nn.Linear(scaled(384, width) * (image_size // 8) ** 2, self.feature_dim, bias=False)
        self.norm = nn.BatchNorm1d(self.feature_dim, affine=False)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """The normalised output of the Linear layer, (B, feature_dim), signed."""
        return self.norm(self.linear(self.stages(images).flatten(1)))


def vgg16(image_size: int, width: float = 1.0) -> VGG:
    """VGG-16 with BN: 14,718,912 parameters at width 1, feature_dim 512."""
    return VGG("vgg16", image_size, width)


def vgg13(image_size: int, width: float = 1.0) -> VGG:
    """VGG-13 with BN, feature_dim 512."""
    return VGG("vgg13", image_size, width)


def vgg16_4096(image_size: int, width: float = 1.0) -> VGG:
    """VGG-16 with the original's two hidden layers, feature_dim 4096."""
    return VGG("vgg16", image_size, width, head=4096)


def _convolutions(stages: str, width: float, activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for stage in STAGES[stages]:
        for count in stage:
            outputs = scaled(count, width)
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                activation(),
            ]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
