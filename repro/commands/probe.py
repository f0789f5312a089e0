"""`repro probe RUN_ID`: trains a run's network on generated data for a few seconds, to see how fast it goes.

What it trains is the real loop with the run's own recipe; only the data are generated, so that nothing has
to be prepared, and nothing is written.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from repro.cli.context import Context
from repro.commands.provenance import device_name, peak_memory
from repro.commands.stop import Stop
from repro.commands.techniques import choose_techniques
from repro.commands.train import choose_device
from repro.config import RunConfig
from repro.data import synthetic
from repro.data.loader import batch_bounds
from repro.errors import DataMissingError, RunInterruptedError
from repro.training.loop import Progress, train_run
from repro.training.precision import choose_precision

STEPS = 20
"""Steps of the made-up epoch."""

WARM_UP = {"cuda": 2 * STEPS, "cpu": 2}
"""Steps before anything is measured: a GPU's first ones choose kernels and capture graphs."""

CUDA_CONTEXT = 500 * 2**20
"""Bytes that a process takes on a GPU beside torch's allocator."""


@dataclass(frozen=True)
class ProbeOptions:
    """How to train, as for `repro train`; `wait` says `ready` and waits for a line before it measures."""

    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    seconds: float = 5.0
    wait: bool = False


def probe(context: Context, run_id: str, options: ProbeOptions, stop: Stop) -> str:
    """One line of JSON: device, precision, images a second, bytes of memory at most, steps measured.

    Raises RunInterruptedError where `stop` asks for it first.
    """
    run = context.registry.parse(run_id)
    config, classes = _shortened(context.registry.config(run, context.preset), context)
    torch.set_num_threads(options.threads or context.preset.threads)
    device = choose_device(options.device)
    precision = choose_precision(device, options.precision)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    recipe = config.recipe
    size = context.data_sizes([config.dataset])[config.dataset].image_size
    assert recipe.images_per_class is not None
    data = synthetic.generate(config.dataset, size, classes, recipe.images_per_class, 1)
    sizes = [stop - start for start, stop in batch_bounds(len(data.train.labels), recipe.batch_size)]
    window = _Window(sizes, device, options.seconds, _wait if options.wait else lambda: None)
    with contextlib.suppress(RunInterruptedError):  # that is how it ends
        train_run(
            config,
            data,
            precision,
            report=window.report,
            should_stop=lambda: window.over or stop.now,
            techniques=choose_techniques(device),
        )
    if not window.over:
        raise RunInterruptedError("stopped before anything was measured")
    memory = peak_memory(device)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_reserved(device) + CUDA_CONTEXT
    return json.dumps(
        {
            "device": device_name(device),
            "precision": precision.name,
            "images_per_second": window.images / window.elapsed,
            "memory_bytes": memory,
            "steps": window.steps,
        }
    )


class _Window:
    """Counts images from the end of the warm-up until the time is over; called before every step."""

    def __init__(
        self, sizes: list[int], device: torch.device, seconds: float, wait: Callable[[], None]
    ) -> None:
        self._sizes = sizes
        self._device = device
        self._seconds = seconds
        self._wait = wait
        self._calls = 0
        self._began: float | None = None
        self._last_step = 0
        self.images = 0
        self.steps = 0
        self.elapsed = 0.0
        self.over = False

    def report(self, progress: Progress) -> None:
        self._calls += 1
        if self._began is None:
            if self._calls <= WARM_UP[self._device.type]:
                return
            self._finish_steps()
            self._wait()
            self._began = time.perf_counter()
        else:
            self.images += self._sizes[self._last_step]
            self.steps += 1
            if time.perf_counter() - self._began >= self._seconds:
                self._finish_steps()
                self.elapsed = time.perf_counter() - self._began
                self.over = True
        self._last_step = progress.step

    def _finish_steps(self) -> None:
        """Only then is what was launched also done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _shortened(config: RunConfig, context: Context) -> tuple[RunConfig, int]:
    """The run on generated data, a short epoch again and again without evaluation; and its classes."""
    recipe = config.recipe
    sizes = context.data_sizes([config.dataset])
    if config.dataset not in sizes:
        raise DataMissingError(f"the size of {config.dataset} is not known before it is prepared")
    classes = recipe.classes or sizes[config.dataset].classes
    endless = 10**9
    changes = {
        "data": "generated",
        "classes": classes,
        "images_per_class": -(-STEPS * recipe.batch_size // classes),
        "test_images_per_class": 1,
        "epochs": endless,
        "lr_drops": (),
        "lr": 1e-4,
        "evaluate_every": endless,
    }
    return config.model_copy(update={"recipe": recipe.model_copy(update=changes)}), classes


def _wait() -> None:
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit(RunInterruptedError.exit_code)
