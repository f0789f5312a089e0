"""What every folder of tests shares: their lanes, the real data beside the project, one thread for torch."""

import os

# Before CUDA starts: cuBLAS reads it once per process, at the first matrix product of whichever test comes first.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
# Before torch is loaded: threads that wait for one another would spin, beside other jobs for minutes.
os.environ["OMP_WAIT_POLICY"] = "passive"

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.registry import Registry

PROJECT = Path(__file__).resolve().parent.parent


SLOW = ("slow", "long", "slurm", "ray", "shared", "tex", "browser")  # `./check.sh --all` runs these too
STARTS_PROCESSES_OR_TRAINS = {
    "subprocess", "multiprocessing", "psutil", "ProcessPoolExecutor", "LocalExecutor", "on_a_tiny_disk",
    "smoke_project.repro", "smoke_project.start", "train", "train_run", "train_here", "training",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with its lane: unit, integration or slow. Files with slow tests come first.

    A file belongs to `integration` if it says so, or imports what starts processes or trains; a test also if
    it uses `trained`. With two processes, a slow file at the end would keep one waiting for the other.
    """
    for item in items:
        named = [value for value in vars(item.module).values() if hasattr(value, "__name__")]
        imported = {value.__name__ for value in named}
        imported |= {
            f"{value.__module__}.{value.__name__}" for value in named if hasattr(value, "__module__")
        }
        if any(item.get_closest_marker(mark) for mark in SLOW):
            item.add_marker("slow")
        elif (
            item.get_closest_marker("integration")
            or STARTS_PROCESSES_OR_TRAINS & imported
            or "trained" in item.fixturenames
        ):
            item.add_marker("integration")
        else:
            item.add_marker("unit")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> "Context":
    """A results folder with the records of RUN and OTHER, trained once per process; read it only."""
    from smoke_project import OTHER, RUN, smoke_context, train_here

    with pytest.MonkeyPatch.context() as patch:
        context = smoke_context(patch, tmp_path_factory.mktemp("trained") / "results")
        assert train_here(context, RUN, OTHER) == 0
        return context


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Context":
    """The project with the smoke preset and results of the test's own."""
    from smoke_project import smoke_context

    return smoke_context(monkeypatch, tmp_path / "results")


@pytest.fixture(scope="session")
def registry() -> "Registry":
    """The project's own; read it only."""
    from repro.registry import Registry

    return Registry.load(PROJECT / "experiments")


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
    """`tiny-imagenet-200/` with 100 training and 20 test images per class; read it, never write into it."""
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
