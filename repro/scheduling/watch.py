"""What a worker has done to a run, told from the disk alone: its record, its attempts, its reports."""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from repro.commit import attempts_of, note_attempt
from repro.errors import SetupError
from repro.paths import RunPaths
from repro.records import Attempt
from repro.registry import Run

_FAILED = "failed: "


@dataclass(frozen=True)
class RunWatch:
    """One run of a worker, with what was on disk when the worker was started.

    `stamp` tells the record's file from any later one (None: there was none).
    """

    run: Run
    paths: RunPaths
    stamp: tuple[int, int] | None
    attempts_before: int

    @classmethod
    def begin(cls, run: Run, paths: RunPaths) -> "RunWatch":
        """Notes how things stand now."""
        before = max((attempt.number for attempt in attempts_of(paths)), default=0)
        return cls(run, paths, _stamp(paths.record), before)

    @classmethod
    def resume(cls, run: Run, paths: RunPaths) -> "RunWatch":
        """Notes how things stand under a worker that was started earlier: an attempt in progress is new."""
        attempts = attempts_of(paths)
        # An attempt that has not noted its end reads as killed, whether it is or still at work.
        under_way = bool(attempts) and attempts[-1].outcome == "killed"
        before = max((attempt.number for attempt in attempts), default=0) - under_way
        return cls(run, paths, _stamp(paths.record), before)

    def record_is_new(self) -> bool:
        """Whether a record has appeared, or replaced the old one, since."""
        now = _stamp(self.paths.record)
        return now is not None and now != self.stamp

    def latest_attempt(self) -> Attempt | None:
        """The newest attempt that was begun since; None before there is one."""
        new = [attempt for attempt in attempts_of(self.paths) if attempt.number > self.attempts_before]
        return new[-1] if new else None

    def failure(self) -> tuple[str, Path | None] | None:
        """Cause and traceback file of the newest attempt if it has failed, else None."""
        attempt = self.latest_attempt()
        if attempt is None or not attempt.outcome.startswith(_FAILED):
            return None
        traceback = self.paths.attempts / str(attempt.number) / "error.txt"
        cause = attempt.outcome.removeprefix(_FAILED)
        return cause, traceback if traceback.is_file() else None

    def note_death(self, outcome: str) -> None:
        """Completes the newest attempt's note where its worker, dead by now, could not.

        The note is for people; a disk that takes none leaves it as it is.
        """
        attempt = self.latest_attempt()
        if attempt is None or attempt.outcome not in ("killed", "interrupted"):
            return
        ended = attempt.ended or datetime.now(UTC)
        with contextlib.suppress(SetupError):
            note_attempt(
                self.paths.attempts / str(attempt.number),
                attempt.model_copy(update={"outcome": outcome, "ended": ended}),
            )

    def signs(self) -> tuple[object, ...]:
        """What changes as long as somebody gets on with the run."""
        latest = self.latest_attempt()
        return _content(self.paths.progress), latest and latest.number, _stamp(self.paths.record)


def _stamp(record: Path) -> tuple[int, int] | None:
    try:
        status = record.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _content(report: Path) -> bytes | None:
    try:
        return report.read_bytes()
    except FileNotFoundError:
        return None
