"""The per-kernel roofline: the least time of a training step that runs one kernel after another.

    RK = Σ over kernels of max(FLOP / matmul rate, bytes / copy rate)

The kernels are those of convolutions and linear layers (forward, gradient of the input, gradient of the
weight), of batch norm fused with what follows it point by point (ReLU, addition), of max-pools, and SGD's
update; their work is counted from the shapes that the network itself gives on a pass without numbers. Not
counted, for they are small: augmentation, the global average and the loss.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repro.benchmark.rates import Rates

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Kernel:
    """Work of one kernel for a whole batch."""

    name: str
    flop: float
    bytes: float


def count_kernels(network: nn.Module, batch: int, image_size: int, precision: str) -> tuple[Kernel, ...]:
    """The kernels of forward and backward of `network`, whose weights are left alone."""
    width = BYTES[precision]
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
    """Sees each operation of a forward pass and writes down the kernels that it and its gradient need."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self._width = width
        self._first = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("convolution", "addmm", "mm"):
            self._product(name, args, out)
        elif "batch_norm" in name:
            self._batch_norm(args[0])
        elif name.startswith("max_pool2d"):
            self._pool(args[0], out[0] if isinstance(out, tuple) else out)
        elif name in ("add", "add_") and isinstance(args[1], Tensor) and args[0].ndim == 4:
            # Forward is fused with batch norm and reads the shortcut; backward adds two gradients to one.
            self._note("addition forward", 0, args[0].numel())
            self._note("addition backward", 0, 3 * args[0].numel())
        return out

    def _product(self, name: str, args: tuple[Tensor, ...], out: Tensor) -> None:
        inputs, weight = (args[1], args[2]) if name == "addmm" else (args[0], args[1])
        # A linear layer's weight comes transposed, (inputs, outputs); a convolution's outputs come first.
        fan_in = weight.numel() // (weight.shape[0] if name == "convolution" else weight.shape[1])
        flop = 2 * out.numel() * fan_in
        moved = inputs.numel() + weight.numel() + out.numel()
        kind = "convolution" if name == "convolution" else "linear"
        self._note(f"{kind} forward", flop, moved)
        if not self._first:  # images have no gradient
            self._note(f"{kind} gradient of input", flop, moved)
        self._first = False
        self._note(f"{kind} gradient of weight", flop, moved)

    def _batch_norm(self, maps: Tensor) -> None:
        """Statistics read the maps, the normalisation reads and writes; backward likewise with gradients."""
        self._note("batch norm forward", 0, 3 * maps.numel())
        self._note("batch norm backward", 0, 5 * maps.numel())

    def _pool(self, maps: Tensor, out: Tensor) -> None:
        self._note("max-pool forward", 0, maps.numel() + out.numel())
        self._note("max-pool backward", 0, maps.numel() + out.numel())

    def _note(self, name: str, flop: float, elements: float) -> None:
        self.kernels.append(Kernel(name, flop, elements * self._width))
