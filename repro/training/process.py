"""What all runs of a training process share: its options, its device, and what their records tell of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from repro.config import Preset
from repro.paths import Project
from repro.records import Environment
from repro.training.device import choose_device, self_test, use_deterministic_algorithms
from repro.training.heartbeat import Heartbeat
from repro.training.loop import CHECKPOINT_INTERVAL
from repro.training.precision import Precision, choose_precision
from repro.training.provenance import EnergyMeter, describe_environment, host_salt

_DEVICE_LOST = (
    "No CUDA GPUs are available",
    "no CUDA-capable device is detected",
    "is/are busy or unavailable",
    "GPU is lost",
    "GPU has fallen off the bus",
    "uncorrectable ECC error",
    "hardware stack error",
    "CUDA error: unknown error",
    "CUDA error: device not ready",
    "CUDA error: invalid device ordinal",
)  # what torch and CUDA say of a device that is gone or does not answer any more: no run is to blame


@dataclass(frozen=True)
class TrainOptions:
    """How a process trains, beside what the recipe says; None leaves it to the device or the preset."""

    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    deterministic: bool = False
    switch_on: tuple[str, ...] = ()
    switch_off: tuple[str, ...] = ()
    per_gpu: "int | Literal['auto']" = 1
    checkpoint_interval: float = CHECKPOINT_INTERVAL
    log: str | None = None


@dataclass(frozen=True)
class Process:
    """What all runs of this process share; `warn` prints one line."""

    project: Project
    preset: Preset
    options: TrainOptions
    device: torch.device
    precision: Precision
    threads: int
    environment: Environment
    salt: bytes
    energy: EnergyMeter
    heartbeat: Heartbeat
    warn: Callable[[str], None]

    def is_lost(self, error: Exception) -> bool:
        """Whether the error says that the device is gone or does not answer any more."""
        return self.device.type == "cuda" and any(sign in str(error) for sign in _DEVICE_LOST)


def open_process(
    project: Project,
    preset: Preset,
    options: TrainOptions,
    heartbeat: Heartbeat,
    processes: int,
    warn: Callable[[str], None],
) -> Process:
    """Sets torch up for this process, and tests the device; `processes` of this kind share it.

    Raises DeviceError where the device is not there, SetupError where the results folder takes no writes or
    what `--log` needs is not installed, OwnCodeError where it names no logger.
    """
    if options.log:
        from repro.training.live_curves import find_logger

        find_logger(options.log, project.experiments)
    if options.deterministic:
        use_deterministic_algorithms()
    threads = options.threads or preset.threads
    torch.set_num_threads(threads)
    device = choose_device(options.device)
    precision = choose_precision(device, options.precision)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not options.deterministic
    self_test(device)
    return Process(
        project=project,
        preset=preset,
        options=options,
        device=device,
        precision=precision,
        threads=threads,
        # What a record needs is found out before the first step: a run must not be lost to it.
        environment=describe_environment(project.root, device),
        salt=host_salt(project.host_salt(preset.name)),
        energy=EnergyMeter(device, processes),
        heartbeat=heartbeat,
        warn=warn,
    )
