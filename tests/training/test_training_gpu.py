"""On a CUDA device: every trap of recording a step as a graph, and what a graph must equal. Skipped without."""

import subprocess
import sys

import pytest
import torch
from smoke_project import ROOT

from repro.commands.techniques import choose_techniques
from repro.data.training_set import open_for_training
from repro.errors import RunInterruptedError
from repro.records import Signature, parse_record
from repro.registry import Registry
from repro.training.capture import MOST
from repro.training.checkpoint import CheckpointFolder
from repro.training.loop import train_run, training
from repro.training.precision import choose_precision
from repro.training.techniques import Techniques

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")
GRAPHED = Techniques(cuda_graph=True)
LOSSES = ("cross-entropy", "am-softmax-s10-m0.5", "pedcc-s10-m0.5", "scaled-bn-m1")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(ROOT / "experiments")


@pytest.fixture
def deterministic(monkeypatch):
    """As `--deterministic` has it; the workspace must be set before cuBLAS starts, see the last test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def config_of(registry, loss="cross-entropy", network="resnet18", **recipe):
    """160 images in batches of 96, so that the last has 64; a quarter of the width."""
    config = registry.config(registry.parse(f"cifar100/{network}/{loss}/seed0"), registry.preset("smoke"))
    recipe = {"batch_size": 96, "width": 0.25, **recipe}
    return config.model_copy(update={"recipe": config.recipe.model_copy(update=recipe)})


def data_of(config):
    return open_for_training(config, ROOT / "no data needed")


def comparable(trained):
    return trained.result, [e.model_dump(exclude={"seconds"}) for e in trained.curve], trained.probes


@pytest.mark.parametrize("precision", [None, "fp32"])
@pytest.mark.parametrize("network", ["vgg16", "resnet18", "resnet50"])
@pytest.mark.parametrize("loss", LOSSES)
def test_graphed_is_eager_to_the_bit_where_kernels_are_deterministic(
    registry, deterministic, loss, network, precision
):
    """lr drops, short last batches and evaluation between the epochs are in it."""
    config = config_of(registry, loss, network)
    data, said = data_of(config), []
    chosen = choose_precision(CUDA, precision)
    graphed = train_run(config, data, chosen, techniques=GRAPHED, say=said.append)
    assert said == []
    assert "cuda-graph" in graphed.techniques
    assert comparable(graphed) == comparable(train_run(config, data, chosen))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_graph_is_taken_where_kernels_are_not_deterministic_and_learns_as_well(registry, loss):
    config = config_of(registry, loss)
    data, said = data_of(config), []
    precision = choose_precision(CUDA)
    graphed = train_run(config, data, precision, techniques=GRAPHED, say=said.append)
    eager = train_run(config, data, precision)
    assert said == []
    losses = [[epoch.train_loss for epoch in run.curve] for run in (graphed, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=MOST)


def test_a_compiled_graph_is_taken_and_a_second_run_compiles_no_network_again(registry):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU is not compiled for")
    from torch._dynamo.utils import counters

    both = Techniques(cuda_graph=True, compile=True)
    said, graphs = [], []
    for loss in ("scaled-bn-m1", "scaled-bn-m0.8"):
        config = config_of(registry, loss)
        trained = train_run(config, data_of(config), choose_precision(CUDA), techniques=both, say=said.append)
        assert {"cuda-graph", "compile"} <= set(trained.techniques), said
        graphs.append(counters["stats"]["unique_graphs"])
    # The first compiled network and head, each for two batch sizes; the second needs its own head only.
    assert graphs[1] - graphs[0] <= 2 < graphs[0]


def test_packed_is_alone_to_the_bit(registry, deterministic):
    """Four runs in one process, a stream and a graph each, their steps by turns."""
    configs = [config_of(registry, loss) for loss in LOSSES]
    data, precision = data_of(configs[0]), choose_precision(CUDA)
    alone = [comparable(train_run(config, data, precision, techniques=GRAPHED)) for config in configs]
    going = {n: training(config, data, precision, techniques=GRAPHED) for n, config in enumerate(configs)}
    streams = [torch.cuda.Stream() for _ in configs]
    packed = {}
    while going:
        for number in list(going):
            with torch.cuda.stream(streams[number]):
                try:
                    next(going[number])
                except StopIteration as end:
                    packed[number] = comparable(end.value)
                    del going[number]
    assert [packed[number] for number in range(len(configs))] == alone


def test_resumed_in_the_middle_of_an_epoch_is_straight_to_the_bit(registry, deterministic, tmp_path):
    config = config_of(registry, "scaled-bn-m1")
    data, precision = data_of(config), choose_precision(CUDA)
    straight = train_run(config, data, precision, techniques=GRAPHED)
    asked = iter([False, False, False, True])
    folder = tmp_path / "1"
    folder.mkdir()
    checkpoints = CheckpointFolder(tmp_path, folder, Signature(config="1", data="2", code="3"))
    with pytest.raises(RunInterruptedError):
        train_run(config, data, precision, checkpoints, should_stop=lambda: next(asked), techniques=GRAPHED)
    start = checkpoints.newest()
    assert start.step == 3
    resumed = train_run(config, data, precision, start=start, techniques=GRAPHED)
    assert comparable(resumed) == comparable(straight)


def test_a_step_never_waits_for_the_device(registry):
    """An epoch's steps under a debug mode of torch that makes every wait an error."""
    config = config_of(registry, epochs=1, lr_drops=())
    steps = training(config, data_of(config), choose_precision(CUDA))
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_generators_of_the_device_are_left_as_they_were(registry):
    config = config_of(registry, epochs=1, lr_drops=())
    torch.cuda.manual_seed(11)
    before = torch.cuda.get_rng_state()
    train_run(config, data_of(config), choose_precision(CUDA), techniques=GRAPHED)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_gpu_gets_a_graph_by_itself_from_volta_on():
    capable = torch.cuda.get_device_capability() >= (7, 0)
    assert choose_techniques(CUDA).cuda_graph == capable


def test_the_command_trains_the_same_record_twice_in_deterministic_mode(tmp_path):
    """Each in a process of its own, as cuBLAS reads its workspace when it starts."""
    records = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "repro", "train", "cifar100/resnet18/scaled-bn-m1/seed0"]
        command += ["--preset", "smoke", "--device", "cuda", "--deterministic", "--results", tmp_path / name]
        subprocess.run(command, check=True, cwd=ROOT)
        (path,) = (tmp_path / name).rglob("seed0.json")
        records.append(parse_record(path.read_text(), str(path)).comparable())
    assert records[0] == records[1]
