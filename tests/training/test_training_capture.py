"""A recorded step is the plain step: every trap of recording one, on the CPU with a tape in a graph's place."""

import itertools
import re
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from smoke_project import ROOT
from tape import NotPermittedError, TapeCapture

from repro.data import open_for_training
from repro.data.loader import Feed, draw_epoch, normalisation, subset, to_device
from repro.errors import RunInterruptedError, UsageError
from repro.records import Signature
from repro.registry import Registry
from repro.training.capture import LEAST_TOLERANCE, Reference, Snapshot, StepDiffersError, prepare
from repro.training.checkpoint import CheckpointFolder
from repro.training.loop import build, train_run, training
from repro.training.metrics import EpochSums
from repro.training.optim import make_optimizer, momentum_buffers, set_lr
from repro.training.precision import Precision
from repro.training.randomness import generator
from repro.training.step import TrainingStep, compiled_call
from repro.training.techniques import Techniques

CPU = torch.device("cpu")
GRAPHED = Techniques(cuda_graph=True)
LOSSES = ("cross-entropy", "am-softmax-s10-m0.5", "pedcc-s10-m0.5", "scaled-bn-m1")
ALL_LOSSES = (
    *LOSSES,
    "logit-scale-s2",
    "affine-bn",
    "cosine-learnt-scale-s10",
    "cosine-scale-by-classes",
    "logit-norm-t0.04",
    "logit-z-score",
    "label-smoothing-0.1",
    "scaled-bn-m1+statistics=full-batches",
)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(ROOT / "experiments")


def config_of(registry, loss="cross-entropy", network="resnet18", **recipe):
    """40 images in batches of 24: the last one has 16."""
    config = registry.config(registry.parse(f"cifar100/{network}/{loss}/seed0"), registry.preset("smoke"))
    recipe = {"batch_size": 24, "images_per_class": 4, "test_images_per_class": 2, **recipe}
    return config.model_copy(update={"recipe": config.recipe.model_copy(update=recipe)})


def data_of(config):
    return open_for_training(config, ROOT / "no data needed")


def fp(name="fp32") -> Precision:
    return Precision(name, CPU, torch.contiguous_format)


def comparable(trained):
    return trained.result, [e.model_dump(exclude={"seconds"}) for e in trained.curve], trained.probes


def step_of(config, precision=None, **options) -> TrainingStep:
    data = data_of(config)
    precision = precision or fp()
    split = to_device(subset(data, config.recipe)[0], CPU)
    network, loss = build(config, 32, 10)
    optimizer = make_optimizer(network, loss, config.recipe, lr_device=CPU)
    feed = Feed(split, 4, normalisation(data, config.recipe, CPU, torch.contiguous_format))
    feed.begin(draw_epoch(split.count, config.recipe, lambda purpose: generator(0, purpose, 0)))
    return TrainingStep(
        network, loss, optimizer, precision.scaler(), precision, feed, EpochSums(CPU), **options
    )


def prepared(step, capture, sizes=(24, 16), exact=True, techniques=GRAPHED):
    said = []
    made, used = prepare(step, sizes, techniques, lambda: capture, exact, said.append)
    return made, used, said


@pytest.mark.parametrize(
    ("loss", "precision"), [*((loss, "fp32") for loss in LOSSES), (LOSSES[3], "bf16"), (LOSSES[3], "fp16")]
)
def test_a_graphed_run_is_the_eager_run_to_the_bit(registry, loss, precision):
    """Three epochs with two lr drops, a short last batch in each, evaluation between them.

    In fp16, which a CPU is slow in, fewer images and two epochs.
    """
    fewer = {"images_per_class": 2, "batch_size": 12, "epochs": 2, "lr_drops": (1,)}
    config = config_of(registry, loss, **(fewer if precision == "fp16" else {}))
    data = data_of(config)
    capture = TapeCapture()
    graphed = train_run(config, data, fp(precision), techniques=GRAPHED, capture=lambda device: capture)
    assert comparable(graphed) == comparable(train_run(config, data, fp(precision)))
    assert "cuda-graph" in graphed.techniques
    assert capture.recorded == 2


@pytest.mark.parametrize(
    ("network", "loss"), [*(("resnet18", loss) for loss in ALL_LOSSES[4:]), ("vgg16", LOSSES[0])]
)
def test_every_other_loss_and_network_can_be_recorded_too(registry, network, loss):
    config = config_of(registry, loss, network, epochs=1, lr_drops=())
    data = data_of(config)
    graphed = train_run(config, data, fp(), techniques=GRAPHED, capture=lambda device: TapeCapture())
    assert comparable(graphed) == comparable(train_run(config, data, fp()))
    assert "cuda-graph" in graphed.techniques


def test_rotation_is_recorded_with_the_rest(registry):
    config = config_of(registry, "cross-entropy+rotation=15", epochs=2, lr_drops=(1,))
    data = data_of(config)
    graphed = train_run(config, data, fp(), techniques=GRAPHED, capture=lambda device: TapeCapture())
    assert comparable(graphed) == comparable(train_run(config, data, fp()))


def test_the_short_last_batch_has_a_recording_of_its_own_and_each_is_used_for_its_size(registry):
    """Checking uses each twice: forth and back."""
    config = config_of(registry)
    capture = TapeCapture()
    train_run(config, data_of(config), fp(), techniques=GRAPHED, capture=lambda device: capture)
    in_training, in_checking = config.recipe.epochs, 2
    assert capture.replays == [in_training + in_checking] * 2


def test_preparing_leaves_weights_statistics_momentum_sums_lr_scale_and_generators_as_they_were(registry):
    """Also at the end of an epoch, as a run that was stopped there finds itself."""
    for precision in ("fp32", "fp16"):
        few = {"images_per_class": 1, "batch_size": 6}
        step = step_of(config_of(registry, "scaled-bn-m1", **few), fp(precision))
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


def test_an_lr_that_is_no_tensor_would_be_recorded_as_a_constant_and_is_found_out(registry):
    step = step_of(config_of(registry))
    for group in step.optimizer.param_groups:
        group["lr"] = 0.1
    _, used, said = prepared(step, TapeCapture())
    assert not used.cuda_graph
    assert said[0] == "goes on without cuda-graph: its weights are not those of the plain step to the bit"
    _, used, said = prepared(step, TapeCapture(), exact=False)
    assert not used.cuda_graph
    assert said[0].startswith("goes on without cuda-graph: its weights end")


def test_without_momentum_from_the_start_the_first_steps_other_path_would_be_recorded(registry):
    """Why momentum buffers exist, as zeros, before a step is recorded."""
    step = step_of(config_of(registry))
    step.optimizer.state.clear()
    assert not prepared(step, TapeCapture())[1].cuda_graph


class Stale(TapeCapture):
    """A recording that does the work of its first batch for ever."""

    def record(self, work):
        step, (size,) = work.func, work.args
        feed, place = step.feed, step.feed.position.clone()

        def stuck() -> None:
            feed.position.copy_(place)
            step(size)

        return stuck


class Idle(TapeCapture):
    """A recording that does nothing."""

    def record(self, work):
        return lambda: None


class Broken(TapeCapture):
    """Recording fails half way, with the state already changed."""

    def record(self, work):
        work()
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nand more")


class Poisoned(TapeCapture):
    """What the recording leaves are no numbers."""

    def record(self, work):
        replay = super().record(work)

        def poison() -> None:
            replay()
            work.func.sums.values.fill_(float("nan"))

        return poison


class Full(TapeCapture):
    """The device's memory is used up while the step is recorded."""

    def __init__(self, message):
        super().__init__()
        self.message = message

    def record(self, work):
        work()
        raise torch.OutOfMemoryError(self.message) if "Tried" in self.message else RuntimeError(self.message)


DIFFERS = "end .* of a step's change away from those of the plain step, and .* is allowed$"


@pytest.mark.parametrize(
    ("capture", "exact", "says"),
    [
        (Stale, True, "its weights are not those of the plain step to the bit"),
        (Stale, False, f"its inputs {DIFFERS}"),
        (Idle, True, "its weights are not those of the plain step to the bit"),
        (Idle, False, f"its inputs {DIFFERS}"),
        (Poisoned, True, "its sums are not those of the plain step to the bit"),
        (Poisoned, False, "its inputs end inf"),
        (Broken, True, "CUDA error: operation failed due to a previous error during capture$"),
        (Broken, False, "CUDA error: operation failed due to a previous error during capture$"),
    ],
)
def test_a_recording_that_is_not_the_step_is_refused_and_the_run_is_the_plain_one(
    registry, capture, exact, says
):
    step = step_of(config_of(registry))
    before = [tensor.detach().clone() for tensor in step.written()]
    made, used, said = prepared(step, capture(), exact=exact)
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
def test_running_out_of_memory_while_recording_is_no_reason_to_train_more_slowly(registry, message):
    """It ends the run, so that it can be tried again with less beside it; the state is as before."""
    step = step_of(config_of(registry))
    before = [tensor.detach().clone() for tensor in step.written()]
    with pytest.raises(RuntimeError, match=re.escape(message)):
        prepared(step, Full(message))
    assert all(torch.equal(a, b) for a, b in zip(before, step.written(), strict=True))


def at_full_width(registry, network, loss, memory_format=torch.channels_last):
    """A step in bf16 at the paper's width, on batches of 16 and 12 generated images of 10 classes."""
    config = config_of(registry, loss, network, width=1.0, batch_size=16)
    data, precision = data_of(config), Precision("bf16", CPU, memory_format)
    split = to_device(subset(data, config.recipe)[0], CPU)
    network, loss = build(config, 32, 10)
    network.to(memory_format=memory_format)
    optimizer = make_optimizer(network, loss, config.recipe, lr_device=CPU)
    feed = Feed(split, 4, normalisation(data, config.recipe, CPU, memory_format))
    feed.begin(draw_epoch(split.count, config.recipe, lambda purpose: generator(0, purpose, 0)))
    return TrainingStep(network, loss, optimizer, None, precision, feed, EpochSums(CPU))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross-entropy", "scaled-bn-m1"])
@pytest.mark.parametrize("network", ["vgg16", "resnet18", "resnet50"])
def test_in_bf16_the_same_operations_are_accepted_and_wrong_ones_refused_at_full_width(
    registry, network, loss
):
    """Where two roundings of one step can end further apart than two steps on different images.

    `pytest -s` shows the distances.
    """
    step = at_full_width(registry, network, loss)
    before = Snapshot(step)
    reference = Reference(step, before, (16, 12), exact=False)
    start = step.feed.position.clone()

    def stale(size):
        step.feed.position.copy_(start)
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
        print(form.__name__, {k: round(v, 5) for k, v in found.distances(reference.expected).items()})
        for compiled in (False, True):
            try:
                reference.check(found, compiled)
            except StepDiffersError as error:
                refused[form.__name__, compiled] = str(error).split()[1]
    print("allowed", {name: round(reference.allowed(name), 5) for name in LEAST_TOLERANCE})
    wrong = ("stale", "constant_lr", "without_momentum")
    assert set(refused) == {(form, compiled) for form in wrong for compiled in (False, True)}
    assert {what for (form, _), what in refused.items() if form == "stale"} == {"inputs"}
    # Where the direction of the change says something, it says it first.
    assert {what for (_, compiled), what in refused.items() if compiled} == {"inputs", "length"}


def test_another_order_of_sums_in_the_same_precision_is_accepted(registry, monkeypatch):
    """As another algorithm of cuDNN has it; a step that repeats to the bit would otherwise allow nothing."""
    step, other = (
        at_full_width(registry, "vgg16", "cross-entropy", memory_format)
        for memory_format in (torch.channels_last, torch.contiguous_format)
    )
    before = Snapshot(step)
    found = Snapshot(other).outcome(other, (16, 12))
    distances = found.distances(before.outcome(step, (16, 12)))
    assert distances["weights"] > LEAST_TOLERANCE["weights"]
    Reference(step, before, (16, 12), exact=False).check(found, compiled=False)
    monkeypatch.setattr("repro.training.capture._in_other_format", lambda step: None)
    with pytest.raises(StepDiffersError, match="its weights end"):
        Reference(step, before, (16, 12), exact=False).check(found, compiled=False)


def test_a_run_whose_recording_fails_trains_all_the_same_and_says_so_in_its_record(registry):
    config = config_of(registry)
    data = data_of(config)
    said = []
    trained = train_run(
        config, data, fp(), techniques=GRAPHED, capture=lambda device: Broken(), say=said.append
    )
    assert comparable(trained) == comparable(train_run(config, data, fp()))
    assert "cuda-graph" not in trained.techniques
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
def test_a_loss_that_waits_for_the_device_cannot_be_recorded(registry, waits):
    """The tape finds what CUDA would refuse; none of the project's losses does any of it."""
    step = step_of(config_of(registry))
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


def test_a_recorded_run_resumes_to_the_bit_and_in_the_middle_of_an_epoch(registry, tmp_path):
    config = config_of(registry, "scaled-bn-m1")
    data = data_of(config)
    how = {"techniques": GRAPHED, "capture": lambda device: TapeCapture()}
    straight = train_run(config, data, fp(), **how)
    asked = 0

    def at_the_fourth() -> bool:
        nonlocal asked
        asked += 1
        return asked == 5

    folder = tmp_path / "1"
    folder.mkdir()
    signature = Signature(config="1", data="2", code="3")
    checkpoints = CheckpointFolder(tmp_path, folder, signature)
    with pytest.raises(RunInterruptedError):
        train_run(config, data, fp(), checkpoints, should_stop=at_the_fourth, **how)
    start = checkpoints.newest()
    assert start.step == 3
    assert start.arithmetic.techniques == ("channels-last", "fused-sgd", "cuda-graph")
    assert comparable(train_run(config, data, fp(), start=start, **how)) == comparable(straight)


def test_several_runs_at_once_in_one_process_are_each_what_they_are_alone(registry):
    """A recording a run, their steps taken in turn; different losses, so that none could stand in."""
    configs = [config_of(registry, loss, epochs=2, lr_drops=(1,)) for loss in LOSSES[1:]]
    data = data_of(configs[0])
    how = {"techniques": GRAPHED, "capture": lambda device: TapeCapture()}
    alone = [comparable(train_run(config, data, fp(), **how)) for config in configs]
    going = {number: training(config, data, fp(), **how) for number, config in enumerate(configs)}
    packed = {}
    while going:
        for number in list(going):
            try:
                next(going[number])
            except StopIteration as end:
                packed[number] = comparable(end.value)
                del going[number]
    assert [packed[number] for number in range(len(configs))] == alone


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
def test_every_loss_of_a_column_is_compiled_and_the_network_once(registry, counting_compiler):
    """Dynamo's own limit of 8 would leave the heads of the fourth loss and those behind it uncompiled."""
    graphs = []
    for loss in ("scaled-bn-m1", "scaled-bn-m0.9", "scaled-bn-m0.8", *LOSSES[:3], "am-softmax-s7.5-m0.35"):
        config = config_of(registry, loss, "vgg16", epochs=1, lr_drops=())
        said = []
        data = data_of(config)
        trained = train_run(config, data, fp(), techniques=Techniques(compile=True), say=said.append)
        assert "compile" in trained.techniques, said
        graphs.append(len(counting_compiler))
    # Two batch sizes: the first loss compiles the network too, each of the others its own head alone.
    assert [after - before for before, after in itertools.pairwise((0, *graphs))] == [4, *[2] * 6]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo looks at it
def test_a_loss_that_cannot_be_compiled_whole_is_not_said_to_be(registry, counting_compiler):
    step = step_of(config_of(registry))
    classify = step.loss.classify

    def printing(embedding):
        torch._dynamo.graph_break()
        return classify(embedding)

    step.loss.classify = printing
    _, used, said = prepared(step, TapeCapture(), techniques=Techniques(compile=True), exact=False)
    assert not used.compile
    assert said[0].startswith("goes on without compile: ")
    assert "graph_break" in said[0]


def test_a_compilers_advice_on_tf32_is_no_error(registry, monkeypatch):
    """Inductor gives it on every GPU that has TF32, and warnings may be errors."""

    def advise(module, *inputs):
        warnings.warn(
            "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.",
            stacklevel=1,
        )
        return module(*inputs)

    monkeypatch.setattr("repro.training.step.compiled_call", lambda: advise)
    step = step_of(config_of(registry))
    _, used, said = prepared(step, TapeCapture(), techniques=Techniques(compile=True))
    assert used.compile, said


def test_a_network_with_dropout_is_neither_recorded_nor_compiled(registry):
    config = config_of(registry, network="vgg16-4096", epochs=1, lr_drops=())
    trained = train_run(
        config, data_of(config), fp(), techniques=GRAPHED.switched(on=["compile"]), capture=lambda d: 1 / 0
    )
    assert not {"cuda-graph", "compile"} & set(trained.techniques)


def test_the_lr_of_an_epoch_reaches_a_recording(registry):
    step = step_of(config_of(registry))
    made, used, _ = prepared(step, TapeCapture())
    assert used.cuda_graph
    weight = next(step.network.parameters())
    moved = []
    for lr in (0.1, 0.01):
        step.feed.position.zero_()
        before = weight.detach().clone()
        momentum = step.optimizer.state[weight]["momentum_buffer"]
        set_lr(step.optimizer, lr)
        made(24)
        torch.testing.assert_close(weight.detach(), before - lr * momentum)
        moved.append(float((weight.detach() - before).norm()))
    assert moved[0] > 2 * moved[1]


def test_foreach_without_fused_trains_the_same_to_float_precision(registry):
    config = config_of(registry)
    data = data_of(config)
    fused = train_run(config, data, fp())
    foreach = train_run(config, data, fp(), techniques=Techniques().switched(off=["fused-sgd"]))
    losses = [[epoch.train_loss for epoch in run.curve] for run in (fused, foreach)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "fused-sgd" not in foreach.techniques


def test_techniques_are_known_by_name():
    assert Techniques.of(("compile", "fused-sgd")).names() == ("fused-sgd", "compile")
    assert Techniques().switched(on=["compile"], off=["channels-last"]).names() == ("fused-sgd", "compile")
    with pytest.raises(UsageError, match="unknown technique 'magic'; there are: channels-last, fused-sgd"):
        Techniques.of(["magic"])
    with pytest.raises(UsageError, match="compile: asked for and switched off at once"):
        Techniques().switched(["compile"], ["compile"])
    with pytest.raises(UsageError, match="cuda-graph needs fused-sgd"):
        GRAPHED.switched(off=["fused-sgd"])
