"""`--log tensorboard`: a run's curves while it trains, beside the attempts, for TensorBoard to show.

    <results>/<preset>/.work/tensorboard/<run id>/events.out.tfevents.…    a file an attempt

They are written from the reports that training makes anyway: neither the code that trains nor the record
knows of them. A file is opened for each epoch and closed again, so a worker that dies leaves whole ones. Each
attempt says from which epoch it resumes, and TensorBoard drops what an earlier one had beyond that.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from repro.errors import SetupError
from repro.records import Epoch
from repro.storage import make_folder

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

    from repro.training.loop import Progress, TrainedRun

Scalars = dict[str, float]
"""Tag → value of one epoch."""


def require_tensorboard() -> None:
    """Raises SetupError where the extra is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise SetupError("--log tensorboard: the package is not installed: pip install '.[tensorboard]'")


class LiveCurves:
    """The curves of one attempt of a run; steps are epochs, counted from 1.

    Called with every report of its training. What cannot be written is said once, and no reason to stop.
    """

    def __init__(self, folder: Path, attempt: int, evaluate_every: int, say: Callable[[str], None]) -> None:
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.attempt{attempt}"
        self._evaluate_every = evaluate_every
        self._say = say
        self._epoch: int | None = None
        self._refused = False

    def __call__(self, progress: "Progress") -> None:
        """Notes the epoch before the one in progress, once."""
        if self._epoch is None:
            self._begin(progress.epoch)
        elif progress.epoch > self._epoch:
            scalars: Scalars = {}
            if progress.train_loss is not None:
                scalars["loss/train"] = progress.train_loss
            if progress.test_accuracy is not None and progress.epoch % self._evaluate_every == 0:
                scalars["accuracy/test"] = progress.test_accuracy
            if progress.images_per_second is not None:
                scalars["speed/images per second"] = progress.images_per_second
            self._write([_values(progress.epoch, scalars)])
        self._epoch = progress.epoch

    def finish(self, trained: "TrainedRun") -> None:
        """Notes the last epoch, and of every epoch what only the finished run tells."""
        if self._epoch is None:
            self._begin(0)
        last = trained.curve[-1]
        self._write(_values(epoch.epoch + 1, _of_epoch(epoch, epoch is last)) for epoch in trained.curve)

    def _begin(self, epoch: int) -> None:
        """The head of a file: its format, and from which step on earlier files do not count."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._write(
            [
                Event(wall_time=time.time(), file_version="brain.Event:2"),
                Event(wall_time=time.time(), step=epoch + 1, session_log=SessionLog(status=SessionLog.START)),
            ]
        )

    def _write(self, events: "Iterable[Event]") -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._refused:
            return
        try:
            make_folder(self._path.parent)
            with self._path.open("ab") as file:
                writer = RecordWriter(file)
                for event in events:
                    writer.write(event.SerializeToString())
        except (OSError, SetupError) as error:
            # A record cut short would hide all that came behind it: this attempt logs no more.
            self._refused = True
            self._say(f"its curves for TensorBoard end here: {error}")


def _of_epoch(epoch: Epoch, is_last: bool) -> Scalars:
    given = {
        "loss/test": epoch.test_loss,
        "accuracy/train": epoch.train_accuracy,
        "gradient/at the logits": epoch.gradient_at_logits,
        "gradient/at the features": epoch.gradient_at_features,
        "learning rate": epoch.lr,
    }
    if is_last:  # the others were noted when they ended
        given |= {"loss/train": epoch.train_loss, "accuracy/test": epoch.test_accuracy}
    return {tag: value for tag, value in given.items() if value is not None}


def _values(step: int, scalars: Scalars) -> "Event":
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=values))
