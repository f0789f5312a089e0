"""Fixtures for every folder of tests: the real data beside the project, where they are."""

import os

# Before CUDA starts: cuBLAS reads it once per process, at the first matrix product of whichever test comes first.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

PROJECT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end, one process would wait for the other with the last of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)  # pytest knows the hook only where pytest-xdist is installed
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2` a file stays in one process: its fixtures are made once, and the chaos tests never meet.

    The tests on a real Slurm and on a real Ray stay together: each starts daemons that want the whole machine.
    """
    # --dist loadgroup would do the same, but ignores groups under pytest 9.2: xdist 3.8 writes them into an
    # attribute that is no longer read.
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "cluster" if file.endswith(("_slurm.py", "_ray.py")) else file

    return ByFile(config, log)


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
