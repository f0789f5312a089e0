"""`repro train RUN_ID…`: the one command that every executor launches.

Trains runs in order in one process. Each commits on its own; a failed one is noted and the next goes on.
SIGTERM and SIGUSR1 write a checkpoint at the next step and exit 75, SIGUSR2 ends after the run in progress,
SIGINT is SIGTERM with exit code 130.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Sequence

import torch

from repro.commands.live_curves import require_tensorboard
from repro.commands.provenance import describe_environment, host_salt
from repro.commands.stop import Stop
from repro.commands.techniques import choose_techniques, images_to_train, unmeasured
from repro.commands.worker import DeviceBrokenError, TrainOptions, Worker
from repro.commit import RunBusyError, run_lock
from repro.config import Preset
from repro.data.prepared import PreparedData
from repro.data.training_set import open_for_training
from repro.errors import DeviceError, OwnCodeError, RunFailedError, RunInterruptedError
from repro.paths import Project
from repro.records import Environment
from repro.registry import Registry
from repro.training.precision import choose_precision


def say_on_stderr(line: str) -> None:
    """Prints the line; a log on a full disk takes none, which is no reason to stop."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def train(
    run_ids: Sequence[str],
    registry: Registry,
    preset: Preset,
    project: Project,
    options: TrainOptions,
    say: Callable[[str], None] = say_on_stderr,
    stop: Stop | None = None,
) -> int:
    """Trains the runs in order and returns the exit code: 0, 1 if one failed, 75 or 130 if stopped."""
    stop = stop or Stop()
    if options.log:
        require_tensorboard()
    if options.deterministic:
        use_deterministic_algorithms()
    runs = [registry.parse(run_id) for run_id in run_ids]
    configs = [registry.config(run, preset) for run in runs]
    threads = options.threads or preset.threads
    torch.set_num_threads(threads)
    device = choose_device(options.device)
    precision = choose_precision(device, options.precision)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not options.deterministic
    failed, told = 0, ""
    known: tuple[Environment, bytes] | None = None
    data: dict[str, PreparedData] = {}
    for run, config in zip(runs, configs, strict=True):
        if stop.now or stop.after_run:
            return stop.exit_code
        paths = project.run(preset.name, run.id)
        try:
            with run_lock(paths):
                # What a record needs is found out before the first step: a run must not be lost to it.
                if known is None:
                    salt_file = project.host_salt(preset.name)
                    known = describe_environment(project.root, device), host_salt(salt_file)
                techniques = choose_techniques(
                    device,
                    images_to_train(config, project.data),
                    options.switch_on,
                    options.switch_off,
                    options.deterministic,
                )
                if (unknown := ", ".join(unmeasured(device, techniques))) and unknown != told:
                    say(f"{unknown}: checked against the plain step here, but their speed was never measured")
                    told = unknown
                # One data set at a time stays open: a group shares it, and the next needs the memory.
                if config.dataset not in data:
                    data = {config.dataset: open_for_training(config, project.data)}
                worker = Worker(
                    run=run,
                    config=config,
                    preset=preset,
                    project=project,
                    paths=paths,
                    options=options,
                    precision=precision,
                    techniques=techniques,
                    threads=threads,
                    environment=known[0],
                    salt=known[1],
                    say=say,
                    stop=stop,
                )
                worker.train(data[config.dataset])
        except RunBusyError:
            say(f"{run.id}: another process is training it; skipped")
        except RunInterruptedError as interruption:
            say(f"{run.id}: {interruption}")
            return stop.exit_code
        except DeviceBrokenError as failure:
            say(f"{run.id}: failed: {failure}; this process cannot use its device any more")
            return 1
        except (RunFailedError, OwnCodeError) as failure:
            # Code of the user's own that does not work is no reason to leave the group's other runs.
            failed += 1
            say(f"{run.id}: failed: {failure}")
            _give_memory_back(device)
    return 1 if failed else 0


def use_deterministic_algorithms() -> None:
    """Has torch take only kernels that repeat to the bit; call it before the first matrix product.

    cuBLAS reads its workspace's size once, at the process's first product: set later it changes nothing.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


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


def _give_memory_back(device: torch.device) -> None:
    """Frees what a failed run still holds: the next one, and others on the device, may need it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
