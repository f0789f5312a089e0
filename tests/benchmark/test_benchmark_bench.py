"""`repro bench` end to end on tiny networks: what it measures, says, writes and draws; no speed is judged."""

import contextlib
import json
from dataclasses import replace

import psutil
import pytest
import torch
from smoke_project import ROOT

from repro.benchmark import processes
from repro.benchmark.ours import OwnLoop, measuring_seconds
from repro.benchmark.processes import Prepared, Program, ProgramFailedError, RunningProgram, started
from repro.benchmark.rates import Rates
from repro.benchmark.result import Found, busy_doubts, window_doubts
from repro.benchmark.rivals import PictureDataset
from repro.benchmark.subject import Subject, make_subject
from repro.benchmark.windows import Speed, Window, measure, ratio, run_window, together
from repro.cli.bench import BenchOptions, draw_bench, measure_all
from repro.cli.context import Context
from repro.data import synthetic
from repro.errors import UsageError
from repro.system import usable_cores
from repro.training.accelerations import Accelerations
from repro.training.precision import Precision

CPU = torch.device("cpu")
RUN = "cifar100/resnet18/scaled-bn-m1/seed0"


@pytest.fixture
def context(monkeypatch, tmp_path) -> Context:
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    return Context.open("smoke", results=tmp_path / "results", data=tmp_path / "data")


def subject_of(context, tmp_path):
    config = context.registry.config(context.registry.parse(RUN), context.preset)
    return make_subject(RUN, config, 32, tmp_path)


def program_of(context, **changes) -> Program:
    """Our loop on a tiny network, one thread."""
    config = context.registry.config(context.registry.parse(RUN), context.preset)
    return replace(Program("ours", RUN, config, 32, context.project.data, "cpu", "fp32", 1), **changes)


def test_a_benchmark_says_everything_in_text_json_and_a_picture(context, tmp_path):
    options = BenchOptions(
        against=("plain",), packed=(), rounds=2, seconds=0.01, threads=1, precision="fp32", device="cpu"
    )
    said = []
    result = measure_all(context, options, said.append)
    assert any(line.endswith("preparing plain") for line in said)
    content = json.loads(result.to_json())
    (found,) = content["found"]
    assert found["data"] == "generated"
    assert found["techniques"] == ["resident-data", "fp32", "fused-sgd"]
    assert found["unmeasured"] == []
    assert set(found["speeds"]) == {"ours", "plain"}
    assert all(len(speed["windows"]) == 2 for speed in found["speeds"].values())
    assert all(speed["peak_memory"] > 10**8 for speed in found["speeds"].values())
    assert found["fraction_of_roofline"] == pytest.approx(found["images_per_second"] / found["roofline"])
    assert set(found["against"]["plain"]) == {"ours"}
    assert found["against"]["tuned"] == {}
    assert 0 < found["measuring_share"] < 1
    assert content["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert content["not_trustworthy"] == result.doubts()
    text = result.to_text()
    for words in (
        "ours beside plain",
        "of the roofline",
        "TFLOP/s in a matrix product",
        "per step",
    ):
        assert words in text
    for name in ("bench.png", "bench.pdf"):
        draw_bench(result, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


class StandIn:
    """A program that is always warm, and as fast in each window as its name says."""

    prepared = Prepared(1.0, ())

    def __init__(self, speeds):
        self._speeds = iter(speeds)

    def window(self, seconds):
        return Window(next(self._speeds), 1.0, 10**9)


@pytest.fixture
def stand_ins(monkeypatch):
    """Keeps the programs that `bench` starts, and does not start them; the machine is quiet."""
    asked = {}

    @contextlib.contextmanager
    def start(programs, notes, say):
        asked.update(programs)
        yield {name: StandIn([100.0, 201.0] if name == "plain" else [300.0, 310.0]) for name in programs}

    monkeypatch.setattr(processes, "started", start)
    monkeypatch.setattr("repro.system.busy_share", lambda seconds: 0.01)
    monkeypatch.setattr("repro.benchmark.rates.measure_rates", lambda device, precision: Rates(1e12, 1e10))
    return asked


def test_each_program_is_started_as_those_who_use_it_start_it(context, stand_ins):
    """Ours with all threads, and as runs of one thread each; a script with torch's own and the malloc it finds."""
    options = BenchOptions(rounds=2, device="cpu", precision="fp32", deterministic=True)
    cores = usable_cores()
    measure_all(context, options, lambda line: None)
    assert list(stand_ins) == ["ours", "ours, 2 at once", "plain", "tuned"]
    ours, packed = stand_ins["ours"], stand_ins["ours, 2 at once"]
    assert (ours.processes, ours.threads) == (1, cores)
    assert (packed.processes, packed.threads) == (2, max(1, cores // 2))
    assert ours.keeps_freed_memory
    assert packed.keeps_freed_memory
    assert ours.deterministic
    for rival in (stand_ins["plain"], stand_ins["tuned"]):
        assert not rival.keeps_freed_memory
        assert not rival.deterministic
        assert rival.threads is None


def test_windows_that_vary_more_than_twofold_are_marked_in_text_json_and_picture(
    context, stand_ins, tmp_path
):
    result = measure_all(context, BenchOptions(rounds=2, device="cpu", precision="fp32"), lambda line: None)
    doubt = "resnet18, 32 px, scaled-bn: the windows of plain vary 2.0-fold"
    for name in ("ours", "ours, 2 at once"):
        assert f"{name} beside plain: 2.27 ×" in result.to_text()
    assert json.loads(result.to_json())["not_trustworthy"] == [doubt]
    assert result.to_text().endswith(f"\n\nnot trustworthy: {doubt}")
    draw_bench(result, tmp_path / "marked.png")
    steady = Speed((100.0, 200.0), 1.0, 1)
    assert window_doubts({"plain": steady}) == []


def test_a_busy_machine_is_said_at_once_and_marked(context, stand_ins, monkeypatch):
    monkeypatch.setattr("repro.system.busy_share", lambda seconds: 0.5)
    said = []
    result = measure_all(context, BenchOptions(rounds=1, device="cpu", precision="fp32"), said.append)
    doubt = "other programs used 50% of the CPU time before the start; stop them first"
    assert f"not trustworthy: {doubt}" in said
    assert result.doubts() == [doubt]
    assert json.loads(result.to_json())["machine"]["busy"] == 0.5
    assert busy_doubts(0.2) == []
    assert "does not say" in busy_doubts(None)[0]


def test_a_program_trains_only_while_its_window_lasts_and_ends_with_the_benchmark(context):
    """The others wait without using the CPU; one that is killed ends the benchmark with its exit code."""
    notes = []
    programs = {"ours": program_of(context, processes=2), "other": program_of(context)}
    with started(programs, notes) as running:
        children = {child.pid: child for child in psutil.Process().children()}
        ours = [children[pid] for pid in running["ours"].pids]
        (other,) = (children[pid] for pid in running["other"].pids)
        before = sum(other.cpu_times()[:2])
        assert running["ours"].window(1.0).images_per_second > 0
        assert all(sum(process.cpu_times()[:2]) > 0.2 for process in ours)
        assert sum(other.cpu_times()[:2]) - before < 0.1
        other.kill()
        with pytest.raises(ProgramFailedError, match=r"other could not be measured: .* exit code -9"):
            running["other"].window(0.01)
    assert notes == []
    assert not any(child.is_running() for child in (*ours, other))


def test_an_error_in_a_programs_process_is_the_benchmarks(context):
    with pytest.raises(
        ProgramFailedError, match="ours could not be measured: UsageError: unknown acceleration 'nonsense'"
    ):
        RunningProgram("ours", program_of(context, techniques=("nonsense",)))


def test_a_program_that_cannot_prepare_is_left_out_and_said_but_not_ours(context, monkeypatch):
    closed = []

    class Stub:
        prepared = Prepared(1.0, ("without compile",))

        def __init__(self, name, program):
            if program.techniques == ("nonsense",):
                raise ProgramFailedError(f"{name} could not be measured")
            self.close = lambda: closed.append(name)

    monkeypatch.setattr(processes, "RunningProgram", Stub)
    good, broken = program_of(context), program_of(context, techniques=("nonsense",))
    notes = []
    with started({"ours": good, "tuned": broken}, notes) as running:
        assert set(running) == {"ours"}
        assert closed == []
    assert closed == ["ours"]
    assert notes == ["without compile", "tuned could not be measured"]
    with pytest.raises(ProgramFailedError, match="ours"), started({"plain": good, "ours": broken}, notes):
        pytest.fail("ours is what a benchmark is about")
    assert closed == ["ours", "plain"]


def test_a_size_that_no_data_set_has_is_a_usage_error(context):
    with pytest.raises(UsageError, match="--size: expected one of 32, 64, got 48"):
        measure_all(context, BenchOptions(sizes=(48,), device="cpu"), lambda line: None)


def test_our_loop_counts_the_images_of_the_short_last_batch_as_they_are(context, tmp_path):
    """70 images in batches of 32 end in one of 6."""
    subject = subject_of(context, tmp_path)
    few = synthetic.generate("cifar100", 32, 10, 7, 1)
    subject = Subject(RUN, subject.config, few, generated=True)
    step = OwnLoop(subject, Precision("fp32", CPU, torch.contiguous_format), Accelerations()).start()
    assert [step() for _ in range(4)] == [32, 6, 32, 32]


def test_several_of_our_runs_take_their_steps_in_turn(context, tmp_path):
    loop = OwnLoop(
        subject_of(context, tmp_path),
        Precision("fp32", CPU, torch.contiguous_format),
        Accelerations(),
        copies=3,
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

    def program(name, images_per_second):
        def window(seconds) -> Window:
            calls.append((name, seconds))
            return Window(images_per_second, 5.0, len(calls))

        return window

    measured = measure({"a": program("a", 10), "b": program("b", 20)}, rounds=2, seconds=0.5)
    assert calls == [("a", 0.5), ("b", 0.5)] * 2
    assert measured == {"a": Speed((10, 10), 5.0, 3), "b": Speed((20, 20), 5.0, 4)}
    assert ratio((10, 30, 40), (5, 10, 40)) == 2


def test_a_window_has_at_least_two_steps_and_ends_when_they_are_done():
    calls = []
    window = run_window(lambda: calls.append("step") or 10, lambda: calls.append("finish"), 0.0)
    assert calls == ["finish", "step", "step", "finish"]
    assert window.images_per_second == pytest.approx(10 / (window.milliseconds_per_step / 1000))
    assert window.peak_memory > 10**7


def test_processes_at_the_same_time_add_up():
    assert together([Window(10.0, 2.0, 3), Window(20.0, 4.0, 4)]) == Window(30.0, 3.0, 7)


def test_the_best_of_alone_and_packed_is_what_a_device_reaches():
    names = {"ours": 200.0, "ours, 2 at once": 150.0, "ours, 4 at once": 250.0, "ours, no compile": 300.0}
    speeds = {name: Speed((speed, speed), 1.0, 1) for name, speed in names.items()}
    fields = dict.fromkeys(Found.__dataclass_fields__)
    assert Found(**{**fields, "speeds": speeds}).ours == 250
