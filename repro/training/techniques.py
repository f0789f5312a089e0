"""What makes a run faster and leaves its recipe alone; each technique has a name and can be switched off.

Which are on by themselves is no part of a recipe and is decided where a run is started, by its device; a
record says which were used.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from repro.errors import UsageError
from repro.training.precision import Precision

TECHNIQUES = ("channels-last", "fused-sgd", "cuda-graph", "compile")
"""Their names, as options and records have them; bf16 and fp16 are the precision's."""


@dataclass(frozen=True)
class Techniques:
    """Which are on.

    channels_last: convolutions on NHWC memory, where the precision's device computes them right so.
    fused_sgd: one kernel updates all parameters, instead of torch's foreach functions. cuda_graph: a step is
    recorded once and launched whole; it needs fused_sgd, for foreach reads the lr on the host.
    compile: torch.compile fuses batch norm, ReLU and additions.
    """

    channels_last: bool = True
    fused_sgd: bool = True
    cuda_graph: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.cuda_graph and not self.fused_sgd:
            raise UsageError("cuda-graph needs fused-sgd: switch both off, or neither")

    @classmethod
    def of(cls, names: Iterable[str]) -> "Techniques":
        """Those named and no other; UsageError for a name that there is not."""
        on = {_field(name): True for name in names}
        return cls(**{**dict.fromkeys(map(_field, TECHNIQUES), False), **on})

    def names(self) -> tuple[str, ...]:
        """Those that are on."""
        return tuple(name for name in TECHNIQUES if getattr(self, _field(name)))

    def switched(self, on: Iterable[str] = (), off: Iterable[str] = ()) -> "Techniques":
        """These, but for what is named; UsageError for a name that there is not, or that is in both."""
        on, off = tuple(on), tuple(off)
        if both := set(on) & set(off):
            raise UsageError(f"{', '.join(sorted(both))}: asked for and switched off at once")
        return replace(self, **{_field(n): True for n in on}, **{_field(n): False for n in off})

    def layout(self, precision: Precision) -> Precision:
        """The precision with the memory format that these techniques leave it."""
        if self.channels_last:
            return precision
        return replace(precision, memory_format=torch.contiguous_format)


DEFAULT = Techniques()
"""What every device can do."""


def _field(name: str) -> str:
    if name not in TECHNIQUES:
        raise UsageError(f"unknown technique {name!r}; there are: {', '.join(TECHNIQUES)}")
    return name.replace("-", "_")
