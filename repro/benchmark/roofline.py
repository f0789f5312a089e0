"""The per-kernel roofline: the least time of a training step that runs one kernel after another.

    RK = Σ over kernels of max(FLOP / matmul rate, bytes / copy rate), with the rates measured on the device

The kernels are those of convolutions and linear layers (forward, gradient of the input, gradient of the
weight), of batch norm fused with what follows it point by point (ReLU, addition), of max-pools, and SGD's
update; their work is counted from the shapes that the network itself gives on a pass without numbers. Not
counted, for they are small: augmentation, the global average and the loss.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices of the measured product
_COPIED = {"cuda": 2**30, "cpu": 2**28}  # bytes


@dataclass(frozen=True)
class Rates:
    """Measured: `matmul` in FLOP per second at the training's precision, `copy` in bytes read plus bytes
    written per second."""

    matmul: float
    copy: float


def measure_rates(device: torch.device, precision: str) -> Rates:
    """The best of five of each: a square product of 8192 (CPU: 2048), a copy of 1 GiB (CPU: 256 MiB)."""
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=_DTYPES[precision]) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.ones(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Rates(
        matmul=2 * side**3 / best_seconds(device, lambda: torch.mm(left, right, out=product)),
        copy=2 * source.numel() / best_seconds(device, lambda: target.copy_(source)),
    )


def best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of one call, the best of five after two that warm up; on a GPU of ten in a row."""
    calls = 10 if device.type == "cuda" else 1
    for _ in range(2):
        work()
    seconds = []
    for _ in range(5):
        wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        seconds.append((time.perf_counter() - began) / calls)
    return min(seconds)


def wait(device: torch.device) -> None:
    """Until what was launched is also done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Kernel:
    """Work of one kernel for a whole batch."""

    name: str
    flop: float
    bytes: float


def count_kernels(network: nn.Module, batch: int, image_size: int, precision: str) -> tuple[Kernel, ...]:
    """The kernels of forward and backward of `network`, whose weights are left alone."""
    width = _DTYPES[precision].itemsize
    shapes = _Shapes(width)
    hollow = copy.deepcopy(network).to("meta").train()
    with torch.no_grad(), shapes:
        hollow(torch.empty(batch, 3, image_size, image_size, device="meta"))
    weights = sum(parameter.numel() for parameter in network.parameters())
    # Weight, gradient and momentum read, weight and momentum written, in float32.
    kernels = [*shapes.kernels, Kernel("SGD", 0, 20 * weights)]
    if width < 4:
        kernels.append(Kernel("weights in half precision", 0, (4 + width) * weights))
    return tuple(kernels)


def roofline_seconds(kernels: Sequence[Kernel], rates: Rates) -> float:
    """RK of a step."""
    return sum(max(kernel.flop / rates.matmul, kernel.bytes / rates.copy) for kernel in kernels)


class _Shapes(TorchDispatchMode):
    """Sees each operation of a forward pass and lists the kernels that it and its gradient need."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self._width = width

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("convolution", "addmm", "mm"):
            inputs, weight = args[1:3] if name == "addmm" else args[:2]
            self._product("convolution" if name == "convolution" else "linear", inputs, weight, out)
        elif "batch_norm" in name:
            # Statistics read the maps, the normalisation reads and writes; backward likewise with gradients.
            self._note("batch norm forward", 3 * args[0].numel())
            self._note("batch norm backward", 5 * args[0].numel())
        elif name.startswith("max_pool2d"):
            moved = args[0].numel() + (out[0] if isinstance(out, tuple) else out).numel()
            self._note("max-pool forward", moved)
            self._note("max-pool backward", moved)
        elif name in ("add", "add_") and isinstance(args[1], Tensor) and args[0].ndim == 4:
            # Forward is fused with batch norm and reads the shortcut; backward adds two gradients to one.
            self._note("addition forward", args[0].numel())
            self._note("addition backward", 3 * args[0].numel())
        return out

    def _product(self, kind: str, inputs: Tensor, weight: Tensor, out: Tensor) -> None:
        # A linear layer's weight comes transposed, (inputs, outputs); a convolution's outputs come first.
        fan_in = weight.numel() // weight.shape[0 if kind == "convolution" else 1]
        flop = 2 * out.numel() * fan_in
        moved = inputs.numel() + weight.numel() + out.numel()
        images = not self.kernels  # the first layer's input has no gradient
        for part in ("forward", *([] if images else ["gradient of input"]), "gradient of weight"):
            self._note(f"{kind} {part}", moved, flop)

    def _note(self, name: str, elements: float, flop: float = 0) -> None:
        self.kernels.append(Kernel(name, flop, elements * self._width))
