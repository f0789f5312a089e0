"""What a worker reports of the run it is training: one small JSON file a run, replaced whole."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Progress:
    """One report: `epoch` (0-indexed) is in progress, `step` of its `steps` are done; accuracy in percent."""

    run: str
    attempt: int
    state: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float | None
    test_accuracy: float | None

    @property
    def fraction(self) -> float:
        """How much of the training is done, 0 to 1."""
        if self.state == "done":
            return 1.0
        if not self.epochs:
            return 0.0
        return min(1.0, (self.epoch + (self.step / self.steps if self.steps else 0.0)) / self.epochs)


def read_progress(path: Path) -> Progress | None:
    """The report at `path`; None where there is none yet, or where it says nothing that can be read.

    It is only shown, never believed, so a report that cannot be read is no error.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return Progress(
            run=str(content["run"]),
            attempt=int(content["attempt"]),
            state=str(content["state"]),
            epoch=int(content["epoch"]),
            epochs=int(content["epochs"]),
            step=int(content["step"]),
            steps=int(content["steps"]),
            images_per_second=_number(content.get("images_per_second")),
            test_accuracy=_number(content.get("test_accuracy")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
