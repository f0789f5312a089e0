"""A project with results of its own, and real records in it: trained on few images, in a second each."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from short_project import PROJECT

from repro import plugins, signature
from repro.cli.context import Context
from repro.records import RunRecord, read_record
from repro.scheduling.estimate import is_to_do
from repro.signals import Stop
from repro.sweep import Sweep, plan_sweep
from repro.training.process import TrainOptions
from repro.training.worker import Worker

ROOT = Path(__file__).resolve().parent.parent
RUN = "cifar100/resnet18/scaled-bn-m1/seed0"
OTHER = "cifar100/resnet18/cross-entropy/seed0"
PATIENCE = 120.0  # seconds


def smoke_context(monkeypatch_or_none, results: Path) -> Context:
    """The project's registry and the short smoke preset, with records and figures below `results`."""
    with pytest.MonkeyPatch.context() as here:
        (monkeypatch_or_none or here).setenv("REPRO_ROOT", str(PROJECT))
        return Context.open("smoke", results=results)


def sweep_of(context: Context, *runs: str, workers: int = 1) -> Sweep:
    """A sweep of these runs, with the baseline of this moment."""
    parsed = [context.registry.parse(run) for run in runs]
    fingerprints = context.fingerprints(parsed)
    return plan_sweep(parsed, context.registry, context.preset, context.project, fingerprints, workers)


def worker_of(context: Context, sweep: Sweep, stop: Stop | None = None, sweep_file=None, **options) -> Worker:
    """A worker for the sweep in this process, on the CPU."""
    asked = TrainOptions(**{"device": "cpu", **options})
    return Worker(sweep, context.registry, context.preset, context.project, asked, stop or Stop(), sweep_file)


def train_here(
    context: Context,
    *runs: str,
    say: Callable[[str], None] = lambda line: None,
    stop: Stop | None = None,
    **options,
) -> int:
    """Trains those of the runs that are not done, in this process; the exit code of `repro train`."""
    states = context.states([context.registry.parse(run) for run in runs])
    to_do = [state.run for state in states if is_to_do(state, "keep")]
    worker = worker_of(context, sweep_of(context, *(run.id for run in to_do)), stop, **options)
    worker.warn = say
    return worker.run()


class _StopLater(Stop):
    """Asks for a stop some steps after a run's first checkpoint."""

    def __init__(self, attempts: Path) -> None:
        self._attempts = attempts
        self._looks = 30  # a worker looks about five times per step
        super().__init__()

    @property
    def now(self) -> bool:
        self._looks -= any(self._attempts.glob("*/checkpoint-*.pt"))
        return self._looks < 0

    @now.setter
    def now(self, value: bool) -> None:
        assert not value


def interrupt(context: Context, run: str, **options) -> None:
    """Trains a run and stops it by request: it leaves a checkpoint of its first epoch and one of a later."""
    attempts = context.project.run(context.preset.name, run).attempts
    assert train_here(context, run, stop=_StopLater(attempts), checkpoint_interval=0.0, **options) == 75
    assert len(list(attempts.glob("*/checkpoint-*.pt"))) == 2


def record_of(context: Context, run: str) -> RunRecord:
    """The committed record of a run; fails if there is none."""
    record = read_record(context.project.run(context.preset.name, run).record, run, context.preset.name)
    assert record is not None, f"{run} has no record"
    return record


def start(*words: object, cwd: Path = PROJECT, environment=None, **options) -> subprocess.Popen:
    """`repro WORDS…` as a process of its own on the short project, stderr to be read as text."""
    options = {"stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(
        [sys.executable, "-m", "repro", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        **options,
    )


def repro(*words: object, check: int | None = None, **options) -> subprocess.CompletedProcess:
    """`repro WORDS…` to its end; with `check`, fails unless it exits so."""
    process = start(*words, stdout=subprocess.PIPE, **options)
    output, errors = process.communicate()
    if check is not None:
        assert process.returncode == check, errors
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def edit(path: Path, old: str, new: str) -> None:
    """Replaces the first `old` in a file by `new`; fails where there is none."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def forget_code() -> None:
    """A process reads each file of code once; a test that changes one reads it again."""
    for module in (signature, plugins):
        for cached in vars(module).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()


def wait_for(condition: Callable[[], object], what: str | Callable[[], str], patience: float = PATIENCE):
    """Polls until `condition()` and returns what it gave; fails by name, as it is then, when that never comes."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() >= deadline:
            pytest.fail(f"waited {patience:g} s in vain for {what if isinstance(what, str) else what()}")
        time.sleep(0.02)
    return value
