"""A run's record from what training left, and how it came to be: device, packages, attempts, checkout.

`describe_environment` asks for everything that does not depend on the run. Call it before the first step:
what cannot be found out must not cost a finished run.
"""

import contextlib
import hashlib
import platform
import resource
import secrets
import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

import torch

from repro import __version__
from repro.config import Preset, RunConfig
from repro.data.loader import subset
from repro.data.prepared import PreparedData
from repro.gpus import consumed_joules, driver_version
from repro.paths import read_file
from repro.records import Attempt, DataSummary, Environment, Provenance, RunRecord, Signature
from repro.registry import Run
from repro.storage import create_whole, refusal
from repro.system import memory_bytes, processor_name
from repro.training.loop import TrainedRun
from repro.training.precision import Precision


def describe_environment(root: Path, device: torch.device) -> Environment:
    """What this process trains on and with; `root` is the project's folder."""
    commit, dirty = git_state(root)
    cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if cuda else None
    return Environment(
        git_commit=commit,
        git_dirty=dirty,
        packages=_packages(),
        python=platform.python_version(),
        system=_system(),
        kernel=f"{platform.system()} {platform.release()}",
        processor=processor_name(),
        device=properties.name if properties else processor_name(),
        device_memory_bytes=properties.total_memory if properties else memory_bytes(),
        compute_capability=f"{properties.major}.{properties.minor}" if properties else None,
        cuda=torch.version.cuda if cuda else None,
        cudnn=str(torch.backends.cudnn.version()) if cuda else None,
        driver=driver_version() if cuda else None,
    )


def make_record(
    run: Run,
    preset: Preset,
    config: RunConfig,
    signature: Signature,
    data: PreparedData,
    trained: TrainedRun,
    precision: Precision,
    environment: Environment,
    runs_on_device: int,
    attempts: tuple[Attempt, ...],
) -> RunRecord:
    """The record of a run that this process has just finished; the last of its `attempts` made it."""
    manifest = data.manifest
    train_arrays, test_arrays = subset(data, config.recipe)
    arrays = [array for split in (manifest.train, manifest.test) for array in (split.images, split.labels)]
    started = min(attempt.started for attempt in attempts)
    return RunRecord(
        run=run.id,
        preset=preset.name,
        signature=signature,
        config=config,
        data=DataSummary(
            **manifest.model_dump(include=set(DataSummary.model_fields)),
            arrays={array.file: array.sha256 for array in arrays},
            classes=manifest.classes,
            train_images=len(train_arrays.labels),
            test_images=len(test_arrays.labels),
        ),
        result=trained.result,
        curve=trained.curve,
        probes=trained.probes,
        provenance=Provenance(
            **dict(environment),
            precision=precision.name,
            threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            accelerations=(*trained.accelerations, *(("tf32",) if _uses_tf32(precision) else ())),
            runs_on_device=runs_on_device,
            images_per_second=trained.images_per_second,
            peak_memory_bytes=_peak_memory(precision.device),
            energy_joules=_energy(attempts),
            attempts=attempts,
            started=started,
            # A clock that was set back meanwhile must not cost a finished run.
            ended=max(started, attempts[-1].ended or datetime.now(UTC)),
        ),
    )


def _peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU at most, or this process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _uses_tf32(precision: Precision) -> bool:
    """Whether float32 convolutions round their products to TF32, as torch lets cuDNN do from Ampere on."""
    if precision.name != "fp32" or precision.device.type != "cuda":
        return False
    return torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability(precision.device) >= (8, 0)


def energy_counter(device: torch.device) -> float | None:
    """Joules that the device has used so far, None where nothing counts them, as on a CPU."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None
    return consumed_joules(f"GPU-{uuid}") if uuid else None


class EnergyMeter:
    """Each run's share, in joules, of the energy that a device uses; None where nothing counts it.

    At any moment the runs on the device share alike. `processes` of this kind share the device.
    """

    def __init__(self, device: torch.device, processes: int = 1) -> None:
        self._device = device
        self._processes = processes
        self._runs = 1
        self._share = 0.0
        self._last = energy_counter(device)

    def split_among(self, runs: int) -> None:
        """From now on so many runs of this process share (0 counts as 1)."""
        self.share()
        self._runs = max(1, runs)

    def share(self) -> float | None:
        """What one run that was there from the start would have used so far."""
        now = energy_counter(self._device)
        if now is None or self._last is None:
            return None
        self._share += (now - self._last) / (self._runs * self._processes)
        self._last = now
        return self._share


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether code or experiments differ from it; (None, None) without git."""
    try:
        # In a repository that the experiments are not part of, a commit says nothing about the run.
        _git(root, "ls-files", "--error-unmatch", "experiments/presets.toml")
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "repro", "experiments", "setup.cfg")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changed)


def host_salt(file: Path) -> bytes:
    """The salt of a results folder's host names, made where it is missing; SetupError if that is refused.

    It stays beside the attempts: with it, equal hashes in one results folder mean one host, and nobody can
    look up a host by hashing guesses of its name.
    """
    # Of two processes that make it at once, both read the first one's.
    if not file.exists():
        create_whole(file, secrets.token_bytes(16))
    try:
        return read_file(file)
    except OSError as error:
        raise refusal(f"cannot read {file}", error) from None


def anonymous(attempt: Attempt, salt: bytes) -> Attempt:
    """The attempt as a record may tell it to others: no pid, the host only as a salted hash."""
    hashed = attempt.host and hashlib.sha256(salt + attempt.host.encode()).hexdigest()[:12]
    return attempt.model_copy(update={"host": hashed, "pid": None})


def _energy(attempts: tuple[Attempt, ...]) -> float | None:
    """The sum over the last attempt and those whose steps it went on from; None where one is not known."""
    joules = 0.0
    for attempt in reversed(attempts):
        if attempt.energy_joules is None:
            return None
        joules += attempt.energy_joules
        if attempt.resumed_at_step == 0:
            break
    return joules


def _packages() -> dict[str, str]:
    """Every installed distribution → version, by name."""
    found = {}
    for each in distributions():
        # A folder whose metadata are gone is no reason not to train; what it raises differs between Pythons.
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            if each.name and each.version:
                found[each.name.lower()] = each.version
    # From the source: a tree that was never installed has no metadata, and an editable one may have old ones.
    found["repro"] = __version__
    return dict(sorted(found.items()))


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
