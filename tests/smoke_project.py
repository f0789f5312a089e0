"""A project with results of its own, and real records in it: trained on generated data, seconds each."""

from pathlib import Path

from repro.cli.context import Context
from repro.commands.train import train
from repro.commands.worker import TrainOptions
from repro.records import RunRecord, read_record

ROOT = Path(__file__).resolve().parent.parent
RUN = "cifar100/resnet18/scaled-bn-m1/seed0"
OTHER = "cifar100/resnet18/cross-entropy/seed0"


def smoke_context(monkeypatch_or_none, results: Path) -> Context:
    """The project's registry and the smoke preset, with records and figures below `results`."""
    if monkeypatch_or_none is not None:
        monkeypatch_or_none.setenv("REPRO_ROOT", str(ROOT))
    return Context.open("smoke", results=results)


def train_here(context: Context, *runs: str, say=lambda line: None, stop=None, **options) -> int:
    """Trains runs in this process."""
    return train(
        runs,
        context.registry,
        context.preset,
        context.project,
        TrainOptions(device="cpu", **options),
        say=say,
        stop=stop,
    )


def record_of(context: Context, run: str) -> RunRecord:
    """The committed record of a run; fails if there is none."""
    record = read_record(context.project.run(context.preset.name, run).record, run, context.preset.name)
    assert record is not None, f"{run} has no record"
    return record
