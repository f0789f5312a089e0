"""`repro bench` end to end on tiny networks: what it measures, says, writes and draws; no speed is judged."""

import json

import pytest
import torch
from smoke_project import ROOT

from repro.benchmark.ours import OwnLoop, measuring_seconds
from repro.benchmark.result import Found
from repro.benchmark.rivals import PictureDataset
from repro.benchmark.subject import Subject, make_subject
from repro.benchmark.windows import Speed, measure, ratio
from repro.commands.bench import BenchOptions, bench
from repro.commands.bench_plot import draw_bench
from repro.commands.context import Context
from repro.data import synthetic
from repro.errors import UsageError
from repro.training.precision import Precision
from repro.training.techniques import Techniques

CPU = torch.device("cpu")
RUN = "cifar100/resnet18/scaled-bn-m1/seed0"


@pytest.fixture
def context(monkeypatch, tmp_path) -> Context:
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    return Context.open("smoke", results=tmp_path / "results", data=tmp_path / "data")


def subject_of(context, tmp_path):
    config = context.registry.config(context.registry.parse(RUN), context.preset)
    return make_subject(RUN, config, 32, tmp_path)


@pytest.fixture
def result(context):
    options = BenchOptions(
        against=("plain",), packed=(), rounds=2, seconds=0.01, threads=1, precision="fp32", device="cpu"
    )
    said = []
    found = bench(context, options, said.append)
    assert any("preparing plain" in line for line in said)
    return found


def test_a_benchmark_says_everything_in_text_json_and_a_picture(result, tmp_path):
    content = json.loads(result.to_json())
    (found,) = content["found"]
    assert found["data"] == "generated"
    assert found["techniques"] == ["resident-data", "fp32", "fused-sgd"]
    assert found["unmeasured"] == []
    assert set(found["speeds"]) == {"ours", "plain"}
    assert all(len(speed["windows"]) == 2 for speed in found["speeds"].values())
    assert found["fraction_of_roofline"] == pytest.approx(found["images_per_second"] / found["roofline"])
    assert found["against_plain"] > 0
    assert found["against_tuned"] is None
    assert 0 < found["measuring_share"] < 1
    assert content["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    text = result.to_text()
    for words in ("ours beside plain", "of the roofline", "TFLOP/s in a matrix product", "a step"):
        assert words in text
    for name in ("bench.png", "bench.pdf"):
        draw_bench(result, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_a_size_that_no_data_set_has_is_a_usage_error(context):
    with pytest.raises(UsageError, match="--size: expected one of 32, 64, got 48"):
        bench(context, BenchOptions(sizes=(48,), device="cpu"), lambda line: None)


def test_our_loop_counts_the_images_of_the_short_last_batch_as_they_are(context, tmp_path):
    """70 images in batches of 32 end in one of 6."""
    subject = subject_of(context, tmp_path)
    few = synthetic.generate("cifar100", 32, 10, 7, 1)
    subject = Subject(RUN, subject.config, few, generated=True)
    step = OwnLoop(subject, Precision("fp32", CPU, torch.contiguous_format), Techniques()).start()
    assert [step() for _ in range(4)] == [32, 6, 32, 32]


def test_several_of_our_runs_take_their_steps_in_turn(context, tmp_path):
    loop = OwnLoop(
        subject_of(context, tmp_path), Precision("fp32", CPU, torch.contiguous_format), Techniques(), copies=3
    )
    assert loop.start()() == 3 * 32
    assert loop.preparing > 0


def test_what_measuring_costs_is_a_time(context, tmp_path):
    seconds = measuring_seconds(
        subject_of(context, tmp_path), Precision("fp32", CPU, torch.contiguous_format)
    )
    assert 0 < seconds < 60


def test_the_plain_loop_sees_the_same_pictures_normalised_the_same_way(context, tmp_path):
    """Without crop and flip its picture is ours."""
    subject = subject_of(context, tmp_path)
    recipe = subject.config.recipe.model_copy(update={"crop_padding": 0})
    subject = Subject(RUN, subject.config.model_copy(update={"recipe": recipe}), subject.data, True)
    manifest = subject.data.manifest
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (manifest.mean, manifest.std))
    expected = (torch.from_numpy(subject.data.train.images[7].copy()) / 255 - mean) / std
    picture, label = PictureDataset(subject)[7]
    assert label == subject.data.train.labels[7]
    assert any(torch.allclose(picture, side, atol=1e-6) for side in (expected, expected.flip(2)))


def test_windows_of_all_programs_are_by_turns_and_the_ratio_is_of_the_same_round():
    calls = []

    def program(name, images):
        def step() -> int:
            calls.append(name)
            return images

        return step

    measured = measure({"a": program("a", 10), "b": program("b", 10)}, CPU, rounds=2, seconds=0.0)
    assert calls == ["a", "a", "b", "b"] * 2
    assert all(len(speed.windows) == 2 for speed in measured.values())
    assert ratio((10, 30, 40), (5, 10, 40)) == 2


def test_the_best_of_alone_and_packed_is_what_a_device_reaches():
    speeds = {"ours": Speed((100.0, 200.0, 300.0), 1.0)}
    fields = dict.fromkeys(Found.__dataclass_fields__)
    found = Found(**{**fields, "speeds": speeds, "packed": {2: 150.0, 4: 250.0}})
    assert found.ours == 250
