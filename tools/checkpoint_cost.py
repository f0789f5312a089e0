"""What checkpoints cost: `checkpoint_cost.py [--network NAME] [--interval S] [--seconds S] [--folder DIR]`.

Trains a network of full width on images of CIFAR-100's size for so many seconds, with checkpoints
as a run writes them, and prints JSON: how large they are, how long one takes, and their share of the time.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from repro.data import open_for_training
from repro.errors import RunInterruptedError
from repro.records import Signature
from repro.registry import Registry
from repro.training.checkpoint import CheckpointFolder, NumericSettings
from repro.training.loop import CHECKPOINT_INTERVAL, train_run
from repro.training.precision import choose_precision

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class TimedFolder(CheckpointFolder):
    """Notes the seconds and the bytes of each checkpoint."""

    took: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def save(self, step: int, settings: NumericSettings, state: dict[str, Any]) -> Path | None:
        began = time.monotonic()
        path = super().save(step, settings, state)
        self.took.append(time.monotonic() - began)
        self.sizes.append(path.stat().st_size if path else 0)
        return path


def measure(network: str, interval: float, seconds: float, folder: Path) -> dict[str, Any]:
    """Trains into `folder` for `seconds`; exits where no checkpoint was due within them."""
    registry = Registry.load(ROOT / "experiments")
    config = registry.config(
        registry.parse(f"cifar100/{network}/scaled-bn-m1/seed0"), registry.preset("smoke")
    )
    recipe = config.recipe.model_copy(update={"width": 1.0, "batch_size": 128, "epochs": 10**6})
    config = config.model_copy(update={"recipe": recipe})
    own = folder / "1"
    own.mkdir()
    checkpoints = TimedFolder(folder, own, Signature(config="1" * 64, data="2" * 64, code="3" * 64))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps: list[float] = []
    began = time.monotonic()
    with suppress(RunInterruptedError):
        train_run(
            config,
            open_for_training(config, ROOT / "no data needed"),
            choose_precision(device),
            checkpoints,
            report=lambda progress: steps.append(time.monotonic()),
            should_stop=lambda: time.monotonic() >= began + seconds,
            checkpoint_interval=interval,
        )
    # The last one is written because the run is stopped, not because it is due.
    due = checkpoints.took[:-1]
    if not due:
        sys.exit(f"no checkpoint was due within {seconds:g} s: --seconds has to be longer than --interval")
    elapsed = steps[-1] - steps[0]
    return {
        "network": network,
        "interval_s": interval,
        "seconds": round(elapsed, 1),
        "checkpoints": len(due),
        "megabytes": round(checkpoints.sizes[-1] / 1e6, 1),
        "seconds_each": [round(each, 3) for each in checkpoints.took],
        "share_percent": round(100 * sum(due) / elapsed, 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--interval", type=float, default=CHECKPOINT_INTERVAL)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        print(json.dumps(measure(asked.network, asked.interval, asked.seconds, Path(name))))
