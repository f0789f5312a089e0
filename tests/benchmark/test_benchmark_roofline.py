"""The work that a roofline counts, against numbers worked out by hand."""

import pytest
from torch import nn

from repro import models
from repro.benchmark.roofline import Kernel, Rates, count_kernels, roofline_seconds


@pytest.mark.parametrize(
    ("network", "size", "gflop"),
    [
        ("vgg16", 32, 1.88),
        ("resnet18", 32, 3.33),
        ("resnet50", 32, 7.79),
        ("vgg16", 64, 7.50),
        ("resnet18", 64, 13.3),
        ("resnet50", 64, 31.1),
    ],
)
def test_the_flop_of_an_image_are_those_of_the_networks(network, size, gflop):
    """Three times the forward pass, less the gradient of the first layer's input; no max-pool at 64."""
    kernels = count_kernels(models.build(network, size, stem_pool="never"), 8, size, "bf16")
    assert sum(kernel.flop for kernel in kernels) / 8 / 1e9 == pytest.approx(gflop, rel=0.003)


def test_every_byte_and_flop_of_a_small_network():
    """conv 3→4 and 4→4, 3×3, each with BN; then a linear layer; on 2 images of 8 × 8, in float32."""
    layers = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    layers += [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 5)]
    network = nn.Sequential(*layers)
    kernels = count_kernels(network, 2, 8, "fp32")
    first, second, linear = 2 * 2 * 64 * 4 * 27, 2 * 2 * 64 * 4 * 36, 2 * 2 * 256 * 5
    assert sum(kernel.flop for kernel in kernels) == 2 * first + 3 * second + 3 * linear
    maps, images = 2 * 4 * 64, 2 * 3 * 64
    weights = sum(parameter.numel() for parameter in network.parameters())
    elements = {
        "convolution": 2 * (images + 108 + maps) + 3 * (maps + 144 + maps),
        "linear": 3 * (2 * 256 + 256 * 5 + 2 * 5),
        "batch norm": 2 * (3 + 5) * maps,
        "SGD": 5 * weights,
    }
    for kind, count in elements.items():
        assert sum(k.bytes for k in kernels if k.name.startswith(kind)) == 4 * count, kind


def test_half_precision_moves_half_the_maps_and_makes_a_copy_of_the_weights():
    network = models.build("vgg16", 32, width=0.0625)
    whole, half = (count_kernels(network, 4, 32, name) for name in ("fp32", "bf16"))
    weights = sum(parameter.numel() for parameter in network.parameters())
    of_maps = [
        sum(k.bytes for k in kernels if k.name not in ("SGD", half[-1].name)) for kernels in (whole, half)
    ]
    assert of_maps[0] == 2 * of_maps[1]
    assert half[-1].bytes == 6 * weights


def test_a_kernel_takes_the_longer_of_its_two_times():
    kernels = [Kernel("products", 100.0, 1.0), Kernel("copies", 1.0, 100.0)]
    assert roofline_seconds(kernels, Rates(matmul=10.0, copy=20.0)) == pytest.approx(100 / 10 + 100 / 20)
