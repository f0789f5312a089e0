"""This project's own loop, alone and several runs at once; and what a program's process does."""

import itertools
import os
import resource
import time
from collections.abc import Callable, Iterator

import torch

from repro.benchmark.baselines import baseline
from repro.benchmark.case import Case, open_case
from repro.benchmark.roofline import best_seconds, wait
from repro.benchmark.timing import HARNESS, TUNED, Program, Window
from repro.training.loop import Trainer
from repro.training.metrics import EpochSums
from repro.training.precision import Accelerations, Precision, choose_precision

_LEAST_STEPS = 2  # of a window
_MEASURED = 30  # times that the measuring of a step is repeated to time it

# What this process trains, once it is prepared: each item is the images of a step that is done then.
_program: tuple[Iterator[int], torch.device] | None = None


def prepare(program: Program) -> tuple[float, list[str]]:
    """Sets this process up to train `program` and takes two steps: seconds until the first is done, notes."""
    global _program
    device = torch.device(program.device)
    if program.threads is not None:
        torch.set_num_threads(program.threads)
    if program.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not program.deterministic
    case = open_case(program.config, program.image_size, program.data_dir)
    accelerations = Accelerations.of(program.accelerations) if program.kind == HARNESS else Accelerations()
    precision = choose_precision(device, program.precision).for_network(case.build()[0])
    precision = accelerations.layout(precision)
    notes: list[str] = []
    began = time.perf_counter()
    if program.kind == HARNESS:
        steps = in_turn(case, precision, accelerations, program.runs, notes.append)
    else:
        steps = baseline(case, precision, tuned=program.kind == TUNED)
    next(steps)
    wait(device)
    seconds = time.perf_counter() - began
    next(steps)  # the second step still fills caches
    wait(device)
    _program = steps, device
    return seconds, notes


def train_window(seconds: float) -> Window:
    """Trains what `prepare` set up for about `seconds`, at least two steps."""
    assert _program is not None, "prepare comes first"
    steps, device = _program
    taken: list[int] = []
    wait(device)
    began = time.perf_counter()
    while len(taken) < _LEAST_STEPS or time.perf_counter() - began < seconds:
        taken.append(next(steps))
    wait(device)
    elapsed = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return Window(sum(taken) / elapsed, 1000 * elapsed / len(taken), peak)


def in_turn(
    case: Case,
    precision: Precision,
    accelerations: Accelerations,
    runs: int = 1,
    warn: Callable[[str], None] = lambda line: None,
) -> Iterator[int]:
    """One or several runs, a step of each in turn; on a GPU each has a stream (and a graph) of its own."""
    batch, count = case.config.recipe.batch_size, len(case.data.train.labels)
    sizes = [min(batch, count - start) for start in range(0, count, batch)]

    def run(seed: int) -> Iterator[int]:
        config = case.config.model_copy(update={"seed": seed})
        trainer = Trainer(config, case.data, precision, accelerations=accelerations, warn=warn)
        steps = trainer.steps()
        stream = torch.cuda.Stream(precision.device) if precision.device.type == "cuda" else None
        for images in itertools.cycle(sizes):
            with torch.cuda.stream(stream):  # without a GPU it does nothing
                next(steps)
            yield images

    return map(sum, zip(*map(run, range(runs)), strict=True))


def measuring_seconds(case: Case, precision: Precision) -> float:
    """What a step spends on the numbers that a record tells of it: loss, accuracy, and norms.

    The same work on tensors of the same shapes, many times in a row; on a GPU as one graph, as in a step.
    """
    device, batch = precision.device, case.config.recipe.batch_size
    manifest = case.data.manifest
    _, loss = case.build()
    loss.to(device).train()
    logits = torch.randn(batch, manifest.classes, device=device)
    labels = torch.randint(manifest.classes, (batch,), device=device)
    features, gradient = (torch.randn(batch, loss.feature_dim, device=device) for _ in range(2))
    images = torch.randn(batch, 3, manifest.image_size, manifest.image_size, device=device)
    value = torch.ones((), device=device)
    sums = EpochSums(device)

    def work() -> None:
        for _ in range(_MEASURED):
            at_softmax = loss.softmax_gradient(logits, labels)
            sums.add(value, logits, at_softmax, features, gradient, images, labels)

    if device.type != "cuda":
        return best_seconds(device, work) / _MEASURED
    side = torch.cuda.Stream(device)
    wait(device)
    with torch.cuda.stream(side):
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        work()
    return best_seconds(device, graph.replay) / _MEASURED
