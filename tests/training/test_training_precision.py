"""Precision by device, with the hardware's answers handed in."""

from dataclasses import replace

import pytest
import torch

from repro import models
from repro.errors import DeviceError
from repro.training.precision import choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "forced", "hardware", "name", "memory_format"),
    [
        (CUDA, None, {"capability": (9, 0)}, "bf16", torch.channels_last),
        (CUDA, None, {"capability": (8, 0)}, "bf16", torch.channels_last),
        (CUDA, None, {"capability": (7, 5)}, "fp16", torch.channels_last),
        (CUDA, None, {"capability": (7, 0)}, "fp16", torch.channels_last),
        (CUDA, None, {"capability": (6, 1)}, "fp32", torch.contiguous_format),
        (CPU, None, {"cpu_has_bf16": lambda: True}, "bf16", torch.channels_last),
        (CPU, None, {"cpu_has_bf16": lambda: False}, "fp32", torch.channels_last),
        (CUDA, "fp32", {"capability": (9, 0)}, "fp32", torch.channels_last),
        (CPU, "bf16", {"cpu_has_bf16": lambda: False}, "bf16", torch.channels_last),
    ],
)
def test_a_device_gets_what_it_computes_fast_or_what_is_forced(device, forced, hardware, name, memory_format):
    precision = choose_precision(device, forced, **hardware)
    assert (precision.name, precision.memory_format) == (name, memory_format)
    assert (replace(precision, device=CPU).scaler() is None) == (name != "fp16")


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
