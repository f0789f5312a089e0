"""A ResNet's first layers, for images far smaller than ImageNet's."""

from torch import Tensor, nn

STEM_POOLS = ("auto", "never", "always")
"""`auto`: a max-pool from 64 pixels on; `never`: none at any size; `always`: one at every size."""

POOLED_FROM = 64


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
