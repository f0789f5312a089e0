"""A sweep on a bench: the project's registry, results in a temporary folder, workers that only pretend.

The pretended worker speaks the real one's protocol (locks, attempts, progress, commits, signals, exit
codes) and does to each run what `behaviour.json` says: an action for each attempt, the last one repeated.

    done             commits a record
    error:TEXT       notes TEXT as its failure and goes on with the next run
    crowded          runs out of GPU memory unless it has the device to itself
    lost:UUID        finds its device broken if it is this one
    further          dies of SIGKILL, and has got further than the attempt before
    stuck            hears nothing and lets no other thread run any more; has started a child
    wait             trains until the file `release` appears or it is told to stop, then commits
    deaf             reports no more, and goes on until it is killed, whatever it is told
    fail:MESSAGE     notes RuntimeError: MESSAGE and goes on with the next run
    data:MESSAGE     ends with exit code 3 and MESSAGE as its last words
    raise:MESSAGE    ends with a traceback before any attempt
    kill             dies of SIGKILL in the middle of the attempt
    exit:N           ends with exit code N in the middle of the attempt
    quit:N           ends with exit code N before the attempt
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# Started as a script it has its own folder alone.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from pretended_environment import PRETENDED, correct_images

from repro.commit import RunBusyError, begin_attempt, commit_record, note_attempt, run_lock, write_whole
from repro.config import Preset
from repro.paths import Project
from repro.record_state import RunState, assess_run
from repro.records import Attempt, DataSummary, Epoch, Probes, Provenance, Result, RunRecord, Signature
from repro.registry import Registry, Run, Selection
from repro.scheduling.executors.base import Executor, Job
from repro.scheduling.executors.inline import InlineExecutor, StopRequest
from repro.scheduling.executors.local import LocalExecutor
from repro.scheduling.scheduler import Pace, Scheduler
from repro.scheduling.slots import Slot, find_slots
from repro.scheduling.train_command import TrainCommand
from repro.signature import code_hash, config_hash

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PRESET = "smoke"
FAST = Pace(poll=0.02, look=0.05, checkpoint=20.0, held=0.1, full=0.1)
PATIENCE = 60.0


@dataclass(frozen=True)
class Bench:
    """One results folder and everything needed to sweep into it."""

    project: Project
    registry: Registry
    preset: Preset

    @classmethod
    def at(cls, results: Path) -> "Bench":
        registry = Registry.load(ROOT / "experiments")
        project = Project(ROOT, results, results / "figures", results / "data")
        return cls(project, registry, registry.preset(PRESET))

    def runs(
        self, count: int, dataset: str = "cifar100", network: str = "resnet18", seeds: tuple[int, ...] = (0,)
    ) -> list[Run]:
        """The first `count` runs of a column."""
        selection = Selection(datasets=(dataset,), networks=(network,), seeds=seeds)
        return list(self.registry.select_runs(selection, self.preset))[:count]

    def script(self, actions: dict[str, list[str]]) -> None:
        """Says what attempts at each run come to; a run not named is simply done."""
        self.project.results.mkdir(parents=True, exist_ok=True)
        content = {"actions": actions}
        write_whole(self.project.results / "behaviour.json", json.dumps(content).encode())

    def release(self) -> None:
        """Lets the runs that wait go on."""
        (self.project.results / "release").touch()

    def examine(self, run: Run) -> RunState:
        return assess_run(run, self.registry.config(run, self.preset), self.preset, self.project, None)

    def command(self, stale: str = "keep") -> TrainCommand:
        return TrainCommand(
            preset=PRESET,
            results=self.project.results,
            data=self.project.data,
            threads=1,
            stale=stale,
            program=(sys.executable, str(HERE / "fake_worker.py")),
        )

    def scheduler(
        self,
        runs: Sequence[Run],
        executor: Executor | None = None,
        slots: int | Sequence[Slot] = 1,
        listener: Callable[[object], None] = lambda event: None,
        stale: str = "keep",
        pace: Pace = FAST,
        **options: object,
    ) -> Scheduler:
        if not (self.project.results / "behaviour.json").exists():
            self.script({})
        return Scheduler(
            [self.examine(run) for run in runs],
            cpu_slots(slots) if isinstance(slots, int) else slots,
            executor or LocalExecutor(),
            self.command(stale),
            self.project,
            self.examine,
            listener,
            pace,
            **options,
        )

    def inline(self) -> InlineExecutor:
        """Workers in this process: quick, and what they cannot do (die) they return."""

        def work(job: Job, asked: Callable[[], StopRequest]) -> int:
            with job.log.open("a") as log:
                say = lambda text: print(text, file=log, flush=True)  # noqa: E731
                return pretend(self, job.runs, asked, say, job.slot.co_tenants)

        return InlineExecutor(work)

    def attempts(self, run: Run) -> list[str]:
        """The outcome that each attempt at the run has noted."""
        folder = self.project.run(PRESET, run.id).attempts
        numbers = sorted(int(entry.name) for entry in folder.iterdir()) if folder.is_dir() else []
        return [json.loads((folder / str(n) / "attempt.json").read_text())["outcome"] for n in numbers]

    def put_record(self, run: Run, **changes: object) -> Path:
        """A record that is there before the sweep; `changes` are make_record's."""
        path = self.project.run(PRESET, run.id).record
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make_record(self, run, **changes).to_json(), encoding="utf-8")
        return path


def cpu_slots(count: int) -> tuple[Slot, ...]:
    return find_slots(1, "cpu", cpu_slots=count)


def wait_for(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Polls until `condition()`; fails by name when it never comes true."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience:g} s in vain for {what}"
        time.sleep(0.02)


def make_record(
    bench: Bench,
    run: Run,
    code: str | None = None,
    accuracy: float | None = 40.0,
    seconds: float = 492.0,
    device: str = "a bench",
    images_per_second: float = 1000.0,
    co_tenants: int = 0,
    config_signature: str | None = None,
) -> RunRecord:
    """A valid record, of today's code unless told; without an accuracy the run has diverged."""
    config = bench.registry.config(run, bench.preset)
    now = datetime(2025, 3, 1, 8, tzinfo=UTC)
    done = accuracy is not None
    epoch = Epoch(
        epoch=0,
        lr=0.1,
        train_loss=1.0 if done else None,
        train_accuracy=50.0 if done else None,
        gradient_at_logits=None,
        gradient_at_features=None,
        feature_norm=None,
        gradient_times_feature=None,
        test_loss=1.0 if done else None,
        test_accuracy=accuracy,
        seconds=seconds,
    )
    return RunRecord(
        run=run.id,
        preset=PRESET,
        signature=Signature(
            config=config_signature or config_hash(config), data="d" * 64, code=code or code_hash(config)
        ),
        config=config,
        data=DataSummary(
            name=run.cell.dataset,
            title="pretended",
            generated=True,
            partial=None,
            sources={},
            preparation_version=1,
            arrays={},
            classes=10,
            train_images=160,
            test_images=80,
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
        ),
        result=Result(
            accuracy=accuracy,
            correct=round(10 * accuracy) if done else 0,
            total=1000 if done else 0,
            test_loss=1.0 if done else None,
            best_accuracy=accuracy,
            best_epoch=0 if done else None,
            correct_images=correct_images(round(10 * accuracy), 1000) if done else None,
            diverged_in=None if done else 0,
        ),
        curve=(epoch,),
        probes=Probes(logits=None, weight_norms=None),
        provenance=Provenance(
            **{**dict(PRETENDED), "device": device},
            precision="fp32",
            threads=1,
            deterministic=False,
            accelerations=(),
            runs_on_device=co_tenants + 1,
            images_per_second=images_per_second,
            peak_memory_bytes=0,
            energy_joules=None,
            attempts=(),
            started=now,
            ended=now,
        ),
    )


class _EndedError(Exception):
    """The worker ends here, with this exit code."""


def pretend(
    bench: Bench,
    run_ids: Sequence[str],
    asked: Callable[[], StopRequest],
    say: Callable[[str], None],
    co_tenants: int = 0,
) -> int:
    """Trains the runs as the script says and returns the exit code; a negative one stands for a signal."""
    content = json.loads((bench.project.results / "behaviour.json").read_text())
    failed = False
    for run_id in run_ids:
        if asked():
            return 75
        run = bench.registry.parse(run_id)
        paths = bench.project.run(PRESET, run_id)
        try:
            with run_lock(paths):
                if bench.examine(run).counts and not content.get("redo"):
                    continue
                failed |= not _attempt(bench, run, content, asked, say, co_tenants)
        except RunBusyError:
            say(f"{run_id}: another process is training it; skipped")
        except _EndedError as end:
            return end.args[0]
    return 1 if failed else 0


def _attempt(bench: Bench, run: Run, content: dict, asked, say, co_tenants: int) -> bool:
    paths = bench.project.run(PRESET, run.id)
    actions = content["actions"].get(run.id) or content["actions"].get("*") or ["done"]
    taken = len(list(paths.attempts.iterdir())) if paths.attempts.is_dir() else 0
    action, _, argument = actions[min(taken, len(actions) - 1)].partition(":")
    if action == "data":
        say(f"repro: {argument}")
        raise _EndedError(3)
    if action == "raise":
        say(f"Traceback (most recent call last):\nRuntimeError: {argument}")
        raise _EndedError(1)
    if action == "quit":
        raise _EndedError(int(argument))
    folder = begin_attempt(paths)
    number = int(folder.name)
    _note(folder, "running", 10 * taken if action == "further" else 0)
    _report(paths, run, number, asked)
    if action == "fail":
        write_whole(folder / "error.txt", b"Traceback: pretended\n")
        _note(folder, f"failed: RuntimeError: {argument}")
        say(f"{run.id}: failed: RuntimeError: {argument}")
        return False
    error = argument if action == "error" else None
    if action == "crowded" and co_tenants:
        error = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
    if action == "lost" and os.environ["CUDA_VISIBLE_DEVICES"] == argument:
        error = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    if error:
        _note(folder, f"failed: {error}")
        return False
    if action in ("kill", "further"):
        raise _EndedError(-signal.SIGKILL)
    if action == "stuck":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        write_whole(bench.project.results / "pids", f"{os.getpid()} {child.pid}".encode())
        # A call into C that keeps the interpreter's lock.
        ctypes.PyDLL(None).sleep(600)
    if action == "exit":
        raise _EndedError(int(argument))
    while action == "deaf":
        time.sleep(0.01)
    while action == "wait" and not (bench.project.results / "release").exists():
        if asked() is StopRequest.TERMINATE:
            _note(folder, "interrupted")
            raise _EndedError(75)
        time.sleep(0.01)
    _note(folder, "done")
    record = make_record(bench, run)
    commit_record(
        record,
        paths,
        folder,
        counts=lambda present: present.signature == record.signature and not content.get("redo"),
    )
    return True


def _note(folder: Path, outcome: str, step: int = 0) -> None:
    now = datetime.now(UTC)
    attempt = Attempt(number=int(folder.name), started=now, ended=now, outcome=outcome, resumed_at_step=step)
    note_attempt(folder, attempt)


def _report(paths, run: Run, number: int, asked) -> None:
    content = {
        "run": run.id,
        "attempt": number,
        "state": "training",
        "epoch": 1,
        "epochs": 3,
        "step": 2,
        "steps": 4,
        "images_per_second": 1234.5,
        "train_loss": 2.0,
        "test_accuracy": 12.3,
        "time": time.time(),
        "pid": os.getpid(),
    }
    write_whole(paths.progress, json.dumps(content).encode())
