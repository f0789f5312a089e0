"""CUDA graphs: captures a training step, launched as a whole instead of kernel by kernel.

The side effects of warming up and capturing (weights, batch norm statistics, momentum, scaler, sums,
generators) are rolled back; the lr is a tensor on the device; the short last batch has a graph of its own. A
captured or compiled step is compared with the eager one before it is used: both take the same steps from the
same state in the same precision, and the fast one is rejected if the results differ by more than `TOLERANCE`.

`Capture` is the interface that tests replace: `CudaCapture` in production, a recorder of operations on a CPU.
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
from repro.training.precision import Accelerations
from repro.training.step import TrainingStep

WARM_UPS = 3  # steps per batch size before capture: libraries choose kernels, compilers compile, pools fill

# Learning rates of the steps that are compared. Small, so that the second step of a fast form starts close to
# where the eager one does; two, far apart, so that an lr captured as a constant shows in how far the weights
# move.
_CHECK_LR = (1e-3, 2e-4)

# Differences between a fast and the eager step that are always allowed, relative to the eager steps' change.
# fp16 and TF32 round at 2⁻¹¹ per product, and batch norm amplifies it about tenfold. `inputs` is a sum over
# pixels and labels: another batch changes it by some percent, another order of summation by less than 1e-6.
TOLERANCE = {"inputs": 1e-4, "weights": 0.05, "length": 0.1, "statistics": 0.1, "sums": 0.1}

NOISE_FACTOR = 2.0  # × how far eager steps differ among themselves: repeated, or summed in another order

# Upper limit for `length`, whatever the noise: a constant lr moves the weights 1.8 times as far as
# `_CHECK_LR` asks for, and without momentum they move half as far.
MAX_LENGTH_TOLERANCE = 0.3


class StepDiffersError(RuntimeError):
    """A captured or compiled step gave another result than the eager one."""


class Capture(Protocol):
    """Captures what a callable does on the device."""

    def warm_up(self) -> AbstractContextManager[object]:
        """A context in which the callable may run before it is captured."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Runs `work` once on the host, without effect; the returned callable does it on the device."""
        ...


class CudaCapture:
    """CUDA graphs of one run: captured on their own stream, sharing one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Switches to the side stream, ordered after everything launched before and before what follows."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Captures a graph of `work`; it is launched on whichever stream is current then."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        return graph.replay


class Snapshot:
    """All values that a step changes, to be restored in place."""

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        if step.scaler is not None:
            # A scaler creates its tensors on first use; before that there is nothing to save.
            step.scaler.scale(torch.ones((), device=step.sums.values.device))
            self._scaler = step.scaler.state_dict()
        self._saved = [(tensor, tensor.detach().clone()) for tensor in step.written()]
        self._lr = float(step.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def restore(self) -> None:
        """Restores weights, statistics, momentum, sums, position, lr and scale; no address changes."""
        for tensor, saved in self._saved:
            tensor.copy_(saved)
        set_lr(self.step.optimizer, self._lr)
        if self.step.scaler is not None:
            self.step.scaler.load_state_dict(self._scaler)

    def outcome(self, step: Callable[[int], None], sizes: Sequence[int]) -> "Outcome":
        """The result of steps of these sizes, then of the same in reverse; restores everything afterwards.

        Consecutive steps have different learning rates.
        """
        self.step.sums.values.zero_()
        lrs = itertools.cycle(_CHECK_LR)
        for order in (sizes, sizes[::-1]):
            self.step.batches.position.zero_()
            for size in order:
                set_lr(self.step.optimizer, next(lrs))
                step(size)
        saved = {id(tensor): value for tensor, value in self._saved}
        groups = (self.step.weights(), self.step.statistics())
        weights, statistics = ([tensor.detach() - saved[id(tensor)] for tensor in group] for group in groups)
        outcome = Outcome(weights, statistics, self.step.sums.values.clone(), 2 * sum(sizes))
        self.restore()
        return outcome


@dataclass(frozen=True)
class Outcome:
    """Changes of weights and batch norm statistics over some steps, and the sums over their `images`."""

    weights: list[Tensor]
    statistics: list[Tensor]
    sums: Tensor
    images: int

    def distances(self, expected: "Outcome") -> dict[str, float]:
        """Relative distances from the expected outcome, with the keys of `TOLERANCE`; NaN counts as ∞."""
        # In bf16 the direction in which a deep network changes is noise after two steps: summed in another
        # order, the same ResNet-50 ends 1.3 changes away from itself, as far as from a step on other images.
        # So we also compare what stays well-conditioned: the batches read, how far the weights moved, the
        # batch norm statistics, and the sums.
        ours, theirs = EpochSums.named(self.sums), EpochSums.named(expected.sums)
        scales = {name: abs(value) for name, value in theirs.items()} | {"correct": self.images}
        errors = {name: abs(ours[name] - theirs[name]) / scales[name] for name in theirs if scales[name]}
        length = _norm(expected.weights)
        distances = {
            "inputs": errors.pop("inputs"),
            "weights": _relative_distance(self.weights, expected.weights),
            "length": abs(_norm(self.weights) - length) / length if length else _norm(self.weights),
            "statistics": _relative_distance(self.statistics, expected.statistics),
            "sums": max(errors.values(), key=_or_infinite),
        }
        return {name: _or_infinite(value) for name, value in distances.items()}

    def first_difference(self, expected: "Outcome") -> str | None:
        """The first quantity that is not bitwise equal; None if all are."""
        for what in ("weights", "statistics"):
            for ours, theirs in zip(getattr(self, what), getattr(expected, what), strict=True):
                if not torch.equal(ours, theirs):
                    return what
        return None if torch.equal(self.sums, expected.sums) else "sums"


def prepare(
    step: TrainingStep,
    sizes: Sequence[int],
    accelerations: Accelerations,
    capture: Callable[[], Capture],
    exact: bool,
    warn: Callable[[str], None],
) -> tuple[Callable[[int], None], Accelerations]:
    """The fastest form of `step` that `accelerations` allow and that is correct, and the accelerations in it.

    `sizes` are the batch sizes to come; `exact` demands the eager step's result to the bit. A form that fails
    or differs is skipped with a warning. The state afterwards is that of before. Running out of memory is
    raised instead: with fewer runs beside it, the same run can train at full speed.
    """
    if not accelerations.compile and not accelerations.cuda_graph:
        return step, accelerations
    eager = replace(step, compiled=False)
    before = Snapshot(step)
    reference = Reference(eager, before, sizes, exact)
    for compiled, graph in ((True, True), (False, True), (True, False)):
        form = replace(accelerations, compile=compiled, cuda_graph=graph)
        if (compiled and not accelerations.compile) or (graph and not accelerations.cuda_graph):
            continue
        fast = replace(step, compiled=compiled)
        try:
            with warnings.catch_warnings():
                # Inductor's advice to use TF32 for the loss head, which is float32 on purpose.
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
                take_step = _captured(fast, before, sizes, capture()) if graph else fast
                reference.check(before.outcome(take_step, sizes), compiled)
        except RuntimeError as error:
            before.restore()
            if is_out_of_memory(error):
                raise
            used = " and ".join(name for name in form.names() if name in ("cuda-graph", "compile"))
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warn(f"continuing without {used}: {reason}")
        else:
            return take_step, form
    return eager, replace(accelerations, compile=False, cuda_graph=False)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, CUDA, cuBLAS or the host could not allocate memory."""
    # Only torch has an exception type for it; the others raise a RuntimeError with one of these texts.
    signs = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def _captured(
    step: TrainingStep, before: Snapshot, sizes: Sequence[int], capture: Capture
) -> Callable[[int], None]:
    """The step captured once per batch size; the state afterwards is that of before."""
    replays: dict[int, Callable[[], None]] = {}
    device = step.sums.values.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with capture.warm_up():
            for size in sizes:
                for _ in range(WARM_UPS):
                    # From the epoch's start: a run resumed at an epoch's end has no batch left.
                    step.batches.position.zero_()
                    step(size)
                    before.restore()
        for size in sizes:
            step.batches.position.zero_()
            replays[size] = capture.record(partial(step, size))
            before.restore()

    def replay(size: int) -> None:
        replays[size]()

    return replay


class Reference:
    """The outcome of the eager step, and its own noise, that a faster step is compared with."""

    def __init__(self, eager: TrainingStep, before: Snapshot, sizes: Sequence[int], exact: bool) -> None:
        self.eager, self.sizes, self.exact = eager, sizes, exact
        self.expected = before.outcome(eager, sizes)
        self.noise = {} if exact else before.outcome(eager, sizes).distances(self.expected)
        self.reordered = False

    def check(self, found: Outcome, compiled: bool) -> None:
        """Raises StepDiffersError if an outcome is further from the expected one than is allowed."""
        if self.exact:
            if what := found.first_difference(self.expected):
                raise StepDiffersError(f"its {what} are not bitwise equal to those of the eager step")
            return
        distances = found.distances(self.expected)
        if compiled:
            # Fused kernels round less often than eager ones, by design, so the direction differs.
            del distances["weights"]
        if self._first_beyond(distances) and not self.reordered:
            # Kernels that repeat exactly say nothing about equally correct ones that sum in another order.
            other = _in_other_format(self.eager)
            if other is not None:
                noise = Snapshot(other).outcome(other, self.sizes).distances(self.expected)
                self.noise = {name: max(self.noise[name], noise[name]) for name in self.noise}
            self.reordered = True
        if what := self._first_beyond(distances):
            raise StepDiffersError(
                f"its {what} differ from those of the eager step by {distances[what]:.2g} of a step's "
                f"change; {self.allowed(what):.2g} is allowed"
            )

    def _first_beyond(self, distances: Mapping[str, float]) -> str | None:
        return next((name for name, value in distances.items() if value > self.allowed(name)), None)

    def allowed(self, name: str) -> float:
        """The largest distance allowed for `name`, a key of `TOLERANCE`."""
        if name == "inputs":
            return TOLERANCE[name]
        allowed = max(NOISE_FACTOR * self.noise[name], TOLERANCE[name])
        return min(allowed, MAX_LENGTH_TOLERANCE) if name == "length" else allowed


def _in_other_format(step: TrainingStep) -> TrainingStep | None:
    """The step on copies of its weights in the other memory format; None if the network has only one.

    It computes the same sums in the same precision, each in another order.
    """
    first, last = torch.contiguous_format, torch.channels_last
    other = last if step.precision.memory_format == first else first
    precision = replace(step.precision, memory_format=other).for_network(step.network)
    if precision.memory_format == step.precision.memory_format:
        return None
    network, loss, optimizer = copy.deepcopy((step.network, step.loss, step.optimizer))
    network.to(memory_format=other)
    for parameter, state in optimizer.state.items():
        # The fused optimizer requires a parameter and its momentum to have the same layout.
        state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])
    return replace(
        step,
        network=network,
        loss=loss,
        optimizer=optimizer,
        precision=precision,
        batches=step.batches.in_format(other),
        sums=EpochSums(step.sums.values.device),
    )


def _relative_distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all tensors; 0 if both are zero."""
    difference, size = _norm([a - b for a, b in zip(ours, theirs, strict=True)]), _norm(theirs)
    return difference / size if size else difference


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value
