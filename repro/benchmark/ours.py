"""This project's own loop as it trains, alone and several runs at once, and what measuring costs it."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from repro.benchmark.rates import wait
from repro.benchmark.subject import Subject
from repro.training.accelerations import Accelerations
from repro.training.loop import Progress, TrainedRun, Trainer, build
from repro.training.metrics import EpochSums
from repro.training.precision import Precision

_MEASURED = 30
"""Times that what is measured of a step is done, to learn how long it takes."""


@dataclass
class OwnLoop:
    """One or several runs, a step of each in turn; on a GPU each has a stream (and a graph) of its own.

    `preparing` are the seconds until the first step of the first run was done: copying the data, choosing
    kernels, compiling, recording.
    """

    subject: Subject
    precision: Precision
    techniques: Accelerations
    copies: int = 1
    say: Callable[[str], None] = lambda line: None
    preparing: float = 0.0

    def start(self) -> Callable[[], int]:
        """Trains a first step of each run; the rest a step a call."""
        began = time.perf_counter()
        runs = [self._run(number) for number in range(self.copies)]
        runs[0]()
        wait(self.precision.device)
        self.preparing = time.perf_counter() - began
        for run in runs[1:]:
            run()
        return lambda: sum(run() for run in runs)

    def _run(self, seed: int) -> Callable[[], int]:
        seen = _Seen()
        config = self.subject.config.model_copy(update={"seed": seed})
        steps: Generator[None, None, TrainedRun] = Trainer(
            config,
            self.subject.data,
            self.precision,
            report=seen,
            accelerations=self.techniques,
            warn=self.say,
        ).steps()
        if self.precision.device.type != "cuda":
            return partial(_advance, steps, seen, self.subject)
        stream = torch.cuda.Stream(self.precision.device)

        def on_its_stream() -> int:
            with torch.cuda.stream(stream):
                return _advance(steps, seen, self.subject)

        return on_its_stream


class _Seen:
    """The last report: which step is about to be taken."""

    step = 0

    def __call__(self, progress: Progress) -> None:
        self.step = progress.step


def _advance(steps: Generator[None, None, TrainedRun], seen: _Seen, subject: Subject) -> int:
    next(steps)
    batch, count = subject.config.recipe.batch_size, len(subject.data.train.labels)
    return min(batch, count - seen.step * batch)


def measuring_seconds(subject: Subject, precision: Precision) -> float:
    """What a step spends on the numbers that a record tells of it: loss, accuracy, and norms.

    The same work on tensors of the same shapes, many times in a row; on a GPU as one graph, as in a step.
    """
    device, batch = precision.device, subject.config.recipe.batch_size
    manifest = subject.data.manifest
    _, loss = build(subject.config, manifest.image_size, manifest.classes)
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

    do = work
    if device.type == "cuda":
        side = torch.cuda.Stream(device)
        wait(device)
        with torch.cuda.stream(side):
            work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            work()
        do = graph.replay
    return best_of([_seconds(do, device) for _ in range(5)]) / _MEASURED


def best_of(seconds: Sequence[float]) -> float:
    """The least disturbed of several."""
    return min(seconds)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began
