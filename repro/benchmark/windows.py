"""Several programs measured in turn: windows of some seconds each, interleaved, and the median of each.

What changes on the machine meanwhile, its clock or a neighbour, then meets all of them alike.
"""

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Step = Callable[[], int]
"""Trains one step, or one of each run in it, and says on how many images."""

MAX_SPREAD = 2.0
"""The fastest window of a program over its slowest, above which none of them is trusted."""

_LEAST_STEPS = 2


@dataclass(frozen=True)
class Window:
    """One program's speed for some seconds; `peak_memory` is its largest resident size so far, bytes."""

    images_per_second: float
    milliseconds_per_step: float
    peak_memory: int


@dataclass(frozen=True)
class Speed:
    """Images per second of each window, in order; the mean time of a step; the most memory, bytes.

    The memory is the resident size of the program's training processes, without DataLoader workers.
    """

    windows: tuple[float, ...]
    milliseconds_per_step: float
    peak_memory: int

    @property
    def median(self) -> float:
        """Images per second."""
        return statistics.median(self.windows)

    @property
    def spread(self) -> float:
        """The fastest window over the slowest."""
        return max(self.windows) / min(self.windows)


def measure(
    programs: Mapping[str, Callable[[float], Window]],
    rounds: int,
    seconds: float,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Speed]:
    """Each program's speed over `rounds` windows of about `seconds`; all of them are warm already."""
    windows: dict[str, list[Window]] = {name: [] for name in programs}
    for number in range(rounds):
        for name, window in programs.items():
            windows[name].append(window(seconds))
        latest = (f"{name} {each[-1].images_per_second:,.0f}" for name, each in windows.items())
        say(f"round {number + 1} of {rounds}: {', '.join(latest)}")
    return {name: _speed(each) for name, each in windows.items()}


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median over the rounds of one program's speed divided by the other's in the same round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def run_window(step: Step, finish: Callable[[], None], seconds: float) -> Window:
    """Takes steps for about `seconds`, at least two; `finish` waits until what was launched is done."""
    images = steps = 0
    finish()
    began = time.perf_counter()
    while steps < _LEAST_STEPS or time.perf_counter() - began < seconds:
        images += step()
        steps += 1
    finish()
    elapsed = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return Window(images / elapsed, 1000 * elapsed / steps, peak)


def together(windows: Sequence[Window]) -> Window:
    """One window of several processes that trained at the same time."""
    return Window(
        sum(window.images_per_second for window in windows),
        statistics.mean(window.milliseconds_per_step for window in windows),
        sum(window.peak_memory for window in windows),
    )


def _speed(windows: Sequence[Window]) -> Speed:
    return Speed(
        tuple(window.images_per_second for window in windows),
        statistics.mean(window.milliseconds_per_step for window in windows),
        windows[-1].peak_memory,
    )
