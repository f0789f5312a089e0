"""What the scheduler costs: `scheduling_cost.py [--runs N] [--queued N] [--seconds S] [--project FOLDER]`.

Prints JSON: the seconds a run that a sweep of pretended workers takes longer than the same commands one after
another; the share of a core that a scheduler uses whose workers are all busy, with so many runs queued; with
`--project` (made by many_records.py) how long it takes from reading its records to the first worker.
Needs tests/scheduling on PYTHONPATH.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sweep_bench import Bench, cpu_slots

from repro.cli.context import Context
from repro.paths import Project
from repro.registry import Registry, Run, Selection
from repro.scheduling.events import Started
from repro.scheduling.executors.base import Executor, Job
from repro.scheduling.scheduler import DEFAULT_PACE, Scheduler


class Busy(Executor):
    """Jobs that train until they are told to stop, and are no processes."""

    def __init__(self) -> None:
        self.ended: set[int] = set()

    def submit(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)

    def poll(self, job: Job) -> int | None:
        return 75 if job.number in self.ended else None

    def drain(self, job: Job) -> None:
        self.ended.add(job.number)

    terminate = kill = drain


def runs_of(bench: Bench, count: int) -> list[Run]:
    """Runs that share no worker: each has a seed of its own."""
    return [bench.registry.parse(f"cifar100/resnet18/cross-entropy/seed{seed}") for seed in range(count)]


def overhead(folder: Path, count: int) -> dict[str, float]:
    """Seconds a run on one slot, with the scheduler and without."""
    swept, bare = Bench.at(folder / "swept"), Bench.at(folder / "bare")
    runs = runs_of(swept, count)
    bare.script({})
    scheduler = swept.scheduler(runs, pace=DEFAULT_PACE)
    began, used = time.monotonic(), time.process_time()
    assert scheduler.run().exit_code == 0
    with_scheduler, cpu = time.monotonic() - began, time.process_time() - used
    (slot,) = cpu_slots(1)
    began = time.monotonic()
    for run in runs:
        environment = {**os.environ, "REPRO_DIE_WITH_PARENT": str(os.getpid())}
        argv = bare.command().argv((run.id,), slot)
        subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL)
    without = time.monotonic() - began
    return {
        "runs": count,
        "seconds_a_run": with_scheduler / count,
        "seconds_a_run_without_scheduler": without / count,
        "scheduling_seconds_a_run": (with_scheduler - without) / count,
        "scheduler_cpu_seconds_a_run": cpu / count,
    }


def idle(folder: Path, queued: int, seconds: float) -> dict[str, float]:
    """The share of a core while two workers are busy and the others wait."""
    bench = Bench.at(folder / "idle")
    runs = runs_of(bench, queued)
    scheduler = bench.scheduler(runs, Busy(), 2, pace=DEFAULT_PACE, deadline=time.monotonic() + seconds)
    began, used = time.monotonic(), time.process_time()
    assert scheduler.run().interrupted == "budget"
    return {
        "queued": queued,
        "seconds": time.monotonic() - began,
        "share_of_a_core": (time.process_time() - used) / (time.monotonic() - began),
    }


def start(root: Path) -> dict[str, float]:
    """From the first record read to the first worker."""
    project = Project(root, root / "results", root / "figures", root / "data")
    registry = Registry.load(project.experiments)
    context = Context(project, registry, registry.preset("many"))
    bench = Bench(project, registry, context.preset)
    runs: Sequence[Run] = registry.select_runs(Selection(), context.preset)
    began = time.monotonic()
    survey = context.survey(runs)
    read = time.monotonic() - began
    first: list[float] = []

    def listener(event: object) -> None:
        if isinstance(event, Started):
            first.append(time.monotonic() - began)

    Scheduler(
        survey.states,
        cpu_slots(2),
        Busy(),
        bench.command(),
        project,
        bench.examine,
        listener,
        deadline=time.monotonic() + 20,
    ).run()
    return {
        "runs": len(runs),
        "to_do": len(survey.to_do("keep")),
        "seconds_to_read": read,
        "seconds_to_first_worker": first[0],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--project", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = {
            "a run": overhead(Path(folder), asked.runs),
            "idle": idle(Path(folder), asked.queued, asked.seconds),
        }
    if asked.project:
        measured["start"] = start(asked.project.absolute())
    print(json.dumps(measured, indent=1))
