"""Precision by device, with the hardware's answers handed in."""

import pytest
import torch

from repro import models
from repro.errors import DeviceError
from repro.training.precision import choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "name", "memory_format"),
    [
        ((9, 0), "bf16", torch.channels_last),
        ((8, 0), "bf16", torch.channels_last),
        ((7, 5), "fp16", torch.channels_last),
        ((7, 0), "fp16", torch.channels_last),
        ((6, 1), "fp32", torch.contiguous_format),
    ],
)
def test_a_gpu_gets_what_its_capability_carries(capability, name, memory_format):
    precision = choose_precision(CUDA, capability=capability)
    assert (precision.name, precision.memory_format) == (name, memory_format)


@pytest.mark.parametrize(("has_bf16", "name"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_gets_bf16_only_where_it_has_it(has_bf16, name):
    assert choose_precision(CPU, cpu_has_bf16=lambda: has_bf16).name == name


def test_a_forced_precision_wins():
    assert choose_precision(CUDA, "fp32", capability=(9, 0)).name == "fp32"
    assert choose_precision(CPU, "bf16", cpu_has_bf16=lambda: False).name == "bf16"


@pytest.mark.parametrize(
    ("device", "forced", "says"),
    [
        (CUDA, "bf16", "bf16 needs compute capability 8.0, this GPU has 6.1; use --precision fp32"),
        (CPU, "fp16", "fp16 is for GPUs"),
        (CPU, "fp8", "unknown precision 'fp8'; known: bf16, fp16, fp32"),
    ],
)
def test_a_precision_the_device_cannot_run_is_refused(device, forced, says):
    with pytest.raises(DeviceError, match=says):
        choose_precision(device, forced, capability=(6, 1), cpu_has_bf16=lambda: False)


def test_only_fp16_scales_its_gradients():
    assert choose_precision(CUDA, capability=(9, 0)).scaler() is None
    assert choose_precision(CPU).scaler() is None


@pytest.mark.parametrize(
    ("network", "width", "memory_format"),
    [
        ("resnet18", 0.0625, torch.contiguous_format),
        ("resnet18", 0.25, torch.channels_last),
        ("resnet50", 0.25, torch.channels_last),
        ("vgg16", 0.0625, torch.channels_last),
    ],
)
def test_a_network_too_narrow_for_channels_last_on_a_cpu_trains_in_nchw(network, width, memory_format):
    """oneDNN's strided 1×1 convolution writes out of bounds there."""
    precision = choose_precision(CPU, "fp32").for_network(models.build(network, 32, width=width))
    assert precision.memory_format == memory_format
