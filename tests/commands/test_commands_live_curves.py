"""`--log`: what TensorBoard's own reader, a CSV and a logger of the user's own show are the record's curves."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from smoke_project import RUN, interrupt, record_of, train_here

from repro.errors import OwnCodeError, SetupError
from repro.signature import code_hash, training_modules
from repro.training.live_curves import LiveCurves, find_logger
from repro.training.loop import Progress

OWN = """
class MyLogger:
    def __init__(self, folder):
        self.path = folder.with_suffix(".txt")

    def say(self, *words):
        with self.path.open("a") as file:
            print(*words, file=file)

    def start(self, run_id, epoch):
        self.say("start", run_id, epoch)

    def epoch(self, run_id, epoch, values):
        self.say("epoch", epoch, *values)

    def close(self):
        self.say("closed")
"""


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value) as TensorBoard shows them."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(module, reason="the extra is not installed").EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }


def expected(record) -> dict[str, list[tuple[int, float | None]]]:
    fields = {
        f"{what}/{split}": f"{split}_{what}" for what in ("loss", "accuracy") for split in ("train", "test")
    }
    fields |= {f"gradient/at the {where}": f"gradient_at_{where}" for where in ("logits", "features")}
    return {
        tag: [(epoch.epoch + 1, pytest.approx(getattr(epoch, field), rel=1e-6)) for epoch in record.curve]
        for tag, field in {**fields, "learning rate": "lr"}.items()
    }


def read_csv(context) -> list[dict[str, str]]:
    path = context.project.live_curves("smoke", "csv") / f"{RUN}.csv"
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def own(context, tmp_path):
    """The context of a project with this mylog.py beside its TOMLs."""

    def write(text: str):
        shutil.copytree(context.project.experiments, tmp_path / "own" / "experiments")
        (tmp_path / "own" / "experiments" / "mylog.py").write_text(text)
        return replace(context, project=replace(context.project, root=tmp_path / "own"))

    return write


def progress(epoch: int, loss: float, accuracy: float) -> Progress:
    return Progress("training", epoch, 9, 0, 5, 100.0, loss, accuracy)


@pytest.mark.parametrize("stopped", [False, True])
def test_tensorboard_shows_each_epoch_of_the_record_once_also_of_a_resumed_run(context, trained, stopped):
    folder = context.project.live_curves("smoke", "tensorboard") / RUN
    if stopped:
        interrupt(context, RUN, log="tensorboard")
    assert train_here(context, RUN, log="tensorboard") == 0
    record = record_of(context, RUN)
    assert (record.provenance.attempts[-1].resumed_at_step > 0) == stopped
    assert len(list(folder.iterdir())) == 1 + stopped
    found = read_events(folder)
    assert found.pop("speed/images per second")
    assert found == expected(record)
    assert record.comparable() == record_of(trained, RUN).comparable(), "the record is that of a run without"


def test_a_csv_has_a_line_per_epoch_with_the_records_numbers_also_of_a_resumed_run(context):
    interrupt(context, RUN, log="csv")
    before = read_csv(context)
    assert train_here(context, RUN, log="csv") == 0
    record, rows = record_of(context, RUN), read_csv(context)
    assert 0 < len(before) < len(rows) == len(record.curve)
    for epoch, row in zip(record.curve, rows, strict=True):
        assert int(row.pop("epoch")) == epoch.epoch + 1
        row.pop("images_per_second")
        numbers = epoch.model_dump(exclude={"epoch"})
        assert {name: float(text) if text else None for name, text in row.items()} == numbers


def test_live_curves_are_off_by_default_and_in_no_hash_of_the_training_code(trained):
    assert not any(trained.project.live_curves("smoke", name).exists() for name in ("tensorboard", "csv"))
    config = trained.registry.config(trained.registry.parse(RUN), trained.preset)
    assert record_of(trained, RUN).signature.code == code_hash(config)
    assert not {"repro.training.tensorboard", "repro.training.live_curves"} & set(training_modules(config))


def test_an_epoch_is_there_as_soon_as_the_next_begins(context):
    curves = LiveCurves("csv", context.project, "smoke", RUN, 2, pytest.fail)
    curves(progress(0, 0.0, 0.0))
    curves(progress(1, 4.5, 0.0))
    assert [(row["epoch"], row["train_loss"]) for row in read_csv(context)] == [("1", "4.5")]
    curves(progress(1, 4.5, 0.0))
    curves(progress(2, 4.25, 12.5))
    shown = [(row["epoch"], row["train_loss"], row["test_accuracy"]) for row in read_csv(context)]
    assert shown == [("1", "4.5", ""), ("2", "4.25", "12.5")], "an epoch not evaluated has no accuracy"


def test_the_users_own_logger_gets_each_value_once_and_is_closed(own):
    context = own(OWN)
    assert train_here(context, RUN, log="mylog.py:MyLogger") == 0
    text = context.project.live_curves("smoke", "MyLogger").with_suffix(".txt").read_text()
    first, *lines, last = text.splitlines()
    assert (first, last) == (f"start {RUN} 1", "closed")
    told = [(line.split()[1], name) for line in lines for name in line.split()[2:]]
    assert len(set(told)) == len(told)
    assert {name for epoch, name in told if epoch == "1"} >= {"train_loss", "train_accuracy", "lr"}


@pytest.mark.parametrize("method", ["__init__", "start", "epoch", "close"])
def test_a_logger_that_fails_is_named_once_and_stops_nothing(own, method):
    broken = OWN.replace(
        f"def {method}(self", f"def {method}(self, *_):\n        1 / 0\n\n    def not_{method}(self"
    )
    context = own(broken)
    said: list[str] = []
    assert train_here(context, RUN, say=said.append, log="mylog.py:MyLogger") == 0
    (line,) = [line for line in said if "its live curves end here" in line]
    assert "ZeroDivisionError: division by zero (mylog.py, line" in line
    assert record_of(context, RUN)


def test_a_logger_that_cannot_be_used_is_an_error_before_anything_trains(monkeypatch, own):
    context = own(OWN.replace("def close", "def shut"))
    folder = context.project.experiments
    with pytest.raises(OwnCodeError, match="it lacks close"):
        train_here(context, RUN, log="mylog.py:MyLogger")
    with pytest.raises(
        OwnCodeError, match=r"unknown logger 'wandb'; there are: tensorboard, csv, or your own"
    ):
        find_logger("wandb", folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install '\.\[tensorboard\]'"):
        find_logger("tensorboard", folder)
    assert not context.project.run("smoke", RUN).attempts.exists()
