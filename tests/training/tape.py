"""A CUDA graph's stand-in on the CPU: records the operations of a step, and does just these again.

As with a graph, no Python of the step runs when it is done again; every operation reads and writes the same
memory as when it was recorded; a number that was on the host is a constant; recording itself leaves nothing
done; and an operation that would wait for the device, or bring something from the host, ends the recording.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FORBIDDEN = (
    "_local_scalar_dense",  # .item(), float(), if tensor:
    "nonzero",  # the shape of what comes out depends on the data; so with a mask as an index
    "masked_select",
    "unique",
    "equal",
    "is_nonzero",
    "lift_fresh",  # torch.tensor(…) of numbers: a copy from pageable memory of the host
    "pin_memory",
)


class NotPermittedError(RuntimeError):
    """What CUDA says: operation not permitted when stream is capturing."""


class Tape(TorchDispatchMode):
    """Active while a step is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.written: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in FORBIDDEN:
            raise NotPermittedError(f"operation not permitted when stream is capturing: {name}")
        if name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in tree_flatten(args)[0][1:]
        ):
            raise NotPermittedError(f"operation not permitted when stream is capturing: {name} by a mask")
        if func._schema.is_mutable:
            for tensor in _tensors((args, kwargs)):
                if not any(tensor is kept for kept, _ in self.written):
                    self.written.append((tensor, tensor.detach().clone()))
        out = func(*args, **kwargs)
        # Detached: the tape must read the memory, not be part of the recorded step's own backward pass.
        self.operations.append((func, *tree_map(_alias, (args, kwargs, out))))
        return out


class TapeCapture:
    """`repro.training.cuda_graph.Capture` by tapes; `recorded` counts them, `replays` how often each was used."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replays: list[int] = []

    def warm_up(self) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        with tape:
            work()
        with torch.no_grad():
            for tensor, before in reversed(tape.written):
                tensor.copy_(before)
        number = self.recorded
        self.recorded += 1
        self.replays.append(0)

        def replay() -> None:
            self.replays[number] += 1
            with torch.no_grad():
                for func, args, kwargs, out in tape.operations:
                    _put(out, func(*args, **kwargs), _tensors((args, kwargs)))

        return replay


def _put(places: Any, values: Any, inputs: list[Tensor]) -> None:
    """Writes what came out to where it came out when it was recorded."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    for place, value in zip(tree_flatten(places)[0], tree_flatten(values)[0], strict=True):
        # What shares an input's memory, a view or the input itself, is there already.
        if isinstance(place, Tensor) and place.untyped_storage().data_ptr() not in memory:
            place.copy_(value)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _alias(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
