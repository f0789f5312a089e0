"""A training step as a recording: launched whole instead of kernel by kernel, with the same outcome.

What recording could spoil is kept from it: the steps that warm it up leave weights, batch norm statistics,
momentum, the scaler, the sums and the generators as they were; the lr is a number on the device; the short
last batch has a recording of its own; and nothing is trusted unseen: the recorded step and the plain one take
the same steps from the same state, and a recording that ends elsewhere is refused.

`Capture` is the seam: CUDA's graphs in use, in tests whatever records the same calls.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from repro.training.optim import set_lr
from repro.training.step import TrainingStep
from repro.training.techniques import Techniques

WARM_UPS = 3
"""Steps of each batch size before it is recorded: libraries choose kernels, compilers compile, pools fill."""

ROUNDING = 0.05
"""How far apart, relative to what the steps change, a recorded and a plain step may end in fp32 and fp16,
where sums are rounded in an order that is not fixed: TF32 and fp16 round at 2⁻¹¹ a product, and batch norm
amplifies it about tenfold. A step on stale images, with a stale lr or without momentum is off by about 1.
bf16 rounds at 2⁻⁹, too coarse for one number to fit every network, so that there the plain step's distance
from the same step in float32 is the measure: the fast step may be twice as far from it, and never more than
MOST."""

MOST = 0.5

_CHECK_LR = (1e-3, 5e-4)
"""Small, so that the second step starts where the first one left the plain step too; two, so that an lr that
was recorded as a constant shows."""


class StepDiffersError(RuntimeError):
    """A recorded or compiled step ended elsewhere than the plain one."""


class Capture(Protocol):
    """Records what a callable does on the device."""

    def warming(self) -> AbstractContextManager[object]:
        """Where the callable may run before it is recorded."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Runs the callable once on the host without effect; what comes back does its work on the device."""
        ...


class CudaCapture:
    """CUDA graphs of one run: recorded on a stream of their own, all from one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warming(self) -> Iterator[None]:
        """On the side stream, after everything that was launched before."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A graph of `work`; it is launched on the stream that is then the current one."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        return graph.replay


class Snapshot:
    """Every value that a step changes, to be put back in place."""

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        if step.scaler is not None:
            # Its tensors are made by its first use; only then is there something to keep.
            step.scaler.scale(torch.ones((), device=step.sums.values.device))
            self._scaler = step.scaler.state_dict()
        self._kept = [(tensor, tensor.detach().clone()) for tensor in step.written()]
        self._lr = float(step.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def restore(self) -> None:
        """Weights, statistics, momentum, sums, place, lr and scale are what they were, where they were."""
        for tensor, kept in self._kept:
            tensor.copy_(kept)
        set_lr(self.step.optimizer, self._lr)
        if self.step.scaler is not None:
            self.step.scaler.load_state_dict(self._scaler)

    def outcome(self, step: Callable[[int], None], sizes: Sequence[int]) -> list[list[Tensor]]:
        """By how much steps of these sizes, and of the same in reverse, change weights, statistics and sums.

        Each has another lr than the one before. Then everything is put back.
        """
        lrs = itertools.cycle(_CHECK_LR)
        for order in (sizes, sizes[::-1]):
            self.step.feed.position.zero_()
            for size in order:
                set_lr(self.step.optimizer, next(lrs))
                step(size)
        kept = {id(tensor): value for tensor, value in self._kept}
        groups = (self.step.weights(), self.step.statistics(), [self.step.sums.values])
        changes = [[tensor.detach() - kept[id(tensor)] for tensor in group] for group in groups]
        self.restore()
        return changes


def prepare(
    step: TrainingStep,
    sizes: Sequence[int],
    techniques: Techniques,
    capture: Callable[[], Capture],
    exact: bool,
    say: Callable[[str], None],
) -> tuple[Callable[[int], None], Techniques]:
    """The fastest form of `step` that `techniques` allow and that proves right, and what it then uses.

    `sizes` are those of the batches to come, `exact` asks for the plain step's result to the bit. What fails
    or differs is said, and left out; the state is as before. A step that uses neither graph nor compiler is
    handed back as it is.
    """
    if not techniques.compile and not techniques.cuda_graph:
        return step, techniques
    plain = replace(step, compiled=False)
    before = Snapshot(step)
    expected = _expected(plain, before, sizes, exact)
    for compiled, graph in ((True, True), (False, True), (True, False)):
        form = replace(techniques, compile=compiled, cuda_graph=graph)
        if (compiled and not techniques.compile) or (graph and not techniques.cuda_graph):
            continue
        fast = replace(step, compiled=compiled)
        try:
            made = _recorded(fast, before, sizes, capture()) if graph else fast
            _compare(before.outcome(made, sizes), *expected)
        except RuntimeError as error:
            before.restore()
            used = " and ".join(name for name in form.names() if name in ("cuda-graph", "compile"))
            say(f"goes on without {used}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
        else:
            return made, form
    return plain, replace(techniques, compile=False, cuda_graph=False)


def _recorded(
    step: TrainingStep, before: Snapshot, sizes: Sequence[int], capture: Capture
) -> Callable[[int], None]:
    """The step recorded once for each batch size; the state is as before."""
    replays: dict[int, Callable[[], None]] = {}
    device = step.sums.values.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with capture.warming():
            for size in sizes:
                for _ in range(WARM_UPS):
                    # A run resumed at an epoch's end has no batch left to warm up on.
                    step.feed.position.zero_()
                    step(size)
                    before.restore()
        for size in sizes:
            step.feed.position.zero_()
            replays[size] = capture.record(partial(step, size))
            before.restore()

    def replay(size: int) -> None:
        replays[size]()

    return replay


def _expected(
    plain: TrainingStep, before: Snapshot, sizes: Sequence[int], exact: bool
) -> tuple[list[list[Tensor]], list[float]]:
    """What a faster step has to come near to, and how near: weights, statistics and sums in turn."""
    changes = before.outcome(plain, sizes)
    if exact:
        return changes, [0.0] * len(changes)
    if plain.precision.name != "bf16":
        return changes, [ROUNDING] * len(changes)
    in_float32 = replace(plain, precision=replace(plain.precision, name="fp32"))
    exacter = before.outcome(in_float32, sizes)
    own = [_apart(ours, theirs) for ours, theirs in zip(changes, exacter, strict=True)]
    return exacter, [min(max(2 * distance, ROUNDING), MOST) for distance in own]


def _compare(found: list[list[Tensor]], expected: list[list[Tensor]], allowed: list[float]) -> None:
    """StepDiffersError where an outcome is further from the expected one than is allowed."""
    for what, ours, theirs, most in zip(
        ("weights", "statistics", "sums"), found, expected, allowed, strict=True
    ):
        # Said so that a difference that is not a number is one too.
        if not (apart := _apart(ours, theirs)) <= most:
            raise StepDiffersError(
                f"its {what} end {apart:.2g} of a step's change away from those of the plain step, and "
                f"{most:.2g} is allowed"
            )


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all of the tensors; 0 where both are nothing."""
    difference = math.sqrt(
        sum(float((a - b).double().square().sum()) for a, b in zip(ours, theirs, strict=True))
    )
    size = math.sqrt(sum(float(b.double().square().sum()) for b in theirs))
    return difference / size if size else difference
