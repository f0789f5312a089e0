"""The CUDA devices of this machine, by NVML: no torch, no CUDA context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

from repro.errors import DeviceError
from repro.system import memory_bytes


@dataclass(frozen=True)
class Gpu:
    """One CUDA device; `index` is the number that nvidia-smi gives it, `capability` as in (8, 6) if known."""

    index: int
    name: str
    uuid: str
    memory_bytes: int
    capability: tuple[int, int] | None = None


Answer = TypeVar("Answer")


def read_gpus() -> tuple[Gpu, ...]:
    """Every GPU of the machine; none where there is no NVIDIA driver.

    Raises DeviceError where a driver is there and does not answer, so that nobody trains on the CPU by
    mistake.
    """
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        raise DeviceError(
            f"the NVIDIA driver does not answer ({error}): see what `nvidia-smi` says (after an update of "
            "the driver a restart helps), or use --device cpu"
        ) from None
    try:
        return tuple(_read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        raise DeviceError(f"a GPU cannot be read ({error}): see what `nvidia-smi` says") from None
    finally:
        pynvml.nvmlShutdown()


def driver_version() -> str | None:
    """The NVIDIA driver's version; None where there is no driver."""
    return _ask(lambda nvml: str(nvml.nvmlSystemGetDriverVersion()))


def consumed_joules(uuid: str) -> float | None:
    """Energy that the GPU `uuid` has used since its driver was loaded, by its own counter (from Volta on).

    None where NVML has no such counter for it.
    """
    return _ask(
        lambda nvml: nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByUUID(uuid)) / 1000
    )


def _ask(question: Callable[[Any], Answer]) -> Answer | None:
    """NVML's answer to what is good to know and not needed; None where it has none."""
    try:
        pynvml.nvmlInit()
        try:
            return question(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _read_gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError_NotSupported:
        # A device that shares the machine's memory has none of its own to report.
        memory = memory_bytes()
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
    return Gpu(index, name, uuid, memory, (major, minor))


def visible_gpus(gpus: Sequence[Gpu], variable: str | None) -> tuple[Gpu, ...]:
    """Those of `gpus` that CUDA_VISIBLE_DEVICES (`variable`, None if unset) leaves, in its order.

    It may hold indices, UUIDs or their beginnings; empty or -1 means none. Indices are nvidia-smi's.
    CUDA ignores an entry that it does not know and all behind it; here that is a DeviceError.
    """
    if variable is None:
        return tuple(gpus)
    visible: list[Gpu] = []
    for entry in (part.strip() for part in variable.split(",")):
        if entry in ("", "-1", "NoDevFiles"):
            break
        by_index = entry.isdigit()
        matching = [
            gpu for gpu in gpus if (int(entry) == gpu.index if by_index else gpu.uuid.startswith(entry))
        ]
        if len(matching) != 1:
            hint = "; slices of a GPU (MIG) are not supported" if entry.startswith("MIG") else ""
            raise DeviceError(
                f"CUDA_VISIBLE_DEVICES is {variable!r}, but {entry!r} names {len(matching)} of the GPUs "
                f"here{hint}; there are: {list_gpus(gpus)}"
            )
        if matching[0] not in visible:
            visible.append(matching[0])
    return tuple(visible)


def list_gpus(gpus: Sequence[Gpu]) -> str:
    """`0 (NVIDIA H200), 1 (NVIDIA H200)`, or `none`."""
    return ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus) or "none"
