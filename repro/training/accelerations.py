"""Accelerations: what makes a run faster without changing its recipe, each with a name and a switch.

Which ones are on by default is not part of a recipe. It is decided by device where a run is started, and a
record lists the ones that were used.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from repro.errors import UsageError
from repro.training.precision import Precision

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
