"""The sweep under test: real `repro run` and `repro train` processes on a results folder of their own."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from chaos.interposer import Interposer
from repro.cli.context import Context
from repro.errors import SetupError
from repro.paths import RunPaths
from repro.records import RunRecord, read_record
from repro.registry import Run, Selection

PRESET = "smoke"
NETWORK = "resnet18"
CORES = 2
"""The sweep is kept to so many cores, so that it is the same sweep on a large machine."""


@dataclass(frozen=True)
class Shape:
    """How many workers a supervisor starts, and how many runs at once each of them trains."""

    workers: int = 2
    runs_per_worker: int = 1

    def __str__(self) -> str:
        return f"workers: {self.workers}, runs at once in each: {self.runs_per_worker}"


SHAPES = (Shape(2), Shape(4), Shape(1, 2), Shape(2, 2))


_MARK = "REPRO_CHAOS_SUPERVISOR"
_TMPFS_BYTES = 24 * 1024 * 1024


@dataclass(frozen=True)
class Workload:
    """What is trained: `losses` of Table 1 on handwritten digits, `epochs` long, with checkpoints."""

    losses: tuple[str, ...]
    epochs: int = 20

    def context(self, results: Path) -> Context:
        """The project's registry with records below `results`."""
        context = Context.open(PRESET)
        return replace(context, project=replace(context.project, results=results.absolute()))

    def runs(self, context: Context) -> tuple[Run, ...]:
        """The runs, in the supervisor's order."""
        selected = Selection(
            tables=(1,), networks=(NETWORK,), losses=self.losses, seeds=(0,), axes=(("epochs", self.epochs),)
        )
        return context.registry.select_runs(selected, context.preset)

    def selection(self) -> list[str]:
        """The same on the command line of `repro run`."""
        words = ["--table", "1", "--network", NETWORK, "--seed", "0", "--set", f"epochs={self.epochs}"]
        return words + [word for loss in self.losses for word in ("--loss", loss)]


class SmallDisk(AbstractContextManager["SmallDisk"]):
    """A folder on a small file system of its own where this process may mount one; else a plain folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False
        self._ballast = folder / ".ballast"

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True)
        if os.geteuid() == 0:
            options = f"size={_TMPFS_BYTES},mode=0700"
            command = ["mount", "-t", "tmpfs", "-o", options, "repro-chaos", str(self.folder)]
            try:
                self.mounted = subprocess.run(command, capture_output=True).returncode == 0
            except FileNotFoundError:
                self.mounted = False
        return self

    def __exit__(self, *error: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.folder], check=True)

    def fill(self) -> None:
        """Leaves not a byte free."""
        block = bytes(1 << 16)
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while file.write(block):
                    continue
            except OSError:
                return

    def free(self) -> None:
        """Makes room again."""
        self._ballast.unlink(missing_ok=True)


@dataclass(frozen=True)
class SweepProcess:
    """A process of the sweep that is alive."""

    pid: int
    supervisor: int

    def send(self, number: signal.Signals) -> bool:
        """Whether it was still there to get the signal."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


@dataclass
class Sweep:
    """The supervisors on one results folder, by number, and every process that descends from them."""

    workload: Workload
    results: Path
    interposer: Interposer
    log: Path
    context: Context = field(init=False)
    runs: tuple[Run, ...] = field(init=False)
    supervisors: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = self.workload.context(self.results)
        self.runs = self.workload.runs(self.context)

    def paths(self, run: Run) -> RunPaths:
        """Where a run's files are."""
        return self.context.project.run(PRESET, run.id)

    def record(self, run: Run) -> RunRecord | None:
        """The run's record; raises IntegrityError if it is not valid."""
        return read_record(self.paths(run).record, run.id, PRESET)

    def start(self, number: int, shape: Shape = SHAPES[0], host: str | None = None) -> None:
        """Starts a supervisor that nobody else has the number of; it believes that it is on `host`."""
        argv = [sys.executable, "-m", "repro", "run", "--preset", PRESET, *self.workload.selection()]
        argv += ["--results", str(self.results), "--checkpoint-interval", "0"]
        argv += ["--per-gpu", str(shape.runs_per_worker)]
        environment = {
            **_environment(self.context),
            **self.interposer.environment(self.results),
            "REPRO_CHAOS_CORES": str(shape.workers),
            **({"REPRO_CHAOS_HOST": host} if host else {}),
        }
        with self.log.open("ab") as log:
            self.supervisors[number] = subprocess.Popen(
                argv,
                env={**environment, _MARK: str(number)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_few_cores,
            )

    def ask_to_stop(self, now: bool) -> set[int]:
        """Runs `repro stop`; the numbers of the supervisors that it asked."""
        argv = [sys.executable, "-m", "repro", "stop", "--preset", PRESET, "--results", str(self.results)]
        lists = [path.stem for path in self.context.project.sweeps(PRESET).glob("*.json")]
        with self.log.open("ab") as log:
            environment = _environment(self.context)
            done = subprocess.run(argv + ["--now"] * now, env=environment, stdout=log, stderr=log)
        if done.returncode:
            return set()  # a full disk
        # A list is named after the process that wrote it.
        pids = {int(name.rpartition("-")[2]) for name in lists}
        return {process.supervisor for process in self.running() if process.pid in pids}

    def running(self) -> list[SweepProcess]:
        """The supervisors that have not ended; those that have are reaped."""
        return [
            SweepProcess(process.pid, number)
            for number, process in self.supervisors.items()
            if process.poll() is None
        ]

    def processes(self, supervisor: int | None = None) -> list[SweepProcess]:
        """Everything alive that one supervisor, or any, started, itself included: told by its environment."""
        found = []
        for entry in Path("/proc").iterdir():
            number = supervisor_of(int(entry.name)) if entry.name.isdigit() else None
            if number in self.supervisors and supervisor in (None, number):
                found.append(SweepProcess(int(entry.name), number))
        return found

    def kill(self, processes: Sequence[SweepProcess]) -> None:
        """Ends what should have ended by itself."""
        for process in processes:
            process.send(signal.SIGKILL)
        deadline = time.monotonic() + 30
        while any(supervisor_of(process.pid) is not None for process in processes):
            if time.monotonic() > deadline:
                raise SetupError(f"processes of the sweep outlive SIGKILL: {[p.pid for p in processes]}")
            time.sleep(0.05)


def supervisor_of(pid: int) -> int | None:
    """The number of the supervisor that a living process descends from; None for any other process."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    for word in content.split(b"\0"):
        if word.startswith(_MARK.encode() + b"="):
            return int(word.partition(b"=")[2])
    return None


def train_alone(workload: Workload, results: Path, interposer: Interposer, log: Path) -> dict[str, RunRecord]:
    """Every run's record as an undisturbed process makes it, and a journal of all its calls.

    Raises SetupError, with the log's place, if one cannot be trained even so.
    """
    context = workload.context(results)
    runs = [run.id for run in workload.runs(context)]
    argv = [sys.executable, "-m", "repro", "train", *runs, "--preset", PRESET, "--device", "cpu"]
    argv += [
        "--results",
        str(results),
        "--threads",
        str(context.preset.threads),
        "--checkpoint-interval",
        "0",
    ]
    environment = {**_environment(context), **interposer.environment(results, trace=True)}
    with log.open("ab") as output:
        subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    records: dict[str, RunRecord] = {}
    for run in runs:
        record = read_record(context.project.run(PRESET, run).record, run, PRESET)
        if record is None:
            raise SetupError(f"{run} cannot be trained even undisturbed; see {log}")
        records[run] = record
    return records


def _environment(context: Context) -> dict[str, str]:
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(limits, str(context.preset.threads)),
        "REPRO_ROOT": str(context.project.root),
        # Bitwise equality is promised on the CPU.
        "CUDA_VISIBLE_DEVICES": "",
        "NO_COLOR": "1",
    }


def _few_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def tracebacks(folder: Path) -> dict[str, int]:
    """The last line of every traceback in the logs and attempts below `folder`, and how often it came."""
    count: Counter[str] = Counter()
    for file in (*folder.rglob("*.log"), *folder.rglob("error.txt")):
        inside = False
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Traceback (most recent call last)"):
                inside = True
            elif inside and line and not line.startswith((" ", "\t")):
                count[line[:200].replace(str(folder), "…")] += 1
                inside = False
    return dict(count)
