"""Devices: which are found, and how many workers there are."""

import pytest

from repro.errors import DeviceError
from repro.gpus import Gpu, read_gpus
from repro.scheduling.devices import find_devices
from repro.system import processor_name, usable_cores

H200 = Gpu(0, "NVIDIA H200", "GPU-aaaa-0000", 150_754_820_096, (9, 0))
OLD = Gpu(1, "NVIDIA GeForce GTX 1080 Ti", "GPU-bbbb-1111", 11_811_160_064, (6, 1))


@pytest.fixture
def devices_of(monkeypatch):
    """The devices of a machine with these GPUs, for runs of two threads."""

    def find(visible=None, gpus=None, per_gpu="auto", present=(H200, OLD), threads=2):
        monkeypatch.setattr("repro.scheduling.devices.read_gpus", lambda: present)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return find_devices(threads, gpus, per_gpu)

    return find


def uuids(devices):
    return [device.uuid for device in devices]


def test_every_gpu_has_one_worker_however_many_runs_share_it(devices_of):
    for per_gpu, at_once in (("auto", None), (3, 3)):
        first, second = devices_of(per_gpu=per_gpu)
        assert (first.label, second.label, second.name) == ("cuda:0", "cuda:1", "NVIDIA GeForce GTX 1080 Ti")
        found = (first.runs_at_once, second.memory_bytes, second.capability)
        assert found == (at_once, 11_811_160_064, (6, 1))
        assert second.environment["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb-1111"
        assert second.environment["OMP_NUM_THREADS"] == "2"
        assert second.lock_name.endswith("GPU-bbbb-1111")


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", ["GPU-aaaa-0000"]),
        ("1,0", ["GPU-bbbb-1111", "GPU-aaaa-0000"]),
        ("1,1", ["GPU-bbbb-1111"]),
        ("GPU-bb", ["GPU-bbbb-1111"]),
        ("1,-1,0", ["GPU-bbbb-1111"]),
        ("-1", None),
        ("", None),
    ],
)
def test_cuda_visible_devices_is_honoured(devices_of, visible, expected):
    assert uuids(devices_of(visible)) == (expected or [None] * max(1, usable_cores() // 2))


@pytest.mark.parametrize("visible", ["2", "GPU-cccc", "GPU-", "first"])
def test_a_visible_device_that_is_not_one_is_an_error_that_lists_the_gpus(devices_of, visible):
    with pytest.raises(DeviceError, match=r"there are: 0 \(NVIDIA H200\), 1 \(NVIDIA GeForce GTX 1080 Ti\)"):
        devices_of(visible)
    with pytest.raises(DeviceError, match=r"MIG\) are not supported"):
        devices_of("MIG-1234")


def test_gpus_picks_among_the_visible_ones(devices_of):
    assert uuids(devices_of(gpus="1")) == ["GPU-bbbb-1111"]
    assert uuids(devices_of("1", gpus="1")) == ["GPU-bbbb-1111"]
    assert uuids(devices_of(gpus="1, 0,1")) == ["GPU-bbbb-1111", "GPU-aaaa-0000"]
    no_gpu_0 = r"no GPU 0; visible here: 1 \(NVIDIA GeForce GTX 1080 Ti\) \(CUDA_"
    with pytest.raises(DeviceError, match=no_gpu_0):
        devices_of("1", gpus="0")
    with pytest.raises(DeviceError, match="no GPU 0; visible here: none"):
        devices_of(gpus="0", present=())


def test_without_a_gpu_each_worker_has_the_cores_of_its_threads(devices_of):
    cores = usable_cores()
    every = devices_of(present=(), threads=1)
    assert [device.runs_at_once for device in every] == [cores] * cores
    assert len({device.lock_name for device in every}) == cores
    (one,) = devices_of(present=(), threads=10 * cores)
    assert (one.kind, one.name, one.uuid, one.label) == ("cpu", processor_name(), None, "cpu:0")
    assert one.environment["OMP_NUM_THREADS"] == str(10 * cores)
    assert one.memory_bytes > 2**28


def test_a_machine_without_a_driver_has_no_gpus():
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        assert read_gpus() == ()
    else:
        pynvml.nvmlShutdown()
        assert all(gpu.uuid.startswith("GPU-") for gpu in read_gpus())
