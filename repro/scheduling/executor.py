"""The seam between the supervisor and whatever runs a worker, and the executor of this machine's processes.

What an executor says of a job is evidence; what a worker achieved is read from the disk.
"""

import os
import shlex
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repro.config import Preset
from repro.paths import Project
from repro.scheduling.devices import Device
from repro.storage import make_folder, refusal
from repro.sweep import StopRequest

_OOM_COUNTER = Path("/proc/vmstat")


@dataclass(frozen=True)
class TrainCommand:
    """The `repro train` that every worker is, but for its list, name and device."""

    project: Project
    preset: Preset
    options: tuple[str, ...] = ()

    def worker(self, sweep_file: Path, name: str, device: Device) -> tuple[str, ...]:
        """The command of one worker, with this interpreter: `-P` keeps the folder it starts in out of it."""
        words = [sys.executable, "-P", "-m", "repro", "train", "--sweep", str(sweep_file), "--job", name]
        if device.host is None:
            words += ["--device-lock", device.lock_name]
        return (*words, *self._options(device))

    def line(self, run: str, device: Device) -> str:
        """A line to paste into a shell: it trains `run` alone on the device."""
        line = shlex.join(["repro", "train", run, *self._options(device)])
        return f"CUDA_VISIBLE_DEVICES={device.uuid} {line}" if device.uuid else line

    def _options(self, device: Device) -> list[str]:
        folders = ["--results", str(self.project.results), "--data-dir", str(self.project.data)]
        words = ["--preset", self.preset.name, *folders, "--device", device.kind]
        return [*words, "--threads", str(self.preset.threads), *self.options]


@dataclass(frozen=True)
class WorkerJob:
    """A worker to start: `argv` on `device`, stdout and stderr appended to `log`.

    `name` is unique; the worker's note carries it. `environment` is added to that of whoever starts it.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False)
    log: Path
    device: Device


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: its exit code (negative: the signal that killed it; None: nobody knows).

    `death` says in words how it died, where more is known than the code; `blameless` is an end that says
    nothing about its runs: a lost node, preemption, a time limit.
    """

    code: int | None
    death: str = ""
    blameless: bool = False


class Executor(ABC):
    """Starts workers and says when they have ended; what they achieved is read from the disk."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    @abstractmethod
    def start(self, jobs: Sequence[WorkerJob]) -> None:
        """Starts the jobs and returns at once; SetupError if they cannot be started."""

    @abstractmethod
    def poll(self, job: WorkerJob) -> JobEnd | None:
        """None while the job waits or runs."""

    @abstractmethod
    def stop(self, job: WorkerJob, urgency: StopRequest) -> None:
        """Passes on a stop request; the sweep's stop file, which workers read too, is already written."""

    @abstractmethod
    def kill(self, job: WorkerJob) -> None:
        """Ends the job and everything it started, at once."""

    def waits(self, job: WorkerJob) -> bool:
        """Whether the job is in a cluster's queue, for the first time or again: its silence means nothing."""
        return False

    def room(self) -> int | None:
        """How many more jobs may be started now; None: any number."""
        return None

    def say(self, text: str) -> None:
        """Has a line for the user: why jobs wait, that a service does not answer."""
        if text not in self._messages:
            self._messages.append(text)

    def messages(self) -> Sequence[str]:
        """The lines since the last call."""
        messages, self._messages = self._messages, []
        return messages


class LocalExecutor(Executor):
    """One process per job, in a session of its own: the terminal's Ctrl-C reaches only the supervisor."""

    def __init__(self) -> None:
        super().__init__()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._oom_kills: dict[str, int] = {}

    def start(self, jobs: Sequence[WorkerJob]) -> None:
        """Starts the processes; call it from the main thread: they die with the thread that started them."""
        for job in jobs:
            make_folder(job.log.parent)
            environment = {
                **os.environ,
                **job.environment,
                "REPRO_DIE_WITH_PARENT": str(os.getpid()),
                # A killed worker takes its buffers along; its last words are what the summary quotes.
                "PYTHONUNBUFFERED": "1",
            }
            self._oom_kills[job.name] = oom_kills()
            try:
                with job.log.open("ab") as log:
                    self._processes[job.name] = subprocess.Popen(
                        job.argv,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
            except OSError as error:
                raise refusal(f"cannot start {job.argv[0]} with its log at {job.log}", error) from None

    def poll(self, job: WorkerJob) -> JobEnd | None:
        """How the process ended; whatever else lives in its session is killed then."""
        process = self._processes[job.name]
        if process.returncode is None:
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            # Not reaped yet: until then no other process group can get this number.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        code = process.returncode
        if code >= 0:
            return JobEnd(code)
        if code == -signal.SIGKILL and oom_kills() > self._oom_kills[job.name]:
            return JobEnd(code, "killed by SIGKILL: the machine ran out of memory (the kernel's OOM killer)")
        return JobEnd(code, f"killed by {_signal_name(-code)}")

    def stop(self, job: WorkerJob, urgency: StopRequest) -> None:
        """SIGUSR2 or SIGTERM to the worker alone; it ends its children itself."""
        process = self._processes[job.name]
        # Not Popen.send_signal: it reaps a process that has ended, and `poll` needs it unreaped.
        if process.returncode is None:
            os.kill(process.pid, signal.SIGUSR2 if urgency == "drain" else signal.SIGTERM)

    def kill(self, job: WorkerJob) -> None:
        """SIGKILL to the worker's whole session."""
        process = self._processes[job.name]
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory so far; 0 where it does not tell."""
    try:
        counters = dict(line.split(" ", 1) for line in _OOM_COUNTER.read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line(log: Path, most: int = 500) -> str:
    """The last line of a worker's log that is not blank; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("repro: ")[:most] if lines else ""
