"""Programs measured in turn: windows of some seconds each, interleaved, and the median of each program.

What changes on the machine meanwhile, its clock or a neighbour, then affects all of them alike. Each program
has a process of its own that trains only while its window lasts, so none inherits another's allocator, thread
pool or settings. Imports no torch: a process sets malloc up before that.
"""

import contextlib
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from repro.config import RunConfig
from repro.errors import RunFailedError
from repro.system import keep_freed_memory

HARNESS, PLAIN, TUNED = "ours", "plain", "tuned"  # kinds of program, as output and options call them


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
    return {
        name: Speed(
            tuple(window.images_per_second for window in each),
            statistics.mean(window.milliseconds_per_step for window in each),
            each[-1].peak_memory,
        )
        for name, each in windows.items()
    }


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median over the rounds of one program's speed divided by the other's in the same round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Program:
    """What trains: this project's loop on `config`, or a baseline on the same network and images.

    `threads` None is torch's default, as in a script. `accelerations` and `deterministic` are for this
    project's loop. `runs` train in turn in one process; `processes` train at the same time, each for itself.
    """

    kind: str
    config: RunConfig
    image_size: int
    data_dir: Path
    device: str
    precision: str
    threads: int | None
    accelerations: tuple[str, ...] = ()
    deterministic: bool = False
    runs: int = 1
    processes: int = 1

    @property
    def keeps_freed_memory(self) -> bool:
        """What `repro train` asks of malloc and a script does not."""
        return self.kind == HARNESS


class RunningProgram:
    """A program's processes, warm; `name` is for messages.

    `preparing` is the seconds until each run of the first process had done its first step, `notes` what that
    process said meanwhile.
    """

    def __init__(self, name: str, program: Program) -> None:
        from repro.benchmark.harness import prepare

        self._name = name
        # spawn: a forked child would have torch imported and its thread pools broken.
        self._processes = [
            ProcessPoolExecutor(1, get_context("spawn"), initialise, (program.keeps_freed_memory,))
            for _ in range(program.processes)
        ]
        try:
            self.preparing, self.notes = self._ask(prepare, program)[0]
        except BaseException:
            self.close()
            raise

    def window(self, seconds: float) -> Window:
        """Trains for about `seconds`, all processes at the same time; the others of the benchmark wait."""
        from repro.benchmark.harness import train_window

        windows = self._ask(train_window, seconds)
        return Window(
            sum(window.images_per_second for window in windows),
            statistics.mean(window.milliseconds_per_step for window in windows),
            sum(window.peak_memory for window in windows),
        )

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.shutdown()

    def _ask(self, function: Callable[[Any], Any], argument: object) -> list[Any]:
        """What the function returns in each process; RunFailedError if one of them fails."""
        try:
            answers = [process.submit(function, argument) for process in self._processes]
            return [answer.result() for answer in answers]
        except BrokenProcessPool:
            reason = "its process died, most likely out of memory"
        except Exception as error:  # noqa: BLE001 - whatever it is, the other programs are measured
            reason = f"{type(error).__name__}: {error}"
        raise RunFailedError(f"{self._name} could not be measured: {reason}")


def initialise(keeps_freed_memory: bool) -> None:
    """Sets a program's process up, before it imports torch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    if keeps_freed_memory:
        keep_freed_memory()


@contextlib.contextmanager
def started(
    programs: Mapping[str, Program],
    notes: list[str],
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, RunningProgram]]:
    """The programs, prepared one after another and all waiting; they end with the context.

    One that fails to prepare is left out and noted, unless it is this project's loop: then RunFailedError.
    """
    with contextlib.ExitStack() as stack:
        running: dict[str, RunningProgram] = {}
        for name, program in programs.items():
            say(f"preparing {name}")
            try:
                running[name] = RunningProgram(name, program)
            except RunFailedError as failure:
                if name == HARNESS:
                    raise
                notes.append(str(failure))
                continue
            stack.callback(running[name].close)
            notes += running[name].notes
        yield running
