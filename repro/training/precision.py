"""Precision by device (bf16, fp16 or fp32), and accelerations, which leave the recipe alone.

Master weights, batch norm statistics and the loss head stay float32 in all three; only the network's
forward and backward pass run under autocast. Which accelerations are on by default is decided by device where
a run is started, and a record lists the ones that were used.
"""

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from repro.errors import DeviceError, UsageError

PRECISIONS = ("bf16", "fp16", "fp32")

WIDEST_VECTOR = 16  # float32 numbers in the widest vector register of a CPU (AVX-512)


@dataclass(frozen=True)
class Precision:
    """The autocast type on a device, and the memory format that suits it."""

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
        """This precision with a memory format in which the device computes `network` correctly."""
        # On a CPU in channels_last, oneDNN's gradient of a strided 1×1 convolution writes out of bounds if it
        # has fewer input channels than a vector register holds (github.com/uxlfoundation/oneDNN/issues/6035):
        # wrong numbers or a crash. Only very narrow networks have such a convolution; they train in NCHW.
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
        """A gradient scaler for fp16, whose range is small; None for the others."""
        return torch.amp.GradScaler(self.device.type) if self.name == "fp16" else None


def choose_precision(
    device: torch.device,
    forced: str | None = None,
    capability: tuple[int, int] | None = None,
    cpu_has_bf16: Callable[[], bool] | None = None,
) -> Precision:
    """The precision for `device`: `forced`, or chosen by its compute capability.

    CUDA: bf16 from 8.0, fp16 on 7.x, fp32 in NCHW below (Pascal: no bf16, no useful fp16). CPU: bf16 if the
    processor has instructions for it, else fp32. `capability` and `cpu_has_bf16` override what the hardware
    reports. Raises DeviceError if the device does not support the forced precision.
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
        raise DeviceError(f"unknown precision {forced!r}; known: {', '.join(PRECISIONS)}")
    return Precision(forced or name, device, memory_format)


def processor_has_bf16() -> bool:
    """Whether the processor has bf16 matrix instructions; where bf16 is emulated, float32 is faster."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = line.split()
                return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


# As options and records spell them; bf16 and fp16 belong to the precision.
ACCELERATIONS = ("channels-last", "fused-sgd", "cuda-graph", "compile")


@dataclass(frozen=True)
class Accelerations:
    """Which accelerations are on; UsageError for combinations that do not work."""

    channels_last: bool = True  # convolutions on NHWC memory where the device computes them correctly
    fused_sgd: bool = True  # one kernel updates all parameters, instead of torch's foreach functions
    cuda_graph: bool = False  # a step is captured once and launched as a whole
    compile: bool = False  # torch.compile fuses batch norm, ReLU and additions

    def __post_init__(self) -> None:
        if self.cuda_graph and not self.fused_sgd:
            # torch's foreach functions read the lr on the host, so a graph would contain it as a constant.
            raise UsageError("cuda-graph needs fused-sgd: disable both or neither")

    @classmethod
    def of(cls, names: Iterable[str]) -> "Accelerations":
        """Exactly the named ones; UsageError for an unknown name."""
        on = {_field(name): True for name in names}
        return cls(**{**dict.fromkeys(map(_field, ACCELERATIONS), False), **on})

    def names(self) -> tuple[str, ...]:
        """Those that are on, in the order of `ACCELERATIONS`."""
        return tuple(name for name in ACCELERATIONS if getattr(self, _field(name)))

    def switched(self, on: Iterable[str] = (), off: Iterable[str] = ()) -> "Accelerations":
        """A copy with some turned on or off; UsageError for an unknown name or one that is in both."""
        on, off = tuple(on), tuple(off)
        if both := set(on) & set(off):
            raise UsageError(f"{', '.join(sorted(both))}: both enabled and disabled")
        return replace(self, **{_field(n): True for n in on}, **{_field(n): False for n in off})

    def layout(self, precision: Precision) -> Precision:
        """`precision`, in NCHW where channels-last is off."""
        if self.channels_last:
            return precision
        return replace(precision, memory_format=torch.contiguous_format)


DEFAULT = Accelerations()  # what every device supports


def _field(name: str) -> str:
    if name not in ACCELERATIONS:
        raise UsageError(f"unknown acceleration {name!r}; known: {', '.join(ACCELERATIONS)}")
    return name.replace("-", "_")
