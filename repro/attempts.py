"""Attempts at a run: the note that each leaves on disk, and what they say about the next one.

Whether a run may be tried again is a pure function of its notes, whoever wrote them and whenever: no clock,
no process's memory.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import groupby
from pathlib import Path

from repro.paths import RunPaths, read_file
from repro.records import Attempt
from repro.storage import make_folder, refusal, write_whole

NOT_RUN_YET = "not run yet"
MAX_CRASHES = 3  # crashes or hangs alone in the process, without a later saved step in between
SAME_ERRORS = 3  # equal errors of different runs in a row: the next run would meet it too
MAX_INTERRUPTIONS = 10  # likewise: the run stays unfinished, it has not failed


class Outcome(StrEnum):
    """How an attempt ended: the first words of its note's `outcome`, before a colon and the reason."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"  # a Python error, which would come again
    CRASHED = "crashed"  # its process died: a signal, a hang, the kernel's out-of-memory killer
    DEVICE = "device error"  # a CUDA error after which the process could not go on
    OUT_OF_MEMORY = "out of memory"  # alone on its device
    INTERRUPTED = "interrupted"  # asked to stop
    WITHDRAWN = "withdrawn"  # ended for a reason that says nothing about the run; never counted
    SUPERSEDED = "superseded"  # found a newer attempt: its lock had been lost


class AttemptNote(Attempt):
    """An attempt as its folder tells it: what a record says of it, and what only retrying needs.

    `worker` names the note of its process in `workers/`, `alone` says whether its run had the process to
    itself. `saved_step` is the last step in a checkpoint when it ended (the step from which it started, if it
    wrote none), of `total_steps`; `device_memory_bytes` is what its device has.
    """

    worker: str = ""
    alone: bool = True
    saved_step: int = 0
    total_steps: int = 0
    device_memory_bytes: int = 0

    @property
    def kind(self) -> Outcome:
        """The outcome without its reason."""
        return Outcome(self.outcome.partition(":")[0])

    @property
    def reason(self) -> str:
        """The outcome's reason, one line; empty where there is none."""
        return self.outcome.partition(": ")[2]

    def for_record(self) -> Attempt:
        """The attempt without what only retrying needs."""
        return Attempt.model_validate({name: getattr(self, name) for name in Attempt.model_fields})


def new_attempt(paths: RunPaths) -> Path:
    """Makes a new attempt's folder, `attempts/N` with the first free N; call it holding the run's lock."""
    make_folder(paths.attempts)
    number = max(attempt_numbers(paths), default=0) + 1
    while True:
        folder = paths.attempts / str(number)
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1  # somebody without working locks was faster
            continue
        except OSError as error:
            raise refusal(f"cannot make {folder}", error) from None
        return folder


def write_attempt(folder: Path, note: AttemptNote) -> None:
    """Writes what is known of an attempt into its folder; SetupError if the file system refuses."""
    write_whole(folder / "attempt.json", note.model_dump_json().encode())


def attempt_numbers(paths: RunPaths) -> list[int]:
    """The numbers of all attempts at the run, ascending; other names in the folder are nobody's business."""
    try:
        names = [entry.name for entry in paths.attempts.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refusal(f"cannot read {paths.attempts}", error) from None
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def read_attempts(paths: RunPaths) -> tuple[AttemptNote, ...]:
    """Every attempt at the run, oldest first.

    A folder without a readable note counts as a crash: its process died between making it and writing it.
    """
    return tuple(_read(paths.attempts / str(number)) for number in attempt_numbers(paths))


def _read(folder: Path) -> AttemptNote:
    try:
        note = AttemptNote.model_validate_json(read_file(folder / "attempt.json"))
        Outcome(note.kind)
    except (OSError, ValueError):  # ValueError: not JSON, a field missing, an unknown outcome
        return AttemptNote(
            number=int(folder.name),
            started=datetime.fromtimestamp(folder.stat().st_mtime, UTC),
            ended=None,
            outcome=f"{Outcome.CRASHED}: it left no readable note",
            resumed_at_step=0,
        )
    return note


def last_saved_step(folder: Path) -> int:
    """The highest step of the checkpoints in an attempt's folder; 0 without."""
    steps = [path.stem.partition("-")[2] for path in folder.glob("checkpoint-*.pt")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


@dataclass(frozen=True)
class GivenUp:
    """Why a run is not tried again after so many attempts: it `failed`, or is unfinished after many stops."""

    reason: str
    failed: bool
    attempts: int


def given_up(notes: Sequence[AttemptNote]) -> GivenUp | None:
    """Whether these attempts, oldest first, are enough; None while another one may help.

    A Python error is final. Crashes count only where the run was alone in its process, for a neighbour may
    have caused the others. Whenever the highest saved step rises, what came before it is forgiven: as long as
    checkpoints advance, a run may be killed as often as it likes.
    """
    crashes: list[AttemptNote] = []
    interruptions = 0
    highest = -1
    for note in notes:
        kind = note.kind
        if kind in (Outcome.RUNNING, Outcome.WITHDRAWN, Outcome.SUPERSEDED):
            continue
        if kind is Outcome.FAILED:
            return GivenUp(note.reason, True, len(notes))
        if note.saved_step > highest:
            highest = note.saved_step
            crashes.clear()
            interruptions = 0
        if kind in (Outcome.CRASHED, Outcome.DEVICE) and note.alone:
            crashes.append(note)
        interruptions += kind is Outcome.INTERRUPTED
    if len(crashes) >= MAX_CRASHES:
        # Equal reasons in a row as one: `… (3 times)`.
        grouped = groupby(note.reason or str(note.kind) for note in crashes)
        counts = [(reason, len(list(alike))) for reason, alike in grouped]
        reasons = (f"{reason} ({count} times)" if count > 1 else reason for reason, count in counts)
        return GivenUp("; then ".join(reasons), True, len(notes))
    if interruptions >= MAX_INTERRUPTIONS:
        reason = f"interrupted {interruptions} times without a later checkpoint"
        return GivenUp(reason, False, len(notes))
    return None


def without_record(notes: Sequence[AttemptNote], locked: bool) -> tuple[str, str]:
    """What a run without a record is: "running", "failed", "interrupted" or "not run yet"; and why.

    `locked` says whether a process of this machine holds the run's lock.
    """
    if locked:
        return "running", ""
    if not notes or notes[-1].kind is Outcome.DONE:  # done, and its record has been removed since
        return NOT_RUN_YET, ""
    last = notes[-1]
    verdict = None if last.kind is Outcome.INTERRUPTED else given_up(notes)
    why = last.reason or ("" if last.kind in (Outcome.INTERRUPTED, Outcome.RUNNING) else str(last.kind))
    return ("failed" if verdict and verdict.failed else "interrupted"), why


def memory_that_was_too_small(notes: Iterable[AttemptNote]) -> int | None:
    """The largest device, in bytes, on which the run ran out of memory alone; None if it never did."""
    sizes = [note.device_memory_bytes for note in notes if note.kind is Outcome.OUT_OF_MEMORY and note.alone]
    return max(sizes, default=None)


def is_suspect(notes: Sequence[AttemptNote]) -> bool:
    """Whether the last attempt crashed: the run is then alone in its process until it saves a later step."""
    ended = [note for note in notes if note.kind not in (Outcome.RUNNING, Outcome.WITHDRAWN)]
    return bool(ended) and ended[-1].kind in (Outcome.CRASHED, Outcome.DEVICE)


@dataclass
class ErrorStreak:
    """Equal errors of different runs in a row; a run that gets done in between starts the count again."""

    text: str = ""
    runs: set[str] = field(default_factory=set)

    def reset(self) -> None:
        """A run was done."""
        self.text, self.runs = "", set()

    def add(self, run: str, error: str) -> bool:
        """Counts one more error; whether the next run would meet it too."""
        text = error.partition(" (traceback")[0].replace(run, "<run>").lower()
        # Addresses and numbers differ from run to run.
        text = " ".join(re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", text).split())
        if text != self.text:
            self.text, self.runs = text, set()
        self.runs.add(run)
        return len(self.runs) >= SAME_ERRORS
