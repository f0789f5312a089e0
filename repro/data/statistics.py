"""Mean and standard deviation of images, channel by channel, exact whatever the order and the machine."""

import math

import numpy as np

from repro.data.prepared import Images

CHUNK = 1024
"""Images looked at together: bounds the memory, not the result."""

Channels = tuple[float, float, float]


class ChannelSums:
    """Integer sums over the pixels of images (N, 3, H, W) uint8 that come in pieces."""

    def __init__(self) -> None:
        self._sums, self._squares = [0, 0, 0], [0, 0, 0]
        self._pixels = 0

    def add(self, images: Images) -> None:
        """Counts `images` in."""
        for start in range(0, len(images), CHUNK):
            chunk = np.asarray(images[start : start + CHUNK])
            for channel in range(3):
                counts = np.bincount(chunk[:, channel].ravel(), minlength=256).tolist()
                self._sums[channel] += sum(value * count for value, count in enumerate(counts))
                self._squares[channel] += sum(value * value * count for value, count in enumerate(counts))
        self._pixels += images.size // 3

    def mean_and_std(self) -> tuple[Channels, Channels]:
        """Of all that was added, at least one image, in 0..1."""
        n = self._pixels
        mean = tuple(total / (255 * n) for total in self._sums)
        std = tuple(
            math.sqrt(n * square - total * total) / (255 * n)
            for total, square in zip(self._sums, self._squares, strict=True)
        )
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def statistics(images: Images) -> tuple[Channels, Channels]:
    """Mean and standard deviation of images (N, 3, H, W) uint8, channel by channel, in 0..1."""
    sums = ChannelSums()
    sums.add(images)
    return sums.mean_and_std()
