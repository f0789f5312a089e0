"""The devices that runs can be trained on: one worker each."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from repro.errors import DeviceError, UsageError
from repro.gpus import Gpu, GpuReader, list_gpus, read_gpus, visible_gpus
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
    threads: int,
    kind: Literal["auto", "cuda", "cpu"] = "auto",
    gpus: Sequence[int] | None = None,
    per_gpu: "int | Literal['auto']" = "auto",
    environ: Mapping[str, str] | None = None,
    reader: GpuReader = read_gpus,
) -> tuple[Device, ...]:
    """This machine's devices: every visible GPU, or as many shares of the CPU as it has room for.

    `threads` are the CPU threads of one run; without a GPU there are usable cores // threads shares, at least
    one. `gpus` picks among the visible ones by nvidia-smi's number. `environ` stands in for os.environ, whose
    CUDA_VISIBLE_DEVICES is honoured.

    Raises DeviceError where a GPU that was asked for is not there, UsageError for a count below one.
    """
    if threads < 1:
        raise UsageError(f"--threads: expected at least 1, got {threads}")
    if kind == "cpu" and gpus is not None:
        raise UsageError("--gpus picks GPUs and --device cpu uses none: leave one of them out")
    if kind == "cpu":
        return _cpu(threads, per_gpu)
    variable = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    present = reader()
    visible = visible_gpus(present, variable) if present else ()
    if gpus is not None:
        visible = _pick(visible, gpus, variable)
    elif kind == "cuda" and not visible:
        raise DeviceError(f"--device cuda: no GPU is visible{_because(variable)}; --device cpu needs none")
    if not visible:
        return _cpu(threads, per_gpu)
    return tuple(_gpu(gpu, None if per_gpu == "auto" else per_gpu, threads) for gpu in visible)


def remote_devices(
    host: str, count: int, name: str, kind: Literal["cuda", "cpu"], threads: int, runs_at_once: int = 1
) -> tuple[Device, ...]:
    """Room for `count` jobs of a cluster; nothing of this machine is looked at."""
    return tuple(
        Device(kind, index, name, None, 0, runs_at_once, _thread_limits(threads), host)
        for index in range(count)
    )


def _pick(visible: Sequence[Gpu], wanted: Sequence[int], variable: str | None) -> tuple[Gpu, ...]:
    by_index = {gpu.index: gpu for gpu in visible}
    for index in wanted:
        if index not in by_index:
            raise DeviceError(
                f"--gpus: there is no GPU {index}; visible here: {list_gpus(visible)}{_because(variable)}"
            )
    if not wanted:
        raise UsageError("--gpus: expected numbers such as 0,2, got none")
    return tuple(by_index[index] for index in dict.fromkeys(wanted))


def _because(variable: str | None) -> str:
    return "" if variable is None else f" (CUDA_VISIBLE_DEVICES is {variable!r})"


def _gpu(gpu: Gpu, runs_at_once: int | None, threads: int) -> Device:
    return Device(
        kind="cuda",
        index=gpu.index,
        name=gpu.name,
        uuid=gpu.uuid,
        memory_bytes=gpu.memory_bytes,
        runs_at_once=runs_at_once,
        environment={"CUDA_VISIBLE_DEVICES": gpu.uuid, **_thread_limits(threads)},
        capability=gpu.capability,
    )


def _cpu(threads: int, per_process: "int | Literal['auto']") -> tuple[Device, ...]:
    count = max(1, usable_cores() // threads)
    runs = count * (1 if per_process == "auto" else per_process)
    name, memory, environment = processor_name(), memory_bytes(), _thread_limits(threads)
    return tuple(Device("cpu", share, name, None, memory, runs, environment) for share in range(count))


def _thread_limits(threads: int) -> dict[str, str]:
    """Every library that starts threads of its own reads one of these when it is loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
