"""A training step as a recording: launched whole instead of kernel by kernel, with the same outcome.

What recording could spoil is kept from it: the steps that warm it up leave weights, batch norm statistics,
momentum, the scaler, the sums and the generators as they were; the lr is a number on the device; the short
last batch has a recording of its own; and nothing is trusted unseen: the recorded step and the plain one take
the same steps from the same state, in the same precision, and a recording that ends elsewhere is refused.

`Capture` is the seam: CUDA's graphs in use, in tests whatever records the same calls.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from repro.training.metrics import EpochSums
from repro.training.optim import set_lr
from repro.training.step import TrainingStep
from repro.training.techniques import Techniques

WARM_UPS = 3
"""Steps of each batch size before it is recorded: libraries choose kernels, compilers compile, pools fill."""

_CHECK_LR = (1e-3, 2e-4)
"""Small, so that the second step starts where the first one left the plain step too; two, and far apart, so
that an lr that was recorded as a constant shows in how far the weights move."""

LEAST_TOLERANCE = {"inputs": 1e-4, "weights": 0.05, "length": 0.1, "statistics": 0.1, "sums": 0.1}
"""How far apart a fast and a plain step may always end, by what is compared: relative to the plain steps'
change. fp16 and TF32 round at 2⁻¹¹ per product, and batch norm amplifies it about tenfold. `inputs` are a sum
over pixels and labels: another batch is off by some percent, another order of summing by less than 1e-6."""

MARGIN = 2.0
"""Allowed is this times what the plain step differs from itself: repeated, and summed in another order."""

MOST_LENGTH = 0.3
"""Never more than this in length, whatever the noise: a constant lr moves the weights 1.8 times as far as
`_CHECK_LR` asks for, and without momentum they move half as far."""


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

    def outcome(self, step: Callable[[int], None], sizes: Sequence[int]) -> "Outcome":
        """What steps of these sizes, and of the same in reverse, come to; then everything is put back.

        Each has another lr than the one before.
        """
        self.step.sums.values.zero_()
        lrs = itertools.cycle(_CHECK_LR)
        for order in (sizes, sizes[::-1]):
            self.step.feed.position.zero_()
            for size in order:
                set_lr(self.step.optimizer, next(lrs))
                step(size)
        kept = {id(tensor): value for tensor, value in self._kept}
        groups = (self.step.weights(), self.step.statistics())
        weights, statistics = ([tensor.detach() - kept[id(tensor)] for tensor in group] for group in groups)
        found = Outcome(weights, statistics, self.step.sums.values.clone(), 2 * sum(sizes))
        self.restore()
        return found


@dataclass(frozen=True)
class Outcome:
    """The changes of weights and batch norm statistics, and the sums over the `images` trained on."""

    weights: list[Tensor]
    statistics: list[Tensor]
    sums: Tensor
    images: int

    def distances(self, expected: "Outcome") -> dict[str, float]:
        """How far this outcome is from the expected one, by the names of `LEAST_TOLERANCE`; NaN counts as ∞.

        In bf16 the direction of a deep network's change is noise within two steps: the same ResNet-50 ends
        1.3 changes away from itself when its sums are rounded in another order, as far as from a step on
        other images. Hence also what stays well-conditioned: which batches were read, how far the weights
        moved, batch norm's statistics, and the sums.
        """
        ours, theirs = EpochSums.named(self.sums), EpochSums.named(expected.sums)
        scales = {name: abs(value) for name, value in theirs.items()} | {"correct": self.images}
        apart = {name: abs(ours[name] - theirs[name]) / scales[name] for name in theirs if scales[name]}
        length = _norm(expected.weights)
        found = {
            "inputs": apart.pop("inputs"),
            "weights": _apart(self.weights, expected.weights),
            "length": abs(_norm(self.weights) - length) / length if length else _norm(self.weights),
            "statistics": _apart(self.statistics, expected.statistics),
            "sums": max(apart.values(), key=_or_infinite),
        }
        return {name: _or_infinite(value) for name, value in found.items()}

    def first_difference(self, expected: "Outcome") -> str | None:
        """What is not the same to the bit, None where all is."""
        for what in ("weights", "statistics"):
            for ours, theirs in zip(getattr(self, what), getattr(expected, what), strict=True):
                if not torch.equal(ours, theirs):
                    return what
        return None if torch.equal(self.sums, expected.sums) else "sums"


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
    handed back as it is. Running out of memory is no reason to train more slowly: that error is raised.
    """
    if not techniques.compile and not techniques.cuda_graph:
        return step, techniques
    plain = replace(step, compiled=False)
    before = Snapshot(step)
    reference = Reference(plain, before, sizes, exact)
    for compiled, graph in ((True, True), (False, True), (True, False)):
        form = replace(techniques, compile=compiled, cuda_graph=graph)
        if (compiled and not techniques.compile) or (graph and not techniques.cuda_graph):
            continue
        fast = replace(step, compiled=compiled)
        try:
            with warnings.catch_warnings():
                # Advice to compute the head in TF32; it is meant to be float32.
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
                made = _recorded(fast, before, sizes, capture()) if graph else fast
                reference.check(before.outcome(made, sizes), compiled)
        except RuntimeError as error:
            before.restore()
            if is_out_of_memory(error):
                raise
            used = " and ".join(name for name in form.names() if name in ("cuda-graph", "compile"))
            say(f"goes on without {used}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
        else:
            return made, form
    return plain, replace(techniques, compile=False, cuda_graph=False)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, CUDA, cuBLAS or the host could not allocate; only some of them have a type for it."""
    signs = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


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


class Reference:
    """What the plain step comes to, and how far it is from itself: the measure for a faster one."""

    def __init__(self, plain: TrainingStep, before: Snapshot, sizes: Sequence[int], exact: bool) -> None:
        self.plain, self.sizes, self.exact = plain, sizes, exact
        self.expected = before.outcome(plain, sizes)
        self.noise = {} if exact else before.outcome(plain, sizes).distances(self.expected)
        self.reordered = False

    def check(self, found: Outcome, compiled: bool) -> None:
        """StepDiffersError where an outcome is further from the expected one than is allowed.

        A compiled step rounds less often than the plain one, by design, so that the direction of its change
        is not compared.
        """
        if self.exact:
            if what := found.first_difference(self.expected):
                raise StepDiffersError(f"its {what} are not those of the plain step to the bit")
            return
        distances = found.distances(self.expected)
        if compiled:
            del distances["weights"]
        if self._first_beyond(distances) and not self.reordered:
            # Kernels that repeat exactly say nothing about those that sum in another order and are as right.
            other = _in_other_format(self.plain)
            if other is not None:
                apart = Snapshot(other).outcome(other, self.sizes).distances(self.expected)
                self.noise = {name: max(self.noise[name], apart[name]) for name in self.noise}
            self.reordered = True
        if what := self._first_beyond(distances):
            raise StepDiffersError(
                f"its {what} end {distances[what]:.2g} of a step's change away from those of the plain step, "
                f"and {self.allowed(what):.2g} is allowed"
            )

    def _first_beyond(self, distances: Mapping[str, float]) -> str | None:
        return next((name for name, apart in distances.items() if apart > self.allowed(name)), None)

    def allowed(self, name: str) -> float:
        """How far apart two steps may be in what `LEAST_TOLERANCE` calls `name`."""
        if name == "inputs":
            return LEAST_TOLERANCE[name]
        allowed = max(MARGIN * self.noise[name], LEAST_TOLERANCE[name])
        return min(allowed, MOST_LENGTH) if name == "length" else allowed


def _in_other_format(step: TrainingStep) -> TrainingStep | None:
    """The same step, on copies of its weights, in the other memory format; None where there is no other.

    The same sums in the same precision, each in another order.
    """
    first, last = torch.contiguous_format, torch.channels_last
    other = last if step.precision.memory_format == first else first
    precision = replace(step.precision, memory_format=other).for_network(step.network)
    if precision.memory_format == step.precision.memory_format:
        return None
    network, loss, optimizer = copy.deepcopy((step.network, step.loss, step.optimizer))
    network.to(memory_format=other)
    for parameter, state in optimizer.state.items():
        # A fused optimizer wants a parameter and its momentum in one layout.
        state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])
    return replace(
        step,
        network=network,
        loss=loss,
        optimizer=optimizer,
        precision=precision,
        feed=step.feed.in_format(other),
        sums=EpochSums(step.sums.values.device),
    )


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all of the tensors; 0 where both are nothing."""
    difference, size = _norm([a - b for a, b in zip(ours, theirs, strict=True)]), _norm(theirs)
    return difference / size if size else difference


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value
