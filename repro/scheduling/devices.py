"""The devices that runs can be trained on: one worker each."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from repro.errors import DeviceError, UsageError
from repro.gpus import Gpu, list_gpus, read_gpus, visible_gpus
from repro.system import memory_bytes, processor_name, usable_cores


@dataclass(frozen=True)
class Device:
    """What one worker trains on: a GPU, a share of the CPU, or whatever a cluster gives its job.

    `index` is the number that nvidia-smi gives it, or the share's number on a CPU. `runs_at_once` is how many
    runs share the device: those of one worker on a GPU, all CPU workers' on a CPU; None: as many as pay.
    `environment` is what a worker needs to see this device and no other. `host` is None on this machine, else
    the cluster ("slurm", "ray") that finds a machine when the job starts: then 0 bytes of memory mean that
    nobody knows yet. `capability` is a GPU's, where it is known.
    """

    kind: Literal["cuda", "cpu"]
    index: int
    name: str
    uuid: str | None
    memory_bytes: int
    runs_at_once: int | None
    environment: Mapping[str, str] = field(hash=False)
    host: str | None = None
    capability: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """`cuda:0`, `cpu:1`; `slurm:0` where it is not on this machine."""
        return f"{self.host or self.kind}:{self.index}"

    @property
    def lock_name(self) -> str:
        """What its lock is called: the same for every process that could train on it."""
        return f"{socket.gethostname()}-{self.uuid or f'{self.kind}-{self.index}'}"


def find_devices(
    threads: int, gpus: str | None = None, per_gpu: "int | Literal['auto']" = "auto"
) -> tuple[Device, ...]:
    """This machine's devices: every visible GPU, or as many shares of the CPU as it has room for.

    `threads` are the CPU threads of one run; without a GPU there are usable cores // threads shares, at least
    one. `gpus` (`0,2`) picks among the GPUs that CUDA_VISIBLE_DEVICES leaves, by nvidia-smi's number.

    Raises DeviceError where a GPU that was asked for is not there, UsageError for what is no list of numbers.
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = read_gpus()
    visible = visible_gpus(present, variable) if present else ()
    if gpus is not None:
        visible = _pick(visible, gpus, variable)
    limits = _thread_limits(threads)
    if visible:
        at_once = None if per_gpu == "auto" else per_gpu
        return tuple(
            Device("cuda", gpu.index, gpu.name, gpu.uuid, gpu.memory_bytes, at_once,
                   {"CUDA_VISIBLE_DEVICES": gpu.uuid, **limits}, capability=gpu.capability)
            for gpu in visible
        )  # fmt: skip
    count = max(1, usable_cores() // threads)
    runs = count * (1 if per_gpu == "auto" else per_gpu)
    name, memory = processor_name(), memory_bytes()
    return tuple(Device("cpu", share, name, None, memory, runs, limits) for share in range(count))


def remote_devices(
    host: str, count: int, name: str, kind: Literal["cuda", "cpu"], threads: int, runs_at_once: int = 1
) -> tuple[Device, ...]:
    """Room for `count` jobs of a cluster; nothing of this machine is looked at."""
    return tuple(
        Device(kind, index, name, None, 0, runs_at_once, _thread_limits(threads), host)
        for index in range(count)
    )


def _pick(visible: Sequence[Gpu], text: str, variable: str | None) -> tuple[Gpu, ...]:
    """The GPUs that `--gpus` names."""
    wanted = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in wanted):
        raise UsageError(f"--gpus: expected numbers as nvidia-smi counts them, such as 0,2; got {text!r}")
    by_index = {gpu.index: gpu for gpu in visible}
    for index in map(int, wanted):
        if index not in by_index:
            because = "" if variable is None else f" (CUDA_VISIBLE_DEVICES is {variable!r})"
            raise DeviceError(f"--gpus: there is no GPU {index}; visible here: {list_gpus(visible)}{because}")
    return tuple(by_index[index] for index in dict.fromkeys(map(int, wanted)))


def _thread_limits(threads: int) -> dict[str, str]:
    """Every library that starts threads of its own reads one of these when it is loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
