"""What every folder of tests shares: their lanes, the real data beside the project, one thread for torch."""

import os

# Before CUDA starts: cuBLAS reads it once per process, at the first matrix product of whichever test comes first.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from repro.data.files import one_at_a_time

PROJECT = Path(__file__).resolve().parent.parent


SLOW = ("slow", "long", "slurm", "ray", "shared", "tex", "browser")  # `./check.sh --all` runs these too
STARTS_PROCESSES_OR_TRAINS = {
    "subprocess", "multiprocessing", "psutil", "ProcessPoolExecutor", "LocalExecutor", "on_a_tiny_disk",
    "Bench", "train", "train_run", "train_here", "training",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with its lane: unit, integration or slow. Files with slow tests come first.

    A file belongs to `integration` if it says so, or imports what starts processes or trains. With two
    processes, a slow file at the end would keep one of them waiting for the other.
    """
    for item in items:
        imported = {getattr(value, "__name__", "") for value in vars(item.module).values()}
        if any(item.get_closest_marker(mark) for mark in SLOW):
            item.add_marker("slow")
        elif item.get_closest_marker("integration") or STARTS_PROCESSES_OR_TRAINS & imported:
            item.add_marker("integration")
        else:
            item.add_marker("unit")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def whole_machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests on a real Slurm and on a real Ray never meet: each starts daemons that want the whole machine."""
    if request.path.stem.endswith(("_slurm", "_ray")):
        with one_at_a_time(Path(tempfile.gettempdir()) / "scaled-bn-repro-cluster-tests.lock", "testing"):
            yield
    else:
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets: REPRO_SHARED, or `shared` beside the project, and in it `data`."""
    shared = Path(os.environ.get("REPRO_SHARED", PROJECT.parent / "shared"))
    folder = shared / "data"
    if not (folder / "unpack.py").is_file():
        pytest.skip(f"no real data: {folder / 'unpack.py'} does not exist (REPRO_SHARED names its folder)")
    return folder


def unpacked(shared_data: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A new folder holding the real set `name` as its publishers lay it out."""
    destination = tmp_path_factory.mktemp(f"real-{name}")
    subprocess.run([sys.executable, shared_data / "unpack.py", destination, name], check=True)
    return destination


@pytest.fixture(scope="session")
def real_cifar100(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder holding `cifar-100-python/` with the published files; read it, never write into it."""
    return unpacked(shared_data, tmp_path_factory, "cifar100")


@pytest.fixture(scope="session")
def real_tiny_imagenet(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny-imagenet-200/` with 100 training and 20 test images a class; read it, never write into it."""
    return unpacked(shared_data, tmp_path_factory, "tiny-imagenet") / "tiny-imagenet-200"


@pytest.fixture(scope="session")
def real_lfw(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lfw-deepfunneled/` with 62 people, a folder each; read it, never write into it."""
    return unpacked(shared_data, tmp_path_factory, "lfw") / "lfw-deepfunneled"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and beside another job they wait for each other at length."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
