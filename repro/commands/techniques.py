"""Which techniques a device is given by itself, and which of them nobody has measured yet.

Decided here and not in `repro.training`, so that what is learnt later does not make records older code.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from repro.config import RunConfig
from repro.errors import DataMissingError, DeviceError
from repro.manifest import read_manifest
from repro.training.techniques import Techniques

NEVER_MEASURED = ("cuda-graph", "compile")
"""On a GPU, by this project: `repro bench` measures them, docs/performance.md says what to expect."""

COMPILING_PAYS_FROM = 2_000_000
"""Training images of one run from which compiling is expected to pay on a GPU: the paper's recipe has 3 to 10
million, and its minute is shared by every run of the network in the process. By the kind of run alone, so
that the seeds of a cell are all computed alike, whichever else their process trains."""


def choose_techniques(
    device: torch.device,
    images: int = 0,
    on: Sequence[str] = (),
    off: Sequence[str] = (),
    deterministic: bool = False,
    capability: tuple[int, int] | None = None,
) -> Techniques:
    """The techniques of a run that trains on `images` over its epochs, with what is switched `on` and `off`.

    A CUDA graph from compute capability 7.0, and torch.compile from 8.0 where the images are many enough and
    nothing is to be deterministic; neither on older GPUs nor on a CPU, where compiling is an option and a
    graph is none. `capability` replaces what the hardware says. Raises DeviceError where a technique that is
    asked for cannot be had.
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
    return Techniques(cuda_graph=graph, compile=compiles).switched(on, off)


def unmeasured(device: torch.device, techniques: Techniques) -> tuple[str, ...]:
    """Those in use that this project has never measured on such a device."""
    return tuple(name for name in techniques.names() if device.type == "cuda" and name in NEVER_MEASURED)


def images_to_train(config: RunConfig, data_dir: Path) -> int:
    """Over all epochs of a run; 0 where its data are not at hand."""
    recipe = config.recipe
    if recipe.data == "generated":
        return recipe.epochs * (recipe.classes or 0) * (recipe.images_per_class or 0)
    try:
        manifest = read_manifest(data_dir, config.dataset)
    except DataMissingError:
        return 0
    most = manifest.train.count
    if recipe.images_per_class is not None:
        most = min(most, manifest.classes * recipe.images_per_class)
    return recipe.epochs * most
