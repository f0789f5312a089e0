"""Augmentation and normalisation of a batch: deterministic functions on the device.

The random numbers (which image, crop, flip and angle) are drawn by `repro.data.loader`, one epoch at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, index: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Picks images, pads them with black, crops and flips: (N, 3, H, W) uint8 → (B, 3, H, W) uint8.

    `index` (B,) int64 picks the images; `offsets` (B, 2) int64 in 0..2·padding is the crop's upper left
    corner (row, column) in the padded image; `flips` (B,) bool mirrors left and right.
    """
    # A single gather does all of it: no padded copy of the data set, no loop over images.
    height, width = images.shape[-2:]
    rows = offsets[:, :1] - padding + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    columns = offsets[:, 1:] - padding + torch.where(flips[:, None], width - 1 - across, across)
    inside = (
        ((rows >= 0) & (rows < height))[:, None, :, None]
        & ((columns >= 0) & (columns < width))[:, None, None, :]
    )  # fmt: skip
    channels = torch.arange(images.shape[1], device=images.device)
    crops = images[
        index[:, None, None, None],
        channels[None, :, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]
    return crops * inside


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotates (B, 3, H, W) float images counter-clockwise by `degrees` (B,); bilinear, black outside."""
    radians = torch.deg2rad(degrees)
    cosine, sine = torch.cos(radians), torch.sin(radians)
    zero = torch.zeros_like(cosine)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def normalise(images: Tensor, mean: Tensor, std: Tensor, memory_format: torch.memory_format) -> Tensor:
    """uint8 in 0..255 (or float already scaled to 0..1) → float32 (x − mean) / std per channel.

    `mean` and `std` are (3,) float32 in units of 0..1.
    """
    scaled = images.to(torch.float32, memory_format=memory_format)
    if not images.is_floating_point():
        scaled = scaled / 255.0
    return (scaled - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
