"""`--log tensorboard`: curves for TensorBoard to show.

    <results>/<preset>/.work/tensorboard/<run id>/events.out.tfevents.…    a file per attempt

A file is opened for each epoch and closed again, so a worker that dies leaves whole ones. Each attempt says
from which epoch it resumes, and TensorBoard drops what an earlier one had beyond that.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from repro.storage import make_folder

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "gradient_at_logits": "gradient/at the logits",
    "gradient_at_features": "gradient/at the features",
    "lr": "learning rate",
    "images_per_second": "speed/images per second",
}


class TensorBoardLogger:
    """An `EpochLogger` (`repro.training.live_curves`); steps are epochs, counted from 1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # TensorBoard reads the files of a run in the order of their names.
        self._name = f"events.out.tfevents.{time.time():020.6f}"

    def start(self, run_id: str, epoch: int) -> None:
        """The head of a file: its format, and from which step on earlier files do not count."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        now = time.time()
        start = Event(wall_time=now, step=epoch, session_log=SessionLog(status=SessionLog.START))
        self._write(run_id, [Event(wall_time=now, file_version="brain.Event:2"), start])

    def epoch(self, run_id: str, epoch: int, values: Mapping[str, float]) -> None:
        """A scalar per value that has a tag."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [
            Summary.Value(tag=_TAGS[name], simple_value=value)
            for name, value in values.items()
            if name in _TAGS
        ]
        self._write(run_id, [Event(wall_time=time.time(), step=epoch, summary=Summary(value=scalars))])

    def close(self) -> None:
        """Nothing is open between epochs."""

    def _write(self, run_id: str, events: "Iterable[Event]") -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        path = self._folder / run_id / self._name
        make_folder(path.parent)
        with path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())
