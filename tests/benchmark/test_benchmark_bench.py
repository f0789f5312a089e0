"""`repro bench` end to end on tiny networks: what it measures, says, writes and draws; no speed is judged."""

import contextlib
import json
from dataclasses import replace

import psutil
import pytest
import torch
from click.testing import CliRunner
from smoke_project import PROJECT

from repro.benchmark import timing
from repro.benchmark.baselines import PictureDataset
from repro.benchmark.case import Case, noise, open_case
from repro.benchmark.harness import in_turn
from repro.benchmark.result import CaseResult, busy_doubts, window_doubts
from repro.benchmark.roofline import Rates
from repro.benchmark.timing import Program, RunningProgram, Speed, Window, measure, ratio, started
from repro.cli import main
from repro.cli.context import Context
from repro.errors import RunFailedError
from repro.system import usable_cores
from repro.training.precision import Accelerations, Precision

FP32 = Precision("fp32", torch.device("cpu"), torch.contiguous_format)
RUN = "cifar100/resnet18/scaled-bn-m1/seed0"


@pytest.fixture
def context(monkeypatch, tmp_path) -> Context:
    monkeypatch.setenv("REPRO_ROOT", str(PROJECT))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))
    return Context.open("smoke")


@pytest.fixture
def config(context):
    return context.registry.config(context.registry.parse(RUN), context.preset)


@pytest.fixture
def bench(context, tmp_path):
    """Runs `repro bench` in this process: its result, and the JSON that it wrote."""

    def run(*options: str):
        file = tmp_path / "bench.json"
        argv = ["bench", "--preset", "smoke", "--device", "cpu", "--precision", "fp32", "--json", str(file)]
        done = CliRunner().invoke(main, [*argv, *options])
        return done, json.loads(file.read_text()) if file.exists() else None

    return run


@pytest.fixture
def program(config, tmp_path) -> Program:
    """Our loop on a tiny network, one thread."""
    return Program("ours", config, 32, tmp_path, "cpu", "fp32", 1)


@pytest.mark.slow
def test_a_benchmark_says_everything_in_text_json_and_a_picture(bench, tmp_path):
    """The one test with real programs of the command; it starts three processes."""
    plot = tmp_path / "bench.png"
    short = ["--rounds", "2", "--seconds", "0.01", "--threads", "1", "--packed", "2", "--against", "plain"]
    done, content = bench(*short, "--plot", str(plot))
    assert done.exit_code == 0, done.output
    assert "preparing plain" in done.stderr
    (found,) = content["found"]
    assert found["data"] == "generated"
    assert found["accelerations"] == ["resident-data", "fp32", "fused-sgd"]
    assert set(found["speeds"]) == {"ours", "ours, 2 at once", "plain"}
    assert all(len(speed["windows"]) == 2 for speed in found["speeds"].values())
    assert all(speed["peak_memory"] > 10**8 for speed in found["speeds"].values())
    assert found["fraction_of_roofline"] == pytest.approx(found["images_per_second"] / found["roofline"])
    assert set(found["against"]["plain"]) == {"ours", "ours, 2 at once"}
    assert found["against"]["tuned"] == {}
    assert 0 < found["measuring_share"] < 1
    assert content["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    for words in ("ours beside plain", "of the roofline", "TFLOP/s in a matrix product", "per step"):
        assert words in done.stdout
    assert plot.stat().st_size > 1000


class StandIn:
    """A program that is always warm, and as fast in each window as `speeds` say."""

    preparing = 1.0

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

    monkeypatch.setattr(timing, "started", start)
    monkeypatch.setattr("repro.system.busy_share", lambda seconds: 0.01)
    monkeypatch.setattr("repro.benchmark.roofline.measure_rates", lambda device, precision: Rates(1e12, 1e10))
    return asked


def test_each_program_is_started_as_those_who_use_it_start_it(bench, stand_ins, monkeypatch):
    """Ours with all threads, and as runs of one thread each; a script with torch's own and the malloc it finds."""
    cores = usable_cores()
    bench("--rounds", "2", "--deterministic")
    assert list(stand_ins) == ["ours", "ours, 2 at once", "plain", "tuned"]
    ours, packed = stand_ins["ours"], stand_ins["ours, 2 at once"]
    assert (ours.processes, ours.threads) == (1, cores)
    assert (packed.processes, packed.threads) == (2, max(1, cores // 2))
    assert (ours.keeps_freed_memory, packed.keeps_freed_memory, ours.deterministic) == (True, True, True)
    for rival in (stand_ins["plain"], stand_ins["tuned"]):
        assert (rival.keeps_freed_memory, rival.deterministic, rival.threads) == (False, False, None)
    kept = []
    monkeypatch.setattr(timing, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(timing.signal, "signal", lambda number, handler: None)
    timing.initialise(False)
    assert kept == []
    timing.initialise(True)
    assert kept == [True]
    stand_ins.clear()
    bench("--rounds", "1", "--alone")
    assert list(stand_ins) == ["ours"]
    assert bench("--size", "48")[0].exit_code == 2


def test_a_busy_machine_and_windows_that_vary_more_than_twofold_are_marked(bench, stand_ins, monkeypatch):
    monkeypatch.setattr("repro.system.busy_share", lambda seconds: 0.5)
    done, content = bench("--rounds", "2")
    busy = "other programs used 50% of the CPU time before the start; stop them first"
    windows = "resnet18, 32 px, scaled-bn: the windows of plain vary 2.0-fold"
    for name in ("ours", "ours, 2 at once"):
        assert f"{name} beside plain: 2.27 ×" in done.stdout
    assert (content["not_trustworthy"], content["machine"]["busy"]) == ([busy, windows], 0.5)
    assert f"not trustworthy: {busy}" in done.stderr.splitlines()
    assert done.stdout.endswith(f"\n\nnot trustworthy: {busy}\nnot trustworthy: {windows}\n")
    assert window_doubts({"plain": Speed((100.0, 200.0), 1.0, 1)}) == busy_doubts(0.2) == []
    assert "does not say" in busy_doubts(None)[0]


def spawned() -> set[psutil.Process]:
    """The programs' processes; multiprocessing's resource tracker is none of them."""
    return {child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())}


@pytest.mark.slow
def test_a_program_that_is_killed_is_named_and_all_end_with_the_benchmark(program):
    notes = []
    with started({"ours": replace(program, processes=2)}, notes) as running:
        ours = spawned()
        other = RunningProgram("other", program)
        (waiting,) = spawned() - ours
        assert running["ours"].window(0.1).images_per_second > 0
        waiting.kill()
        with pytest.raises(RunFailedError, match="other could not be measured: its process died"):
            other.window(0.01)
        other.close()
        with pytest.raises(RunFailedError, match="ours could not be measured: TypeError: "):
            running["ours"].window("no number")
    assert notes == []
    assert not any(child.is_running() for child in ours | {waiting})


def test_a_program_that_cannot_prepare_is_left_out_and_said_but_not_ours(program, monkeypatch):
    closed = []

    class Stub:
        preparing, notes = 1.0, ["without compile"]

        def __init__(self, name, program):
            if program.accelerations == ("nonsense",):
                raise RunFailedError(f"{name} could not be measured")
            self.close = lambda: closed.append(name)

    broken, notes = replace(program, accelerations=("nonsense",)), []
    monkeypatch.setattr(timing, "RunningProgram", Stub)
    with started({"ours": program, "tuned": broken}, notes) as running:
        assert set(running) == {"ours"}
        assert closed == []
    assert closed == ["ours"]
    assert notes == ["without compile", "tuned could not be measured"]
    with pytest.raises(RunFailedError, match="ours"), started({"plain": program, "ours": broken}, notes):
        pytest.fail("ours is what a benchmark is about")
    assert closed == ["ours", "plain"]


def test_our_loop_counts_the_images_of_the_short_last_batch_as_they_are_in_each_run(config, tmp_path):
    """70 images in batches of 32 end in one of 6."""
    case = open_case(config, 32, tmp_path)
    few = Case(case.config, noise(32, 10, 70))
    steps = in_turn(few, FP32, Accelerations(), runs=2)
    assert [next(steps) for _ in range(4)] == [64, 64, 12, 64]


def test_the_plain_loop_sees_the_same_pictures_normalised_the_same_way(config, tmp_path):
    """Without crop and flip its picture is ours."""
    case = open_case(config, 32, tmp_path)
    recipe = case.config.recipe.model_copy(update={"crop_padding": 0})
    case = Case(case.config.model_copy(update={"recipe": recipe}), case.data)
    manifest = case.data.manifest
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (manifest.mean, manifest.std))
    expected = (torch.from_numpy(case.data.train.images[7].copy()) / 255 - mean) / std
    picture, label = PictureDataset(case)[7]
    assert label == case.data.train.labels[7]
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
    # The best of alone and packed is what a device reaches.
    speeds = {"ours": 200.0, "ours, 2 at once": 150.0, "ours, 4 at once": 250.0, "ours, no compile": 300.0}
    fields = dict.fromkeys(CaseResult.__dataclass_fields__)
    fields["speeds"] = {name: Speed((speed, speed), 1.0, 1) for name, speed in speeds.items()}
    assert CaseResult(**fields).best == 250
