"""Precision and accelerations by device, with the hardware's answers handed in; and what a run keeps."""

from dataclasses import replace

import pytest
import torch
from pretended_environment import attempt_note
from smoke_project import RUN, interrupt, record_of, train_here

from repro import models
from repro.attempts import new_attempt, write_attempt
from repro.errors import DeviceError
from repro.training import run_attempt
from repro.training.device import COMPILING_PAYS_FROM, choose_accelerations
from repro.training.precision import Accelerations, choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MANY = COMPILING_PAYS_FROM
ALL = ("channels-last", "fused-sgd", "cuda-graph", "compile")


@pytest.mark.parametrize(
    ("device", "forced", "hardware", "name", "memory_format"),
    [
        (CUDA, None, {"capability": (9, 0)}, "bf16", torch.channels_last),
        (CUDA, None, {"capability": (8, 0)}, "bf16", torch.channels_last),
        (CUDA, None, {"capability": (7, 5)}, "fp16", torch.channels_last),
        (CUDA, None, {"capability": (7, 0)}, "fp16", torch.channels_last),
        (CUDA, None, {"capability": (6, 1)}, "fp32", torch.contiguous_format),
        (CPU, None, {"cpu_has_bf16": lambda: True}, "bf16", torch.channels_last),
        (CPU, None, {"cpu_has_bf16": lambda: False}, "fp32", torch.channels_last),
        (CUDA, "fp32", {"capability": (9, 0)}, "fp32", torch.channels_last),
        (CPU, "bf16", {"cpu_has_bf16": lambda: False}, "bf16", torch.channels_last),
    ],
)
def test_a_device_gets_what_it_computes_fast_or_what_is_forced(device, forced, hardware, name, memory_format):
    precision = choose_precision(device, forced, **hardware)
    assert (precision.name, precision.memory_format) == (name, memory_format)
    assert (replace(precision, device=CPU).scaler() is None) == (name != "fp16")


@pytest.mark.parametrize(
    ("device", "forced", "says"),
    [
        (CUDA, "bf16", "bf16 needs compute capability 8.0, this GPU has 6.1; use --precision fp32"),
        (CPU, "fp16", "fp16 is for GPUs"),
        (CPU, "fp8", "unknown precision 'fp8'; known: bf16, fp16, fp32"),
    ],
)
def test_a_precision_the_device_cannot_run_is_refused(device, forced, says):
    with pytest.raises(DeviceError, match=says):
        choose_precision(device, forced, capability=(6, 1), cpu_has_bf16=lambda: False)


@pytest.mark.parametrize(
    ("network", "width", "memory_format"),
    [
        ("resnet18", 0.0625, torch.contiguous_format),
        ("resnet18", 0.25, torch.channels_last),
        ("resnet50", 0.25, torch.channels_last),
        ("vgg16", 0.0625, torch.channels_last),
    ],
)
def test_a_network_too_narrow_for_channels_last_on_a_cpu_trains_in_nchw(network, width, memory_format):
    """oneDNN's strided 1×1 convolution writes out of bounds there."""
    precision = choose_precision(CPU, "fp32").for_network(models.build(network, 32, width=width))
    assert precision.memory_format == memory_format


@pytest.mark.parametrize(
    ("capability", "images", "names"),
    [((9, 0), MANY, ALL), ((8, 0), MANY - 1, ALL[:3]), ((7, 0), MANY, ALL[:3])],
)
def test_a_gpu_gets_what_its_capability_and_the_length_of_the_work_make_worthwhile(capability, images, names):
    assert choose_accelerations(CUDA, images, capability=capability).names() == names


def test_a_1080_ti_trains_in_float32_on_nchw_kernel_by_kernel_and_uncompiled():
    accelerations = choose_accelerations(CUDA, MANY, capability=(6, 1))
    precision = accelerations.layout(choose_precision(CUDA, capability=(6, 1)))
    assert (precision.name, precision.memory_format) == ("fp32", torch.contiguous_format)
    assert (accelerations.cuda_graph, accelerations.compile, precision.scaler()) == (False, False, None)
    with pytest.raises(DeviceError, match=r"compile needs compute capability 7\.0, this GPU has 6\.1"):
        choose_accelerations(CUDA, on=["compile"], capability=(6, 1))


def test_deterministic_mode_compiles_nothing_and_keeps_the_graph():
    assert choose_accelerations(CUDA, MANY, deterministic=True, capability=(9, 0)).names() == ALL[:3]
    with pytest.raises(DeviceError, match="exclude each other"):
        choose_accelerations(CUDA, on=["compile"], deterministic=True, capability=(9, 0))


def test_every_technique_can_be_switched_off():
    for name in ("channels-last", "cuda-graph", "compile"):
        accelerations = choose_accelerations(CUDA, MANY, off=[name], capability=(9, 0))
        assert set(accelerations.names()) == set(ALL) - {name}
    # foreach reads the lr on the host, so that a graph cannot be had with it.
    without = choose_accelerations(CUDA, MANY, off=["fused-sgd"], capability=(9, 0))
    assert without.names() == ("channels-last", "compile")


def test_a_cpu_compiles_when_asked_and_has_no_graph():
    assert choose_accelerations(CPU, MANY).names() == ("channels-last", "fused-sgd")
    assert choose_accelerations(CPU, on=["compile"]).compile
    with pytest.raises(DeviceError, match="cuda-graph needs a CUDA device"):
        choose_accelerations(CPU, on=["cuda-graph"])


def test_a_record_says_which_accelerations_were_in_use(context):
    vgg = RUN.replace("resnet18", "vgg16")
    assert train_here(context, RUN, vgg, precision="fp32", switch_off=("fused-sgd",)) == 0
    # The narrow ResNet cannot be trained in NHWC on a CPU.
    assert record_of(context, RUN).provenance.accelerations == ("resident-data",)
    assert record_of(context, vgg).provenance.accelerations == ("resident-data", "channels-last")


def test_a_run_is_resumed_with_the_accelerations_it_began_with(context):
    interrupt(context, RUN, precision="fp32", switch_off=("fused-sgd",))
    assert train_here(context, RUN, precision="fp32") == 0
    record = record_of(context, RUN)
    assert record.provenance.accelerations == ("resident-data",)
    assert record.provenance.attempts[-1].resumed_at_step > 0


def test_a_run_that_is_asked_to_use_others_restarts_and_says_so(context):
    interrupt(context, RUN, precision="fp32")
    said: list[str] = []
    assert train_here(context, RUN, say=said.append, precision="fp32", switch_off=("fused-sgd",)) == 0
    words = (
        "the checkpoint used channels-last+fused-sgd accelerations; this run uses channels-last accelerations"
    )
    assert f"{RUN}: restarting from epoch 1: {words}" in said
    assert record_of(context, RUN).provenance.attempts[-1].resumed_at_step == 0


def test_a_run_that_has_broken_its_gpu_is_tried_again_without_graph_and_compiler(context, monkeypatch):
    folder = new_attempt(context.project.run(context.preset.name, RUN))
    write_attempt(folder, attempt_note("device error: CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr(run_attempt, "choose_accelerations", lambda *arguments: Accelerations(compile=True))
    said: list[str] = []
    assert train_here(context, RUN, say=said.append) == 0
    words = "training without cuda-graph and compile: an earlier attempt ended in a CUDA error"
    assert f"{RUN}: {words}" in said
    assert record_of(context, RUN).provenance.accelerations == ("resident-data", "fused-sgd")
