"""Which arithmetic a device is given: bf16, fp16 or fp32.

Master weights, batch norm statistics and the loss head stay float32 in all of them; only the network's
forward and backward run under autocast.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from repro.errors import DeviceError

PRECISIONS = ("bf16", "fp16", "fp32")

WIDEST_VECTOR = 16
"""float32 numbers in the widest vector of a CPU (AVX-512)."""


@dataclass(frozen=True)
class Precision:
    """A device's arithmetic: the autocast type, and the memory format that suits it."""

    name: str
    device: torch.device
    memory_format: torch.memory_format

    def autocast(self) -> AbstractContextManager[object]:
        """The context for the network's forward pass."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def for_network(self, network: nn.Module) -> "Precision":
        """This precision with a memory format that the device computes `network` correctly in.

        oneDNN's gradient of a strided 1×1 convolution writes out of bounds in channels_last where it has
        fewer input channels than the CPU's vectors (github.com/uxlfoundation/oneDNN/issues/6035): wrong
        numbers or a crash. Only very narrow networks have one; they train in NCHW.
        """
        narrow = any(
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and module.stride != (1, 1)
            and module.in_channels < WIDEST_VECTOR
            for module in network.modules()
        )
        if self.device.type == "cpu" and narrow:
            return replace(self, memory_format=torch.contiguous_format)
        return self

    def scaler(self) -> torch.amp.GradScaler | None:
        """fp16 needs its gradients scaled; the others do not."""
        return torch.amp.GradScaler(self.device.type) if self.name == "fp16" else None


def choose_precision(
    device: torch.device,
    forced: str | None = None,
    capability: tuple[int, int] | None = None,
    cpu_has_bf16: Callable[[], bool] | None = None,
) -> Precision:
    """The precision of `device`: by its compute capability, or `forced`.

    CUDA: bf16 from 8.0, fp16 on 7.x, fp32 below (Pascal: no bf16, no useful fp16), which also keeps NCHW
    there. CPU: bf16 where the processor multiplies it, else fp32. `capability` and `cpu_has_bf16` replace
    what the hardware says. Raises DeviceError if the forced one cannot run.
    """
    if device.type == "cuda":
        capability = capability or torch.cuda.get_device_capability(device)
        name = "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
        memory_format = torch.contiguous_format if capability < (7, 0) else torch.channels_last
        if forced == "bf16" and capability < (8, 0):
            raise DeviceError(
                f"bf16 needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}; "
                f"use --precision {name}"
            )
    else:
        has_bf16 = (cpu_has_bf16 or processor_has_bf16)()
        name = "bf16" if has_bf16 else "fp32"
        memory_format = torch.channels_last
        if forced == "fp16":
            raise DeviceError("fp16 is for GPUs; on a CPU use --precision fp32 or bf16")
    if forced is not None and forced not in PRECISIONS:
        raise DeviceError(f"unknown precision {forced!r}; there are: {', '.join(PRECISIONS)}")
    return Precision(forced or name, device, memory_format)


def processor_has_bf16() -> bool:
    """Whether the processor has bf16 matrix instructions; emulated bf16 is slower than float32."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = line.split()
                return "avx512_bf16" in flags or "amx_bf16" in flags
    return False
