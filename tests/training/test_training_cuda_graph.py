"""A captured step is the eager step: every trap of capturing one, on the CPU with a tape in a graph's place."""

import itertools
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_runs import CPU, FURTHER_LOSSES, LOSSES, comparable, data_of, on_cpu, straight, train
from small_runs import config_of as smoke_config
from tape import NotPermittedError, TapeCapture

from repro.data.loader import BatchStream, draw_epoch, normalisation, subset, to_device
from repro.errors import UsageError
from repro.training.cuda_graph import TOLERANCE, Reference, Snapshot, StepDiffersError, prepare
from repro.training.loop import build
from repro.training.metrics import EpochSums
from repro.training.optim import make_optimizer, momentum_buffers, set_lr
from repro.training.precision import Accelerations, Precision
from repro.training.seeding import generator
from repro.training.step import TrainingStep, compiled_call

GRAPHED = Accelerations(cuda_graph=True)
# 40 images in batches of 24: the last one has 16.
FEW = {"batch_size": 24, "images_per_class": 4, "test_images_per_class": 2}


def config_of(loss="cross-entropy", network="resnet18", **recipe):
    return smoke_config(loss, network, **{**FEW, **recipe})


def step_of(config, precision=None, **options) -> TrainingStep:
    data = data_of(config)
    precision = precision or on_cpu()
    split = to_device(subset(data, config.recipe)[0], CPU)
    network, loss = build(config, 32, 10)
    network.to(memory_format=precision.memory_format)
    optimizer = make_optimizer(network, loss, config.recipe, lr_device=CPU)
    batches = BatchStream(split, 4, normalisation(data, config.recipe, CPU, precision.memory_format))
    batches.begin(draw_epoch(split.count, config.recipe, lambda purpose: generator(0, purpose, 0)))
    return TrainingStep(
        network, loss, optimizer, precision.scaler(), precision, batches, EpochSums(CPU), **options
    )


def prepared(step, capture, sizes=(24, 16), exact=True, accelerations=GRAPHED):
    said = []
    made, used = prepare(step, sizes, accelerations, lambda: capture, exact, said.append)
    return made, used, said


SHORT = {"epochs": 1, "lr_drops": ()}
# A CPU is slow in fp16: fewer images.
FP16 = {"images_per_class": 1, "batch_size": 6, **SHORT}


@pytest.mark.parametrize(
    ("loss", "network", "precision", "recipe"),
    [
        *((loss, "resnet18", "fp32", {}) for loss in LOSSES),
        ("scaled-bn-m1", "resnet18", "bf16", {}),
        ("scaled-bn-m1", "resnet18", "fp16", FP16),
        *((loss, "resnet18", "fp32", SHORT) for loss in FURTHER_LOSSES),
        ("cross-entropy", "vgg16", "fp32", SHORT),
        ("cross-entropy+rotation=15", "resnet18", "fp32", {"epochs": 2, "lr_drops": (1,)}),
    ],
)
def test_a_graphed_run_is_the_eager_run_to_the_bit(loss, network, precision, recipe):
    """Epochs with lr drops, a short last batch in each, evaluation between them.

    Each batch size has a graph of its own, used once per epoch; checking uses each twice, forth and back.
    """
    config, capture = config_of(loss, network, **recipe), TapeCapture()
    graphed = train(config, on_cpu(precision), accelerations=GRAPHED, capture=lambda device: capture)
    assert comparable(graphed) == comparable(straight(loss, network, precision, **{**FEW, **recipe}))
    assert "cuda-graph" in graphed.accelerations
    assert capture.replays == [config.recipe.epochs + 2] * 2


def test_preparing_leaves_weights_statistics_momentum_sums_lr_scale_and_generators_as_they_were():
    """Also at the end of an epoch, as a run that was stopped there finds itself."""
    for precision in ("fp32", "fp16"):
        few = {"images_per_class": 1, "batch_size": 6}
        step = step_of(config_of("scaled-bn-m1", **few), on_cpu(precision))
        step(6)
        step(4)
        before = [tensor.detach().clone() for tensor in step.written()]
        addresses = [tensor.data_ptr() for tensor in step.written()]
        torch.manual_seed(3)
        random = torch.get_rng_state()
        lr = float(step.optimizer.param_groups[0]["lr"])
        scale = step.scaler.state_dict() if step.scaler else None
        _, used, _ = prepared(step, TapeCapture(), sizes=(6, 4))
        assert used.cuda_graph
        assert all(torch.equal(a, b) for a, b in zip(before, step.written(), strict=True))
        assert [tensor.data_ptr() for tensor in step.written()] == addresses
        assert torch.equal(torch.get_rng_state(), random)
        assert float(step.optimizer.param_groups[0]["lr"]) == lr
        assert (step.scaler.state_dict() if step.scaler else None) == scale


def test_an_lr_that_is_no_tensor_would_be_recorded_as_a_constant_and_is_found_out():
    step = step_of(config_of())
    for group in step.optimizer.param_groups:
        group["lr"] = 0.1
    _, used, said = prepared(step, TapeCapture())
    assert not used.cuda_graph
    assert "its weights are not bitwise equal to those of the eager step" in said[0]
    _, used, said = prepared(step, TapeCapture(), exact=False)
    assert not used.cuda_graph
    assert said[0].startswith("continuing without cuda-graph: its weights differ")


def test_without_momentum_from_the_start_the_first_steps_other_path_would_be_recorded():
    """Why momentum buffers exist, as zeros, before a step is recorded."""
    step = step_of(config_of())
    step.optimizer.state.clear()
    assert not prepared(step, TapeCapture())[1].cuda_graph


class Fake(TapeCapture):
    """Records a step with `how(work, capture)` in place of the tape."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def record(self, work):
        return self.how(work, super().record)


def stale(work, record):
    """Does the work of its first batch for ever."""
    step, (size,) = work.func, work.args
    batches, place = step.batches, step.batches.position.clone()

    def stuck() -> None:
        batches.position.copy_(place)
        step(size)

    return stuck


def idle(work, record):
    return lambda: None


def poisoned(work, record):
    """What the recording leaves are no numbers."""
    replay = record(work)

    def poison() -> None:
        replay()
        work.func.sums.values.fill_(float("nan"))

    return poison


def failing(error):
    """Fails half way, with the state already changed."""

    def record(work, record):
        work()
        raise error

    return record


BROKEN = "CUDA error: operation failed due to a previous error during capture"
broken = failing(RuntimeError(f"{BROKEN}\nand more"))
DIFFERS = "differ from those of the eager step by .* of a step's change; .* is allowed$"


@pytest.mark.parametrize(
    ("capture", "exact", "says"),
    [
        (stale, True, "its weights are not bitwise equal to those of the eager step"),
        (stale, False, f"its inputs {DIFFERS}"),
        (idle, True, "its weights are not bitwise equal to those of the eager step"),
        (idle, False, f"its inputs {DIFFERS}"),
        (poisoned, True, "its sums are not bitwise equal to those of the eager step"),
        (poisoned, False, "its inputs differ .* by inf"),
        (broken, True, f"{BROKEN}$"),
    ],
)
def test_a_recording_that_is_not_the_step_is_refused_and_the_run_is_the_plain_one(capture, exact, says):
    step = step_of(config_of())
    before = [tensor.detach().clone() for tensor in step.written()]
    made, used, said = prepared(step, Fake(capture), exact=exact)
    assert used == replace(GRAPHED, cuda_graph=False)
    assert len(said) == 1
    assert re.search(says, said[0])
    assert all(torch.equal(a, b) for a, b in zip(before, step.written(), strict=True))
    made(24)
    assert step.sums.values[0] > 0


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_running_out_of_memory_while_recording_is_no_reason_to_train_more_slowly(message):
    """It ends the run, so that it can be tried again with less beside it; the state is as before."""
    step = step_of(config_of())
    before = [tensor.detach().clone() for tensor in step.written()]
    with pytest.raises(RuntimeError, match=re.escape(message)):
        prepared(
            step, Fake(failing((torch.OutOfMemoryError if "Tried" in message else RuntimeError)(message)))
        )
    assert all(torch.equal(a, b) for a, b in zip(before, step.written(), strict=True))


def wide(network, loss, memory_format=torch.channels_last, width=1.0):
    """A step in bf16 at the paper's width or a part of it, on batches of 16 and 12 images of 10 classes."""
    config = config_of(loss, network, width=width, batch_size=16)
    return step_of(config, Precision("bf16", CPU, memory_format))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross-entropy", "scaled-bn-m1"])
@pytest.mark.parametrize("network", ["vgg16", "resnet18", "resnet50"])
def test_in_bf16_the_same_operations_are_accepted_and_wrong_ones_refused_at_full_width(network, loss):
    """Where two roundings of one step can end further apart than two steps on different images."""
    step = wide(network, loss)
    before = Snapshot(step)
    reference = Reference(step, before, (16, 12), exact=False)
    start = step.batches.position.clone()

    def stale(size):
        step.batches.position.copy_(start)
        step(size)

    def constant_lr(size):
        set_lr(step.optimizer, 1e-3)  # the first of the two that the check asks for
        step(size)

    def without_momentum(size):
        for buffer in momentum_buffers(step.optimizer):
            buffer.zero_()
        step(size)

    def replayed(size):
        step(size)

    refused = {}
    for form in (replayed, stale, constant_lr, without_momentum):
        found = before.outcome(form, (16, 12))
        for compiled in (False, True):
            try:
                reference.check(found, compiled)
            except StepDiffersError as error:
                refused[form.__name__, compiled] = str(error).split()[1]
    wrong = ("stale", "constant_lr", "without_momentum")
    assert set(refused) == {(form, compiled) for form in wrong for compiled in (False, True)}
    assert {what for (form, _), what in refused.items() if form == "stale"} == {"inputs"}
    # Where the direction of the change says something, it says it first.
    assert {what for (_, compiled), what in refused.items() if compiled} == {"inputs", "length"}


def test_another_order_of_sums_in_the_same_precision_is_accepted(monkeypatch):
    """As another algorithm of cuDNN has it; a step that repeats to the bit would otherwise allow nothing."""
    step, other = (
        wide("vgg16", "cross-entropy", memory_format, width=0.25)
        for memory_format in (torch.channels_last, torch.contiguous_format)
    )
    before = Snapshot(step)
    found = Snapshot(other).outcome(other, (16, 12))
    distances = found.distances(before.outcome(step, (16, 12)))
    assert distances["weights"] > TOLERANCE["weights"]
    Reference(step, before, (16, 12), exact=False).check(found, compiled=False)
    monkeypatch.setattr("repro.training.cuda_graph._in_other_format", lambda step: None)
    with pytest.raises(StepDiffersError, match="its weights differ"):
        Reference(step, before, (16, 12), exact=False).check(found, compiled=False)


def test_a_run_whose_recording_fails_trains_all_the_same_and_says_so_in_its_record():
    said = []
    trained = train(config_of(), accelerations=GRAPHED, capture=lambda device: Fake(broken), warn=said.append)
    assert comparable(trained) == comparable(straight(**FEW))
    assert "cuda-graph" not in trained.accelerations
    assert len(said) == 1


@pytest.mark.parametrize(
    "waits",
    [
        lambda logits: logits.sum().item(),
        lambda logits: logits[logits > 0].sum(),
        lambda logits: logits.nonzero(),
        lambda logits: torch.tensor([1.0, 2.0]),
        lambda logits: bool(logits.isnan().any()),
    ],
)
def test_a_loss_that_waits_for_the_device_cannot_be_recorded(waits):
    """The tape finds what CUDA would refuse; none of the project's losses does any of it."""
    step = step_of(config_of())
    classify = step.loss.classify

    def waiting(embedding):
        logits = classify(embedding)
        waits(logits.detach())
        return logits

    step.loss.classify = waiting
    with pytest.raises(NotPermittedError):
        TapeCapture().record(partial(step, 24))
    _, used, said = prepared(step, TapeCapture())
    assert not used.cuda_graph
    assert "not permitted when stream is capturing" in said[0]


@pytest.fixture
def counting_compiler(monkeypatch):
    """torch.compile with a compiler that only counts what it is given: Dynamo itself is the real one."""
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr("torch.compile", partial(torch.compile, backend=count))
    compiled_call.cache_clear()
    torch._dynamo.reset()
    yield compiled
    compiled_call.cache_clear()
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo looks at it
def test_every_loss_of_a_column_is_compiled_and_the_network_once(counting_compiler):
    """Dynamo's own limit of 8 would leave the heads of the fourth loss and those behind it uncompiled."""
    graphs = []
    for loss in ("scaled-bn-m1", "scaled-bn-m0.9", *LOSSES[:3]):
        config, said = config_of(loss, "vgg16", epochs=1, lr_drops=()), []
        trained = train(config, accelerations=Accelerations(compile=True), warn=said.append)
        assert "compile" in trained.accelerations, said
        graphs.append(len(counting_compiler))
    # Two batch sizes: the first loss compiles the network too, each of the others its own head alone.
    assert [after - before for before, after in itertools.pairwise((0, *graphs))] == [4, *[2] * 4]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo looks at it
def test_a_loss_that_cannot_be_compiled_whole_is_not_said_to_be(counting_compiler):
    step = step_of(config_of())
    classify = step.loss.classify

    def printing(embedding):
        torch._dynamo.graph_break()
        return classify(embedding)

    step.loss.classify = printing
    _, used, said = prepared(step, TapeCapture(), accelerations=Accelerations(compile=True), exact=False)
    assert not used.compile
    assert said[0].startswith("continuing without compile: ")
    assert "graph_break" in said[0]


def test_a_network_with_dropout_is_neither_recorded_nor_compiled():
    config = config_of(network="vgg16-4096", epochs=1, lr_drops=())
    both = GRAPHED.switched(on=["compile"])
    trained = train(config, accelerations=both, capture=lambda device: 1 / 0)
    assert not {"cuda-graph", "compile"} & set(trained.accelerations)


def test_foreach_without_fused_trains_the_same_to_float_precision():
    fused = straight(**FEW)
    foreach = train(config_of(), accelerations=Accelerations().switched(off=["fused-sgd"]))
    losses = [[epoch.train_loss for epoch in run.curve] for run in (fused, foreach)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "fused-sgd" not in foreach.accelerations


def test_accelerations_are_known_by_name():
    assert Accelerations.of(("compile", "fused-sgd")).names() == ("fused-sgd", "compile")
    assert Accelerations().switched(on=["compile"], off=["channels-last"]).names() == ("fused-sgd", "compile")
    with pytest.raises(UsageError, match="unknown acceleration 'magic'; known: channels-last, fused-sgd"):
        Accelerations.of(["magic"])
    with pytest.raises(UsageError, match="compile: both enabled and disabled"):
        Accelerations().switched(["compile"], ["compile"])
    with pytest.raises(UsageError, match="cuda-graph needs fused-sgd"):
        GRAPHED.switched(off=["fused-sgd"])
