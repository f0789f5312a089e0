"""`--log NAME`: a run's curves while it trains: for TensorBoard, as CSV, or for a logger of the user's own.

They come from the reports that training makes anyway: neither the code that trains nor the record knows of
them. Another logger is a class like `CsvLogger` in a file beside the TOMLs, `--log mylog.py:MyLogger`.
"""

import csv
import importlib.util
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from repro.errors import OwnCodeError, SetupError
from repro.paths import Project
from repro.plugins import explain, find, is_file, load
from repro.records import Epoch
from repro.storage import make_folder, write_whole

if TYPE_CHECKING:
    from repro.training.loop import Progress, TrainedRun

Values = Mapping[str, float]
"""Of one epoch: fields of `repro.records.Epoch` and `images_per_second`."""

_WHILE_TRAINING = ("train_loss", "test_accuracy")


class EpochLogger(Protocol):
    """What `--log` names: a class whose one argument is a folder; made once per attempt at a run."""

    def start(self, run_id: str, epoch: int) -> None:
        """Training starts in this epoch, counted from 1; what an earlier attempt had from it on is void."""

    def epoch(self, run_id: str, epoch: int, values: Values) -> None:
        """Values of an epoch, each given once: some when it ends, the others when the run has ended."""

    def close(self) -> None:
        """The attempt has ended, whether or not the run has."""


def find_logger(name: str, experiments: Path) -> Callable[[Path], EpochLogger]:
    """The logger's class; a file of the user's own is in `experiments`.

    Raises OwnCodeError where there is none that can be used, SetupError where an extra is not installed.
    """
    found = find("loggers", name, experiments)
    if name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise SetupError("--log tensorboard: the package is not installed: pip install '.[tensorboard]'")
    made: Callable[[Path], EpochLogger] = load(found)
    lacking = [method for method in ("start", "epoch", "close") if not callable(getattr(made, method, None))]
    if lacking:
        raise OwnCodeError(
            f"--log {name}: expected a class with start, epoch and close; it lacks {lacking[0]}"
        )
    return made


class LiveCurves:
    """Tells a logger, if one is named, of one attempt at a run.

    What a logger raises is printed once and stops nothing.
    """

    def __init__(
        self,
        name: str | None,
        project: Project,
        preset: str,
        run_id: str,
        evaluate_every: int,
        warn: Callable[[str], None],
    ) -> None:
        self._run_id = run_id
        self._evaluate_every = evaluate_every
        self._warn = warn
        self._epoch: int | None = None
        self._logger: EpochLogger | None = None
        if name is not None:
            folder = project.live_curves(preset, name.rpartition(":")[2] if is_file(name) else name)
            self._guarded(lambda: setattr(self, "_logger", find_logger(name, project.experiments)(folder)))

    def __call__(self, progress: "Progress") -> None:
        """Logs the epoch before the one in progress, once."""
        if self._epoch is None:
            self._start(progress.epoch)
        elif progress.epoch > self._epoch:
            evaluated = progress.epoch % self._evaluate_every == 0
            values = {
                "train_loss": progress.train_loss,
                "test_accuracy": progress.test_accuracy if evaluated else None,
                "images_per_second": progress.images_per_second,
            }
            self._log(progress.epoch, values)
        self._epoch = progress.epoch

    def finish(self, trained: "TrainedRun") -> None:
        """Logs the last epoch, and of every epoch what only the finished run tells."""
        if self._epoch is None:
            self._start(0)
        for epoch in trained.curve:
            told = () if epoch is trained.curve[-1] else _WHILE_TRAINING
            self._log(epoch.epoch + 1, epoch.model_dump(exclude={"epoch", *told}))

    def close(self) -> None:
        """Closes the logger."""
        self._tell("close")

    def _start(self, epoch: int) -> None:
        self._tell("start", self._run_id, epoch + 1)

    def _log(self, epoch: int, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        self._tell("epoch", self._run_id, epoch, known)

    def _tell(self, method: str, *arguments: object) -> None:
        if self._logger is not None:
            self._guarded(lambda: getattr(self._logger, method)(*arguments))

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 (the user's own code may raise anything)
            self._logger = None
            self._warn(f"its live curves end here: {explain(error)}")


class CsvLogger:
    """`<folder>/<run id>.csv`: a line per epoch, written whole each time; a resumed run continues it."""

    COLUMNS = ("epoch", *(name for name in Epoch.model_fields if name != "epoch"), "images_per_second")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._rows: dict[int, dict[str, Any]] = {}

    def start(self, run_id: str, epoch: int) -> None:
        """Keeps the lines of earlier epochs."""
        self._path = self._folder / f"{run_id}.csv"
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = {int(row["epoch"]): row for row in csv.DictReader(file)}
            self._rows = {number: row for number, row in rows.items() if number < epoch}

    def epoch(self, run_id: str, epoch: int, values: Values) -> None:
        """Adds a line, or values to one."""
        is_new = epoch not in self._rows
        self._rows.setdefault(epoch, {"epoch": epoch}).update(values)
        if is_new:
            self.close()

    def close(self) -> None:
        """Writes all lines."""
        if self._path and self._rows:
            text = io.StringIO()
            writer = csv.DictWriter(text, self.COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows[epoch] for epoch in sorted(self._rows))
            make_folder(self._path.parent)
            write_whole(self._path, text.getvalue().encode())
