"""A run's record from what training left, and how it came to be: device, versions, attempts, checkout."""

import platform
import resource
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from repro.data.loader import subset
from repro.data.prepared import PreparedData
from repro.machine import processor_name
from repro.recipes import Preset, RunConfig
from repro.records import Attempt, DataSummary, Provenance, RunRecord, Signature
from repro.registry import Run
from repro.training.loop import TrainedRun
from repro.training.precision import Precision


@dataclass(frozen=True)
class Origin:
    """What a record tells beside the result; `attempts` ends with the one that made it."""

    run: Run
    config: RunConfig
    preset: Preset
    signature: Signature
    root: Path
    co_tenants: int
    attempts: tuple[Attempt, ...]


def make_record(origin: Origin, data: PreparedData, trained: TrainedRun, precision: Precision) -> RunRecord:
    """The record of a run that this process has just finished."""
    manifest = data.manifest
    train_arrays, test_arrays = subset(data, origin.config.recipe)
    commit, dirty = git_state(origin.root)
    return RunRecord(
        run=origin.run.id,
        preset=origin.preset.name,
        signature=origin.signature,
        config=origin.config,
        data=DataSummary(
            name=manifest.name,
            title=manifest.title,
            generated=manifest.generated,
            partial=manifest.partial,
            sources=manifest.sources,
            preparation_version=manifest.preparation_version,
            classes=manifest.classes,
            train_images=len(train_arrays.labels),
            test_images=len(test_arrays.labels),
            mean=manifest.mean,
            std=manifest.std,
        ),
        result=trained.result,
        curve=trained.curve,
        probes=trained.probes,
        provenance=Provenance(
            git_commit=commit,
            git_dirty=dirty,
            python=platform.python_version(),
            versions={name: version(name) for name in ("torch", "numpy", "scaled-bn-repro")},
            device=device_name(precision.device),
            precision=precision.name,
            threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            techniques=trained.techniques,
            co_tenants=origin.co_tenants,
            images_per_second=trained.images_per_second,
            peak_memory_bytes=peak_memory(precision.device),
            attempts=origin.attempts,
            started=min(attempt.started for attempt in origin.attempts),
            ended=origin.attempts[-1].ended or datetime.now(UTC),
        ),
    )


def device_name(device: torch.device) -> str:
    """`NVIDIA H200`, or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU at most, or this process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether code or experiments differ from it; (None, None) without git."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "repro", "experiments", "setup.cfg")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changed)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
