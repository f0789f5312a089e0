"""The programs of a benchmark, each in a process of its own that trains only when it is told to.

So none inherits another's allocator, thread pool or settings. A process prepares, then waits; the parent
gives the word for each window, to one program at a time. Imports no torch: the process has to set malloc up
before that.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from repro.benchmark.windows import Window, run_window, together
from repro.config import RunConfig
from repro.errors import ReproError
from repro.system import keep_freed_memory

OURS, PLAIN, TUNED = "ours", "plain", "tuned"

_TIME_TO_END = 10.0
"""Seconds that a process has to end its DataLoader's workers, before it is killed."""


class ProgramFailedError(ReproError):
    """A program of a benchmark ended by itself: it does not fit the memory, most likely."""


@dataclass(frozen=True)
class Program:
    """What trains: our loop on `config`, or the plain or tuned loop on the same network and images.

    `precision` None is the device's own, `threads` None torch's default, as in a script. `techniques` and
    `deterministic` are for our loop. `runs` train in turn in one process; `processes` train at the same
    time, each for itself. `keeps_freed_memory` is what `repro train` asks of malloc and a script does not.
    """

    kind: str
    run_id: str
    config: RunConfig
    image_size: int
    data_dir: Path
    device: str
    precision: str | None
    threads: int | None
    techniques: tuple[str, ...] = ()
    deterministic: bool = False
    runs: int = 1
    processes: int = 1
    keeps_freed_memory: bool = False


@dataclass(frozen=True)
class Prepared:
    """A process that is warm: seconds until the first step of its first run was done, and what it said."""

    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Failure:
    reason: str


class RunningProgram:
    """A program's processes; `prepared` is what the first of them said, `name` is for messages."""

    def __init__(self, name: str, program: Program) -> None:
        self._name = name
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        try:
            # spawn: a forked child would have torch imported and its thread pools broken.
            spawn = multiprocessing.get_context("spawn")
            for _ in range(program.processes):
                pipe, theirs = spawn.Pipe()
                process = spawn.Process(target=_serve, args=(theirs, program))
                process.start()
                theirs.close()  # then the pipe ends with the process
                self._processes.append(process)
                self._pipes.append(pipe)
            answers = [self._answer(number) for number in range(program.processes)]
            self.prepared: Prepared = answers[0]
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Of its processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def window(self, seconds: float) -> Window:
        """Trains for about `seconds`, all processes at the same time; the others of the benchmark wait."""
        for number, pipe in enumerate(self._pipes):
            try:
                pipe.send(seconds)
            except BrokenPipeError:
                self._answer(number)
        return together([self._answer(number) for number in range(len(self._pipes))])

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_TIME_TO_END)
            if process.is_alive():
                process.kill()
                process.join()

    def _answer(self, number: int) -> Any:
        """What the process sends; ProgramFailedError where that is an error, or nothing any more."""
        try:
            answer = self._pipes[number].recv()
        except (EOFError, ConnectionResetError):
            process = self._processes[number]
            process.join()
            answer = _Failure(f"its process ended with exit code {process.exitcode}")
        if isinstance(answer, _Failure):
            raise ProgramFailedError(f"{self._name} could not be measured: {answer.reason}")
        return answer


@contextlib.contextmanager
def started(
    programs: Mapping[str, Program],
    notes: list[str],
    say: Callable[[str], None] = lambda line: None,
    required: Sequence[str] = (OURS,),
) -> Iterator[dict[str, RunningProgram]]:
    """The programs, prepared one after another and all waiting; they end with the context.

    One that fails to prepare is left out and noted, unless it is `required`: then ProgramFailedError.
    """
    with contextlib.ExitStack() as stack:
        running: dict[str, RunningProgram] = {}
        for name, program in programs.items():
            say(f"preparing {name}")
            try:
                running[name] = RunningProgram(name, program)
            except ProgramFailedError as failure:
                if name in required:
                    raise
                notes.append(str(failure))
                continue
            stack.callback(running[name].close)
            notes += running[name].prepared.notes
        yield running


def _serve(pipe: Connection, program: Program) -> None:
    """A process's whole life: prepare, then a window whenever the parent asks, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then closes the pipe
    try:
        if program.keeps_freed_memory:
            keep_freed_memory()
        from repro.benchmark.programs import prepare

        step, finish, prepared = prepare(program)
        pipe.send(prepared)
        window = partial(run_window, step, finish)
        while True:
            pipe.send(window(pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:  # noqa: BLE001 - the parent says what went wrong, and measures the others
        with contextlib.suppress(BrokenPipeError):
            pipe.send(_Failure(f"{type(error).__name__}: {error}"))
