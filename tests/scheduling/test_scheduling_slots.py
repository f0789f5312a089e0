"""Slots: which devices are found, and how many workers they take."""

import subprocess
import sys

import pytest
from repro.scheduling.slots import find_slots

from repro.errors import DeviceError, UsageError
from repro.gpus import Gpu, parse_gpus, read_gpus
from repro.system import processor_name, usable_cores

H200 = Gpu(0, "NVIDIA H200", "GPU-aaaa-0000", 150_754_820_096)
OLD = Gpu(1, "NVIDIA GeForce GTX 1080 Ti", "GPU-bbbb-1111", 11_811_160_064)


def slots_of(visible=None, gpus=None, per_gpu=1, device="auto", present=(H200, OLD)):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return find_slots(
        2, device, gpus=gpus, per_gpu=per_gpu, cpu_slots=1, environ=environ, reader=lambda: present
    )


def uuids(slots):
    return [slot.uuid for slot in slots]


def test_every_gpu_is_a_slot():
    slots = slots_of()
    assert [(slot.device, slot.index, slot.name, slot.co_tenants) for slot in slots] == [
        ("cuda", 0, "NVIDIA H200", 0),
        ("cuda", 1, "NVIDIA GeForce GTX 1080 Ti", 0),
    ]
    assert slots[1].memory_bytes == 11_811_160_064
    assert slots[1].environment["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb-1111"
    assert slots[1].environment["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", ["GPU-aaaa-0000"]),
        ("1,0", ["GPU-bbbb-1111", "GPU-aaaa-0000"]),
        ("1,1", ["GPU-bbbb-1111"]),
        ("GPU-bbbb-1111", ["GPU-bbbb-1111"]),
        ("GPU-bb", ["GPU-bbbb-1111"]),
        ("1,-1,0", ["GPU-bbbb-1111"]),
        ("", [None]),
        ("-1", [None]),
    ],
)
def test_cuda_visible_devices_is_honoured(visible, expected):
    assert uuids(slots_of(visible)) == expected


@pytest.mark.parametrize("visible", ["2", "GPU-cccc", "GPU-", "first"])
def test_a_visible_device_that_is_not_one_is_an_error_that_lists_the_gpus(visible):
    with pytest.raises(DeviceError, match=r"there are: 0 \(NVIDIA H200\), 1 \(NVIDIA GeForce GTX 1080 Ti\)"):
        slots_of(visible)


def test_a_mig_slice_is_refused_by_name():
    with pytest.raises(DeviceError, match=r"MIG\) are not supported"):
        slots_of("MIG-1234")


def test_gpus_picks_among_the_visible_ones():
    assert uuids(slots_of(gpus=(1,))) == ["GPU-bbbb-1111"]
    assert uuids(slots_of("1", gpus=(1,))) == ["GPU-bbbb-1111"]
    with pytest.raises(
        DeviceError, match=r"no GPU 0; visible here: 1 \(NVIDIA GeForce GTX 1080 Ti\) \(CUDA_"
    ):
        slots_of("1", gpus=(0,))


def test_gpus_where_there_is_none_is_an_error():
    with pytest.raises(DeviceError, match="no GPU 0; visible here: none"):
        slots_of(gpus=(0,), present=())
    with pytest.raises(DeviceError, match="no GPU is visible"):
        slots_of(device="cuda", present=())
    with pytest.raises(UsageError, match="leave one of them out"):
        slots_of(device="cpu", gpus=(0,))


def test_a_list_of_gpus_is_numbers():
    assert parse_gpus("0, 2") == (0, 2)
    with pytest.raises(UsageError, match="got 'all'"):
        parse_gpus("all")


def test_several_runs_a_gpu_fill_every_gpu_once_before_any_twice():
    slots = slots_of(per_gpu=2)
    assert [slot.label for slot in slots] == ["cuda:0/0", "cuda:1/0", "cuda:0/1", "cuda:1/1"]
    assert {slot.co_tenants for slot in slots} == {1}


def test_less_than_one_run_a_gpu_is_refused():
    with pytest.raises(UsageError, match="--per-gpu: expected at least 1, got 0"):
        slots_of(per_gpu=0)


def test_without_a_gpu_the_cpu_has_a_slot_for_every_runs_threads():
    cores = usable_cores()
    assert len(find_slots(1, "auto", environ={}, reader=tuple)) == cores
    (slot,) = find_slots(10 * cores, "auto", environ={}, reader=tuple)
    assert (slot.device, slot.name, slot.uuid, slot.label) == ("cpu", processor_name(), None, "cpu")
    assert slot.environment["OMP_NUM_THREADS"] == str(10 * cores)
    assert slot.memory_bytes > 2**28


def test_a_machine_without_a_driver_has_no_gpus():
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        assert read_gpus() == ()
    else:
        pynvml.nvmlShutdown()
        assert all(gpu.uuid.startswith("GPU-") for gpu in read_gpus())


def test_scheduling_never_imports_torch():
    code = (
        "import pkgutil, importlib, sys, repro.scheduling as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'repro.scheduling.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted({'torch', 'pandas', 'rich', 'tabulate'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
