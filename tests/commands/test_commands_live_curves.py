"""`--log tensorboard`: the curves that TensorBoard's own reader finds are those of the record."""

from pathlib import Path

import pytest
from smoke_project import RUN, interrupt, record_of, repro, train_here

from repro.errors import SetupError
from repro.signature import code_hash, training_modules
from repro.training.loop import Progress
from repro.training.tensorboard import LiveCurves, require_tensorboard

Reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the extra is not installed"
).EventAccumulator


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value) as TensorBoard shows them."""
    reader = Reader(str(folder))
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


def progress(epoch: int, loss: float, accuracy: float) -> Progress:
    return Progress("training", epoch, 9, 0, 5, 100.0, loss, accuracy)


def test_a_run_has_its_curves_and_the_record_that_it_has_without_them(context, trained):
    assert train_here(context, RUN, log="tensorboard") == 0
    record = record_of(context, RUN)
    found = read(context.project.live_curves("smoke", RUN))
    assert found.pop("speed/images per second")
    assert found == expected(record)
    assert record.comparable() == record_of(trained, RUN).comparable()
    config = trained.registry.config(trained.registry.parse(RUN), trained.preset)
    assert record.signature.code == code_hash(config)
    assert "repro.training.tensorboard" not in training_modules(config)
    assert not trained.project.live_curves("smoke", RUN).exists()


def test_a_run_that_was_stopped_and_resumed_has_each_epoch_once(context):
    interrupt(context, RUN, log="tensorboard")
    assert train_here(context, RUN, log="tensorboard") == 0
    folder = context.project.live_curves("smoke", RUN)
    assert len(list(folder.iterdir())) == 2
    record = record_of(context, RUN)
    assert record.provenance.attempts[-1].resumed_at_step > 0
    found = read(folder)
    found.pop("speed/images per second")
    assert found == expected(record)


def test_an_epoch_is_there_as_soon_as_the_next_begins(tmp_path):
    curves = LiveCurves(tmp_path, 1, 2, pytest.fail)
    curves(progress(0, 0.0, 0.0))
    curves(progress(1, 4.5, 0.0))
    assert read(tmp_path)["loss/train"] == [(1, 4.5)]
    curves(progress(1, 4.5, 0.0))
    curves(progress(2, 4.25, 12.5))
    found = read(tmp_path)
    assert found["loss/train"] == [(1, 4.5), (2, 4.25)]
    assert found["accuracy/test"] == [(2, 12.5)], "an epoch without an evaluation has no accuracy"


def test_curves_that_cannot_be_written_are_said_once_and_stop_nothing(context):
    folder = context.project.live_curves("smoke", RUN)
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    said: list[str] = []
    assert train_here(context, RUN, say=said.append, log="tensorboard") == 0
    assert len([line for line in said if "its curves for TensorBoard end here" in line]) == 1
    assert record_of(context, RUN)


def test_a_sweep_passes_the_wish_on_to_its_workers(tmp_path):
    words = ("run", "--preset", "smoke", "--results", tmp_path, "--table", "1", "--network", "resnet18")
    repro(*words, "--loss", "scaled-bn-m1", "--log", "tensorboard", check=0)
    assert list((tmp_path / "smoke" / ".work" / "tensorboard" / RUN).glob("events*"))


def test_without_the_extra_it_is_said_before_anything_trains(monkeypatch, context):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install '\.\[tensorboard\]'"):
        require_tensorboard()
    with pytest.raises(SetupError, match="not installed"):
        train_here(context, RUN, log="tensorboard")
    assert not context.project.run("smoke", RUN).attempts.exists()
