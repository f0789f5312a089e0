"""A project with results of its own, and real records in it: trained on generated data, seconds each."""

from pathlib import Path

from repro.cli.context import Context
from repro.records import RunRecord, read_record
from repro.sweep import Sweep, plan_sweep
from repro.training.run_attempt import TrainOptions
from repro.training.signals import Stop
from repro.training.worker import Worker

ROOT = Path(__file__).resolve().parent.parent
RUN = "cifar100/resnet18/scaled-bn-m1/seed0"
OTHER = "cifar100/resnet18/cross-entropy/seed0"


def smoke_context(monkeypatch_or_none, results: Path) -> Context:
    """The project's registry and the smoke preset, with records and figures below `results`."""
    if monkeypatch_or_none is not None:
        monkeypatch_or_none.setenv("REPRO_ROOT", str(ROOT))
    return Context.open("smoke", results=results)


def sweep_of(context: Context, *runs: str, workers: int = 1) -> Sweep:
    """A sweep of these runs, with the baseline of this moment."""
    parsed = [context.registry.parse(run) for run in runs]
    fingerprints = context.fingerprints(parsed)
    return plan_sweep(parsed, context.registry, context.preset, context.project, fingerprints, workers)


def worker_of(context: Context, sweep: Sweep, stop: Stop | None = None, sweep_file=None, **options) -> Worker:
    """A worker for the sweep in this process, on the CPU."""
    asked = TrainOptions(device="cpu", **options)
    return Worker(sweep, context.registry, context.preset, context.project, asked, stop or Stop(), sweep_file)


def train_here(context: Context, *runs: str, stop: Stop | None = None, **options) -> int:
    """Trains runs in this process; the exit code."""
    return worker_of(context, sweep_of(context, *runs), stop, **options).run()


def record_of(context: Context, run: str) -> RunRecord:
    """The committed record of a run; fails if there is none."""
    record = read_record(context.project.run(context.preset.name, run).record, run, context.preset.name)
    assert record is not None, f"{run} has no record"
    return record
