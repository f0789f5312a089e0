"""The device of a process and what it is given by default: precision's companion accelerations, determinism.

Decided here and not in modules that the training loop imports, so that what is learnt later about speed does
not make records "older code".
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from repro.config import RunConfig
from repro.errors import DataMissingError, DeviceError
from repro.manifest import read_manifest
from repro.training.precision import Accelerations

COMPILING_PAYS_FROM = 2_000_000  # training images of one run
# The paper's recipe has 3 to 10 million, and the minute of compiling is shared by all runs of the network in
# the process. By the kind of run alone, so that all seeds of a cell are computed alike.


def choose_device(asked: str | None) -> torch.device:
    """The device asked for, else the first CUDA device, else the CPU; DeviceError if it is not there."""
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(asked)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"--device {asked}: torch {torch.__version__} finds no CUDA device; "
            "`nvidia-smi` shows whether the driver does, and whether torch's build fits the card"
        )
    if device.type not in ("cuda", "cpu"):
        raise DeviceError(f"--device {asked}: expected cpu, cuda or cuda:N")
    return device


def use_deterministic_algorithms() -> None:
    """Has torch take only kernels that repeat to the bit; call it before the first matrix product.

    cuBLAS reads its workspace's size once, at the process's first product: set later it changes nothing.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def self_test(device: torch.device) -> None:
    """Takes a convolution forward and backward: a broken device ends the process before it has a run."""
    images = torch.ones(2, 3, 8, 8, device=device, requires_grad=True)
    weights = torch.ones(4, 3, 3, 3, device=device)
    torch.nn.functional.conv2d(images, weights).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_accelerations(
    device: torch.device,
    images: int = 0,
    on: Sequence[str] = (),
    off: Sequence[str] = (),
    deterministic: bool = False,
    capability: tuple[int, int] | None = None,
) -> Accelerations:
    """The accelerations of a run that trains on `images` over its epochs, with those switched `on` and `off`.

    A CUDA graph from compute capability 7.0, and torch.compile from 8.0 where there are enough images and
    nothing is to be deterministic; neither on older GPUs nor on a CPU, where compiling is an option and a
    graph is not. `capability` replaces what the hardware says. Raises DeviceError where one that was asked
    for is unavailable.
    """
    graph = compiles = False
    if device.type == "cuda":
        capability = capability or torch.cuda.get_device_capability(device)
        graph = capability >= (7, 0) and "fused-sgd" not in off
        compiles = capability >= (8, 0) and not deterministic and images >= COMPILING_PAYS_FROM
        if "compile" in on and capability < (7, 0):
            raise DeviceError(
                f"compile needs compute capability 7.0, this GPU has {capability[0]}.{capability[1]}"
            )
    elif "cuda-graph" in on:
        raise DeviceError("cuda-graph needs a CUDA device; this run is on the CPU")
    if "compile" in on and deterministic:
        raise DeviceError("compile and --deterministic exclude each other: compiled kernels round otherwise")
    return Accelerations(cuda_graph=graph, compile=compiles).switched(on, off)


def images_to_train(config: RunConfig, data_dir: Path) -> int:
    """Over all epochs of a run; 0 where its data are not at hand."""
    recipe = config.recipe
    if recipe.data == "digits":
        return recipe.epochs * (recipe.classes or 0) * (recipe.images_per_class or 0)
    try:
        manifest = read_manifest(data_dir, config.dataset)
    except DataMissingError:
        return 0
    most = manifest.train.count
    if recipe.images_per_class is not None:
        most = min(most, manifest.classes * recipe.images_per_class)
    return recipe.epochs * most
