"""Several programs measured by turns: windows of some seconds each, interleaved, and the median of each.

What changes on the machine meanwhile, its clock or a neighbour, then meets all of them alike.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from repro.benchmark.rates import wait

Step = Callable[[], int]
"""Trains one step, or one of each run in it, and says on how many images."""

_LEAST_STEPS = 2


@dataclass(frozen=True)
class Speed:
    """Images a second of each window, in order, and the mean time of a step over all windows."""

    windows: tuple[float, ...]
    milliseconds_a_step: float

    @property
    def median(self) -> float:
        """Images a second."""
        return statistics.median(self.windows)


def measure(
    programs: Mapping[str, Step],
    device: torch.device,
    rounds: int,
    seconds: float,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Speed]:
    """Each program's speed over `rounds` windows of about `seconds`; all of them are warm already."""
    windows: dict[str, list[float]] = {name: [] for name in programs}
    spent = dict.fromkeys(programs, 0.0)
    steps = dict.fromkeys(programs, 0)
    for number in range(rounds):
        for name, step in programs.items():
            images, taken, elapsed = _window(step, device, seconds)
            windows[name].append(images / elapsed)
            spent[name] += elapsed
            steps[name] += taken
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{n} {w[-1]:,.0f}" for n, w in windows.items()))
    return {name: Speed(tuple(windows[name]), 1000 * spent[name] / steps[name]) for name in programs}


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median over the rounds of what one program did beside the other in the same round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def _window(step: Step, device: torch.device, seconds: float) -> tuple[int, int, float]:
    images = taken = 0
    wait(device)
    began = time.perf_counter()
    while taken < _LEAST_STEPS or time.perf_counter() - began < seconds:
        images += step()
        taken += 1
    wait(device)
    return images, taken, time.perf_counter() - began
