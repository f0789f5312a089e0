"""Where runs can be trained: a slot is a device, or a share of one, for one worker at a time."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from repro.errors import DeviceError, UsageError
from repro.scheduling.gpus import Gpu, GpuReader, list_gpus, read_gpus, visible_gpus
from repro.system import memory_bytes, processor_name, usable_cores


@dataclass(frozen=True)
class Slot:
    """Room for one worker.

    `index` is the device's number as nvidia-smi counts (0 for the CPU), `share` this slot's number among
    the `co_tenants` + 1 slots of that device. `memory_bytes` is the whole device's. `environment` is what
    a worker needs to see this device and no other. `host` is None on this machine; elsewhere it names who
    finds a machine when the job starts ("slurm", "ray"): `index` only counts the slots then, and 0 bytes of
    memory mean that nobody knows yet. `capability` is a GPU's, where it is known.
    """

    device: Literal["cuda", "cpu"]
    index: int
    name: str
    uuid: str | None
    memory_bytes: int
    co_tenants: int
    environment: Mapping[str, str] = field(hash=False)
    share: int = 0
    host: str | None = None
    capability: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """`cuda:0`, `cuda:0/1` where it is shared, `cpu/1`; `slurm/0` where it is not of this machine."""
        if self.host:
            return f"{self.host}/{self.index}"
        base = f"cuda:{self.index}" if self.device == "cuda" else "cpu"
        return f"{base}/{self.share}" if self.co_tenants else base


def find_slots(
    threads: int,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    gpus: Sequence[int] | None = None,
    per_gpu: int = 1,
    cpu_slots: int | None = None,
    environ: Mapping[str, str] | None = None,
    reader: GpuReader = read_gpus,
) -> tuple[Slot, ...]:
    """The slots of this machine: `per_gpu` on every visible GPU, or as many on the CPU as it has room for.

    `threads` are the CPU threads of one run; without a GPU there are usable cores // threads slots, at
    least one, unless `cpu_slots` says how many. `gpus` picks among the visible ones by nvidia-smi's
    number. `environ` stands in for os.environ, whose CUDA_VISIBLE_DEVICES is honoured.

    Raises DeviceError where a GPU that was asked for is not there, UsageError for a count below one.
    """
    for option, count in (("--threads", threads), ("--per-gpu", per_gpu), ("CPU slots", cpu_slots)):
        if count is not None and count < 1:
            raise UsageError(f"{option}: expected at least 1, got {count}")
    if device == "cpu" and gpus is not None:
        raise UsageError("--gpus picks GPUs and --device cpu uses none: leave one of them out")
    if device == "cpu":
        return _cpu(threads, cpu_slots)
    variable = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    present = reader()
    visible = visible_gpus(present, variable) if present else ()
    if gpus is not None:
        visible = _pick(visible, gpus, variable)
    elif device == "cuda" and not visible:
        raise DeviceError(f"--device cuda: no GPU is visible{_because(variable)}; --device cpu needs none")
    if not visible:
        return _cpu(threads, cpu_slots)
    # Share by share rather than GPU by GPU: a few groups spread over the devices before they pack.
    return tuple(_gpu(gpu, share, per_gpu, threads) for share in range(per_gpu) for gpu in visible)


def remote_slots(
    host: str, count: int, name: str, device: Literal["cuda", "cpu"], threads: int, co_tenants: int = 0
) -> tuple[Slot, ...]:
    """`count` slots of a cluster, for one job each; nothing of this machine is looked at.

    `co_tenants` is how many jobs may share a device at most.
    """
    return tuple(
        Slot(
            device=device,
            index=index,
            name=name,
            uuid=None,
            memory_bytes=0,
            co_tenants=co_tenants,
            environment=_thread_limits(threads),
            host=host,
        )
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


def _gpu(gpu: Gpu, share: int, per_gpu: int, threads: int) -> Slot:
    return Slot(
        device="cuda",
        index=gpu.index,
        name=gpu.name,
        uuid=gpu.uuid,
        memory_bytes=gpu.memory_bytes,
        co_tenants=per_gpu - 1,
        environment={"CUDA_VISIBLE_DEVICES": gpu.uuid, **_thread_limits(threads)},
        share=share,
        capability=gpu.capability,
    )


def _cpu(threads: int, slots: int | None) -> tuple[Slot, ...]:
    count = slots or max(1, usable_cores() // threads)
    return tuple(
        Slot(
            device="cpu",
            index=0,
            name=processor_name(),
            uuid=None,
            memory_bytes=memory_bytes(),
            co_tenants=count - 1,
            environment=_thread_limits(threads),
            share=share,
        )
        for share in range(count)
    )


def _thread_limits(threads: int) -> dict[str, str]:
    """Every library that starts threads of its own reads one of these when it is loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
