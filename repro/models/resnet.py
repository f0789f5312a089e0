"""ResNet-18 and ResNet-50: He et al., *Deep residual learning for image recognition*, 2016.

With a stem for small images, without the classifier. ResNet-50 is v1.5: the stride sits in the 3×3
convolution of a bottleneck, not in its first 1×1, as in torchvision.
"""

from torch import Tensor, nn

from repro.models.network import Network, check_image_size, global_average, initialise, scaled

POOLED_FROM = 64  # pixels: from here on the stem of "auto" ends in a max-pool


class Stem(nn.Module):
    """conv 3×3 stride 1, BN, ReLU, and at 64 pixels a max-pool 3×3 stride 2: (B, 3, S, S) → (B, C, S', S').

    ImageNet's stem (conv 7×7 stride 2 and a max-pool) would leave a 32-pixel image 8 × 8 before the first
    block. With the 3×3 stem S' = S; with the max-pool S' = S/2, so the blocks see 32 × 32 at either size.
    """

    def __init__(self, channels: int, image_size: int, pool: str) -> None:
        super().__init__()
        pooled = pool == "always" or (pool == "auto" and image_size >= POOLED_FROM)
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if pooled else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """The maps that the first block reads."""
        return self.pool(self.relu(self.norm(self.conv(images))))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv3×3(relu(bn(conv3×3(x)))))), both convolutions with C channels."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = _shortcut(inputs, channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, C, H/stride, W/stride)."""
        return self.relu(self.shortcut(x) + self.residual(x))


class Bottleneck(nn.Module):
    """relu(shortcut(x) + 1×1 up to 4C (3×3 at C, with the stride (1×1 down to C))), each with BN."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, 4C, H/stride, W/stride)."""
        return self.relu(self.shortcut(x) + self.residual(x))


class ResNet(Network):
    """Four stages of 64, 128, 256, 512 channels times `width`, all but the first halving the map; their mean.

    `image_size` a multiple of 8 (three halvings), `stem_pool` one of `STEM_POOLS`.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        image_size: int,
        width: float,
        stem_pool: str,
    ) -> None:
        check_image_size("a ResNet", image_size, multiple=8)
        channels = [scaled(count, width) for count in (64, 128, 256, 512)]
        super().__init__(image_size, feature_dim=channels[-1] * block.expansion)
        self.stem = Stem(channels[0], image_size, stem_pool)
        blocks: list[nn.Module] = []
        inputs = channels[0]
        for stage, (count, depth) in enumerate(zip(channels, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, count, stride))
                inputs = count * block.expansion
        self.blocks = nn.Sequential(*blocks)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """The global average after the last ReLU, (B, feature_dim), no entry negative."""
        return global_average(self.blocks(self.stem(images)))


def resnet18(image_size: int, width: float = 1.0, stem_pool: str = "auto") -> ResNet:
    """ResNet-18: 11,168,832 parameters at width 1, feature_dim 512."""
    return ResNet(BasicBlock, (2, 2, 2, 2), image_size, width, stem_pool)


def resnet50(image_size: int, width: float = 1.0, stem_pool: str = "auto") -> ResNet:
    """ResNet-50 v1.5: 23,500,352 parameters at width 1, feature_dim 2048."""
    return ResNet(Bottleneck, (3, 4, 6, 3), image_size, width, stem_pool)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity, or a 1×1 convolution and BN where the shape changes (option B of the paper)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False),
        nn.BatchNorm2d(outputs),
    )
