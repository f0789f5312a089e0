"""Which techniques a device gets, by capability, with the hardware's answer handed in; and what a run keeps."""

from datetime import UTC, datetime

import pytest
import torch
from repro.commands.stop import Stop
from repro.commands.techniques import COMPILING_PAYS_FROM, choose_techniques, unmeasured
from repro.commands.train import train
from repro.commands.worker import TrainOptions
from smoke_project import RUN, record_of, smoke_context, train_here

from repro.errors import DeviceError
from repro.records import Attempt
from repro.storage import begin_attempt, note_attempt
from repro.training.accelerations import Accelerations
from repro.training.precision import choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MANY = COMPILING_PAYS_FROM


@pytest.mark.parametrize(
    ("capability", "images", "names"),
    [
        ((9, 0), MANY, ("channels-last", "fused-sgd", "cuda-graph", "compile")),
        ((8, 0), MANY - 1, ("channels-last", "fused-sgd", "cuda-graph")),
        ((7, 5), MANY, ("channels-last", "fused-sgd", "cuda-graph")),
        ((7, 0), MANY, ("channels-last", "fused-sgd", "cuda-graph")),
    ],
)
def test_a_gpu_gets_what_its_capability_and_the_length_of_the_work_make_worthwhile(capability, images, names):
    assert choose_techniques(CUDA, images, capability=capability).names() == names


def test_a_1080_ti_trains_in_float32_on_nchw_kernel_by_kernel_and_uncompiled():
    techniques = choose_techniques(CUDA, MANY, capability=(6, 1))
    precision = techniques.layout(choose_precision(CUDA, capability=(6, 1)))
    assert (precision.name, precision.memory_format) == ("fp32", torch.contiguous_format)
    assert not techniques.cuda_graph
    assert not techniques.compile
    assert precision.scaler() is None
    with pytest.raises(DeviceError, match=r"compile needs compute capability 7\.0, this GPU has 6\.1"):
        choose_techniques(CUDA, on=["compile"], capability=(6, 1))
    with pytest.raises(DeviceError, match=r"bf16 needs compute capability 8\.0, this GPU has 6\.1"):
        choose_precision(CUDA, "bf16", capability=(6, 1))


def test_deterministic_mode_compiles_nothing_and_keeps_the_graph():
    techniques = choose_techniques(CUDA, MANY, deterministic=True, capability=(9, 0))
    assert techniques.names() == ("channels-last", "fused-sgd", "cuda-graph")
    with pytest.raises(DeviceError, match="exclude each other"):
        choose_techniques(CUDA, on=["compile"], deterministic=True, capability=(9, 0))


def test_every_technique_can_be_switched_off():
    for name in ("channels-last", "cuda-graph", "compile"):
        techniques = choose_techniques(CUDA, MANY, off=[name], capability=(9, 0))
        assert set(techniques.names()) == {"channels-last", "fused-sgd", "cuda-graph", "compile"} - {name}
    # foreach reads the lr on the host, so that a graph cannot be had with it.
    assert choose_techniques(CUDA, MANY, off=["fused-sgd"], capability=(9, 0)).names() == (
        "channels-last",
        "compile",
    )


def test_a_cpu_compiles_when_asked_and_has_no_graph():
    assert choose_techniques(CPU, MANY).names() == ("channels-last", "fused-sgd")
    assert choose_techniques(CPU, on=["compile"]).compile
    with pytest.raises(DeviceError, match="cuda-graph needs a CUDA device"):
        choose_techniques(CPU, on=["cuda-graph"])


def test_what_was_never_measured_on_a_gpu_is_said_to_be_so():
    techniques = choose_techniques(CUDA, MANY, capability=(9, 0))
    assert unmeasured(CUDA, techniques) == ("cuda-graph", "compile")
    assert unmeasured(CPU, choose_techniques(CPU)) == ()


def test_a_record_says_which_techniques_were_in_use(monkeypatch, tmp_path):
    context = smoke_context(monkeypatch, tmp_path)
    vgg = RUN.replace("resnet18", "vgg16")
    assert train_here(context, RUN, vgg, precision="fp32", switch_off=("fused-sgd",)) == 0
    # The narrow ResNet cannot be trained in NHWC on a CPU.
    assert record_of(context, RUN).provenance.accelerations == ("resident-data",)
    assert record_of(context, vgg).provenance.accelerations == ("resident-data", "channels-last")


def interrupted(context, *runs, after, **options):
    """Trains until `after` reports of whether to stop were asked for."""

    class Soon(Stop):
        asked = 0

        @property
        def now(self):
            self.asked += 1
            return self.asked > after

        @now.setter
        def now(self, value):
            assert not value

    options = TrainOptions(device="cpu", precision="fp32", **options)
    said = []
    args = (runs, context.registry, context.preset, context.project, options)
    return train(*args, say=said.append, stop=Soon()), said


def test_a_run_goes_on_with_the_techniques_it_began_with(monkeypatch, tmp_path):
    context = smoke_context(monkeypatch, tmp_path)
    code, _ = interrupted(context, RUN, after=4, switch_off=("fused-sgd",))
    assert code == 75
    assert train_here(context, RUN, precision="fp32") == 0
    record = record_of(context, RUN)
    assert record.provenance.accelerations == ("resident-data",)
    assert record.provenance.attempts[-1].resumed_at_step > 0


def test_a_run_begun_with_other_techniques_than_are_asked_for_starts_anew_and_says_so(monkeypatch, tmp_path):
    context = smoke_context(monkeypatch, tmp_path)
    assert interrupted(context, RUN, after=4)[0] == 75
    code, said = interrupted(context, RUN, after=10**6, switch_off=("fused-sgd",))
    assert code == 0
    assert any("starts anew" in line and "channels-last+fused-sgd → channels-last" in line for line in said)
    assert record_of(context, RUN).provenance.attempts[-1].resumed_at_step == 0


def test_a_run_that_has_broken_its_gpu_is_tried_again_without_graph_and_compiler(monkeypatch, tmp_path):
    context = smoke_context(monkeypatch, tmp_path)
    paths = context.project.run(context.preset.name, RUN)
    attempt = Attempt(
        number=1,
        started=datetime.now(UTC),
        ended=datetime.now(UTC),
        outcome="failed: AcceleratorError: CUDA error: an illegal memory access was encountered",
        resumed_at_step=0,
    )
    note_attempt(begin_attempt(paths), attempt)
    monkeypatch.setattr("repro.commands.train.choose_techniques", lambda *args: Accelerations(compile=True))
    code, said = interrupted(context, RUN, after=10**6)
    assert code == 0
    assert any(
        "goes on without cuda-graph and compile: an attempt before ended in a CUDA error" in line
        for line in said
    )
    assert record_of(context, RUN).provenance.accelerations == ("resident-data", "fused-sgd")
