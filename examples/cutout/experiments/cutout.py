"""Cutout: DeVries and Taylor 2017, arXiv 1708.04552."""

import torch
from torch import Tensor


class Cutout:
    """Fills a square of `side` pixels with 0; its centre is uniform over the image, which may cut it."""

    def __init__(self, image_size: int, side: int = 8) -> None:
        self.image_size, self.side = image_size, side

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.image_size, (count, 2), generator=generator)

    def apply(self, images: Tensor, centres: Tensor) -> Tensor:
        pixels = torch.arange(self.image_size, device=images.device)
        first = centres[..., None] - self.side // 2  # of the hole, row and column: (B, 2, 1)
        inside = (pixels >= first) & (pixels < first + self.side)  # (B, 2, S)
        hole = inside[:, 0, :, None] & inside[:, 1, None, :]  # (B, S, S)
        return images.masked_fill(hole[:, None], 0.0)
