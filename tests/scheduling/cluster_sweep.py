"""A sweep of real, short training on a cluster, run beside the test that injects faults into it."""

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from sweep_bench import FAST, PRESET, Bench, wait_for

from repro.records import read_record
from repro.registry import Run
from repro.scheduling.events import Event, Requeued
from repro.scheduling.executors.base import Executor
from repro.scheduling.outcome import Outcome
from repro.scheduling.scheduler import Scheduler
from repro.scheduling.sentences import describe
from repro.scheduling.slots import remote_slots
from repro.scheduling.train_command import TrainCommand

PATIENCE = 120.0
LONG = 40
"""Epochs of a run that is to be met in the middle: some seconds of training."""


def some_runs(bench: Bench, count: int, epochs: int = LONG) -> list[Run]:
    """Runs of one column, `epochs` long."""
    losses = ("cross-entropy", "pedcc-s7.5-m0.35", "am-softmax-s10-m0.5", "scaled-bn-m1")
    return [
        bench.registry.parse(f"cifar100/resnet18/{loss}+epochs={epochs}/seed0") for loss in losses[:count]
    ]


class ClusterSweep:
    """A scheduler in a thread of its own."""

    def __init__(self, bench: Bench, runs: Sequence[Run], executor: Executor, host: str, jobs: int) -> None:
        self.bench = bench
        self.runs = runs
        self.events: list[Event] = []
        command = TrainCommand(
            preset=PRESET, results=bench.project.results, data=bench.project.data, threads=1
        )
        self._scheduler = Scheduler(
            [bench.examine(run) for run in runs],
            remote_slots(host, jobs, host, "cpu", 1),
            executor,
            command,
            bench.project,
            bench.examine,
            self.events.append,
            FAST,
        )
        self._outcome: list[Outcome] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._outcome.append(self._scheduler.run())

    def end(self) -> Outcome:
        """Waits for the outcome."""
        self._thread.join(PATIENCE)
        assert self._outcome, f"no outcome after {PATIENCE:g} s\n{self.said()}"
        return self._outcome[0]

    def said(self) -> str:
        """What the user saw."""
        return "\n".join(filter(None, map(describe, self.events)))

    def causes(self) -> list[str]:
        """Why runs were tried again, in order."""
        return [event.cause for event in self.events if isinstance(event, Requeued)]

    def wait_until_training(self, *runs: Run) -> None:
        for run in runs or self.runs:
            wait_for(
                lambda run=run: report(self.bench, run).get("epoch", 0) > 0, f"{run.id} to train", PATIENCE
            )


def report(bench: Bench, run: Run) -> dict:
    """The latest progress of a run; empty before there is one."""
    with suppress(FileNotFoundError):
        return json.loads(bench.project.run(PRESET, run.id).progress.read_text())
    return {}


def workers(results: Path) -> list[psutil.Process]:
    """The processes that train into `results`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if "train" in words and str(results) in words:
                found.append(process)
    return found


def assert_nothing_lost_or_duplicated(bench: Bench, runs: Sequence[Run]) -> None:
    """Each run has one valid record, none was set aside, and no process trains on."""
    for run in runs:
        paths = bench.project.run(PRESET, run.id)
        record = read_record(paths.record, run.id, PRESET)
        assert record is not None, f"{run.id} is lost"
        assert bench.examine(run).counts
        assert not paths.superseded.exists()
        assert not paths.quarantine.exists()
    records = {
        path for path in bench.project.preset_results(PRESET).rglob("seed*.json") if ".work" not in path.parts
    }
    assert records == {bench.project.run(PRESET, run.id).record for run in runs}
    wait_for(lambda: not workers(bench.project.results), "orphans to end")
