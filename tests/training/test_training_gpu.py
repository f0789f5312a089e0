"""What a CUDA graph must equal, and every trap of recording one: on a CUDA device, and rehearsed on the CPU.

On the CPU a tape stands in for the graph, in fewer cases, so that a test that fails by itself is found before
there is a GPU.
"""

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from small_runs import LOSSES, checkpoints_in, comparable, config_of, data_of, in_turns, train
from smoke_project import ROOT
from tape import TapeCapture

from repro.errors import RunInterruptedError
from repro.records import parse_record
from repro.training.loop import Trainer
from repro.training.precision import Accelerations, choose_precision

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GRAPHED = Accelerations(cuda_graph=True)


@dataclass(frozen=True)
class Device:
    """Where a test trains: the options that `train_run` needs there, and what differs in a recipe."""

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    capture: Callable[[torch.device], Any] | None = None

    def config(self, loss="cross-entropy", network="resnet18", **recipe):
        """On a GPU 160 images in batches of 96, so that the last has 64, at a quarter of the width."""
        return config_of(loss, network, **{"batch_size": 96, "width": 0.25, **self.recipe, **recipe})

    def precision(self, forced=None):
        return choose_precision(torch.device(self.name), forced or ("fp32" if self.capture else None))

    @property
    def graphed(self) -> dict[str, Any]:
        return {"accelerations": GRAPHED, **({"capture": self.capture} if self.capture else {})}


GPU = Device("cuda")
CPU = Device(
    "cpu",
    {"width": 0.0625, "images_per_class": 4, "batch_size": 24, "test_images_per_class": 2},
    lambda device: TapeCapture(),
)
BOTH = [pytest.param(CPU, id="cpu"), pytest.param(GPU, id="cuda", marks=ON_GPU)]


@pytest.fixture
def deterministic():
    """As `--deterministic` has it; conftest.py has set cuBLAS' workspace before CUDA started."""
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize(
    ("device", "loss", "network", "precision"),
    [
        pytest.param(CPU, "scaled-bn-m1", "vgg16", "bf16", id="cpu"),
        *(
            pytest.param(GPU, loss, network, precision, marks=ON_GPU)
            for loss in LOSSES
            for network in ("vgg16", "resnet18", "resnet50")
            for precision in (None, "fp32")
        ),
    ],
)
def test_graphed_is_eager_to_the_bit_where_kernels_are_deterministic(
    deterministic, device, loss, network, precision
):
    """lr drops, short last batches and evaluation between the epochs are in it."""
    config = device.config(loss, network)
    chosen, said = device.precision(precision), []
    graphed = train(config, chosen, warn=said.append, **device.graphed)
    assert said == []
    assert "cuda-graph" in graphed.accelerations
    assert comparable(graphed) == comparable(train(config, chosen))


@pytest.mark.parametrize(
    ("device", "loss"),
    [pytest.param(CPU, LOSSES[0], id="cpu"), *(pytest.param(GPU, loss, marks=ON_GPU) for loss in LOSSES)],
)
def test_a_graph_is_taken_where_kernels_are_not_deterministic_and_learns_as_well(device, loss):
    config = device.config(loss)
    said = []
    graphed = train(config, device.precision(), warn=said.append, **device.graphed)
    eager = train(config, device.precision())
    assert said == []
    losses = [[epoch.train_loss for epoch in run.curve] for run in (graphed, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)


@pytest.mark.parametrize("device", [pytest.param(GPU, marks=ON_GPU)])
def test_a_compiled_graph_is_taken_and_a_second_run_compiles_no_network_again(device):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU is not compiled for")
    from torch._dynamo.utils import counters

    both = Accelerations(cuda_graph=True, compile=True)
    said, graphs = [], []
    for loss in ("scaled-bn-m1", "scaled-bn-m0.8"):
        config = device.config(loss)
        trained = train(config, device.precision(), accelerations=both, warn=said.append)
        assert {"cuda-graph", "compile"} <= set(trained.accelerations), said
        graphs.append(counters["stats"]["unique_graphs"])
    # The first compiled network and head, each for two batch sizes; the second needs its own head only.
    assert graphs[1] - graphs[0] <= 2 < graphs[0]


@pytest.mark.parametrize("device", BOTH)
def test_packed_is_alone_to_the_bit(deterministic, device):
    """Several runs in one process, a graph each, on a GPU a stream each; their steps by turns."""
    configs = [device.config(loss) for loss in (LOSSES if device is GPU else LOSSES[::3])]
    precision = device.precision()
    alone = [comparable(train(config, precision, **device.graphed)) for config in configs]
    trainers = [Trainer(config, data_of(config), precision, **device.graphed) for config in configs]
    streams = [torch.cuda.Stream() if device is GPU else None for _ in configs]
    assert [comparable(trained) for trained in in_turns(trainers, streams)] == alone


@pytest.mark.parametrize("device", BOTH)
def test_resumed_in_the_middle_of_an_epoch_is_straight_to_the_bit(deterministic, device, tmp_path):
    config = device.config("scaled-bn-m1")
    precision = device.precision()
    straight = train(config, precision, **device.graphed)
    # Before each of an epoch's two steps, before its evaluation's one batch, and so on: the fifth is at step 3.
    asked, checkpoints = iter([False] * 4 + [True]), checkpoints_in(tmp_path)
    with pytest.raises(RunInterruptedError):
        train(config, precision, checkpoints=checkpoints, should_stop=lambda: next(asked), **device.graphed)
    start = checkpoints.newest()
    assert start.step == 3
    assert start.numeric_settings.accelerations == GRAPHED.names()
    assert comparable(train(config, precision, start=start, **device.graphed)) == comparable(straight)


@pytest.mark.parametrize("device", [pytest.param(GPU, marks=ON_GPU)])
def test_a_step_never_waits_for_the_device(device):
    """An epoch's steps under a debug mode of torch that makes every wait an error; the tape has the CPU's."""
    config = device.config(epochs=1, lr_drops=())
    steps = Trainer(config, data_of(config), device.precision()).steps()
    next(steps)
    try:
        with warnings.catch_warnings():
            # Once per process torch says that the mode is a prototype.
            warnings.filterwarnings("ignore", message=".*ynchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
        next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", BOTH)
def test_the_generators_of_the_device_are_left_as_they_were(device):
    config = device.config(epochs=1, lr_drops=())
    state = torch.cuda.get_rng_state if device is GPU else torch.get_rng_state
    torch.manual_seed(11)
    before = state()
    train(config, device.precision(), **device.graphed)
    assert torch.equal(state(), before)


def test_no_generator_of_a_gpu_is_seeded_while_a_run_is_built_and_trained(monkeypatch):
    """Others train beside it in the same process; without a GPU a call of CUDA's seeding is what can be seen."""

    def reseeded(seed):
        raise AssertionError("every GPU's generator was seeded")

    monkeypatch.setattr("torch.cuda.manual_seed_all", reseeded)
    config = CPU.config(epochs=1, lr_drops=())
    train(config, CPU.precision(), **CPU.graphed)


@pytest.mark.parametrize("device", [pytest.param(GPU, marks=ON_GPU)])
def test_the_command_trains_the_same_record_twice_in_deterministic_mode(device, tmp_path):
    """Each in a process of its own, as cuBLAS reads its workspace when it starts."""
    records = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "repro", "train", "cifar100/resnet18/scaled-bn-m1/seed0"]
        command += ["--preset", "smoke", "--device", device.name, "--deterministic"]
        subprocess.run([*command, "--results", tmp_path / name], check=True, cwd=ROOT)
        (path,) = (tmp_path / name).rglob("seed0.json")
        records.append(parse_record(path.read_text(), str(path)))
    assert records[0].comparable() == records[1].comparable()
    assert records[0].provenance.deterministic
