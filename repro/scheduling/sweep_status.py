"""The state of a sweep, read from disk: it changes nothing and takes no lock."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro.attempts import NOT_RUN_YET, AttemptNote, read_attempts, without_record
from repro.config import Recipe
from repro.errors import SetupError
from repro.paths import Project
from repro.record_state import RecordState
from repro.registry import Run
from repro.scheduling.durations import format_seconds
from repro.scheduling.estimate import Survey, format_bytes
from repro.scheduling.plan import Plan
from repro.storage import lock_holder, lock_holders
from repro.worker_note import Phase, RunProgress, WorkerNote, read_worker_notes

SHOWN = 8  # runs of a kind that the text names; JSON has them all
SILENT = 30.0  # seconds without a sign of life that are worth telling

_KINDS = ("done", "older code", "running", "interrupted", "failed", "other recipe", "damaged", "to do")


@dataclass(frozen=True)
class Trace:
    """What is on disk of a run that was begun and is not done.

    `kind` is "running", "interrupted", "failed", or "damaged" with a `reason` where its attempts cannot be
    read; `begun` the share of the training, 0 to 1, that need not be repeated; `silence` the seconds since
    its worker's last sign of life.
    """

    kind: str
    attempts: int
    last: AttemptNote | None
    progress: RunProgress | None = None
    silence: float | None = None
    begun: float = 0.0
    checkpoint: bool = False
    reason: str | None = None


def read_traces(runs: Iterable[Run], project: Project, preset: str) -> dict[str, Trace]:
    """A trace for each of `runs` that has ever been begun, by run id."""
    holders = lock_holders()
    folder = project.workers(preset)
    working = {
        progress.run: (note, progress)
        for note in read_worker_notes(folder)
        if _may_work(note)
        for progress in note.runs
    }
    found = {}
    for run in runs:
        paths = project.run(preset, run.id)
        if not paths.work.is_dir():
            continue
        try:
            notes = read_attempts(paths)
        except SetupError as error:
            found[run.id] = Trace("damaged", 0, None, reason=str(error))
            continue
        last = notes[-1] if notes else None
        checkpoint = next(paths.attempts.glob("*/checkpoint-*.pt"), None) is not None
        note, progress = working.get(run.id, (None, None))
        if note is not None and progress is not None and last and last.worker == note.name:
            silence = _age(folder / f"{note.name}.json")
            found[run.id] = Trace("running", len(notes), last, progress, silence, progress.fraction, True)
            continue
        kind, reason = without_record(notes, lock_holder(paths.lock, holders) is not None)
        if kind == "running":
            found[run.id] = Trace(kind, len(notes), last)
        elif last is not None and kind != NOT_RUN_YET:
            begun = last.saved_step / last.total_steps if checkpoint and last.total_steps else 0.0
            found[run.id] = Trace(kind, len(notes), last, None, None, begun, checkpoint, reason or None)
    return found


@dataclass(frozen=True)
class RunLine:
    """A run that is not simply done or to do; `seconds_left` is at its present speed."""

    run: str
    kind: str
    epoch: int | None = None
    epochs: int | None = None
    images_per_second: float | None = None
    test_accuracy: float | None = None
    seconds_left: float | None = None
    silence: float | None = None
    attempts: int = 0
    checkpoint: bool = False
    reason: str | None = None
    ended: float | None = None

    def __str__(self) -> str:
        words = [self.run]
        if self.epoch is not None and self.epochs:
            words.append(f"epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}")
        if self.kind == "running":
            if self.images_per_second:
                words.append(f"{self.images_per_second:,.0f} images/s")
            if self.test_accuracy is not None:
                words.append(f"{self.test_accuracy:.1f} %")
            if self.seconds_left is not None:
                words.append(f"{format_seconds(self.seconds_left)} left")
            if self.silence is not None and self.silence > SILENT:
                words.append(f"no sign of life for {format_seconds(self.silence)}")
        elif self.kind == "interrupted":
            words.append("resumes from a checkpoint" if self.checkpoint else "no checkpoint: it restarts")
        if self.reason:
            words.append(self.reason)
        return "  ".join(words)


@dataclass(frozen=True)
class Status:
    """`counts` has every run in one of the kinds; `runs` the running, interrupted, failed and damaged ones.

    `plan` is of what is left, on the devices of this machine; `free_bytes` is the room on the results' disk.
    """

    preset: str
    heading: str
    results: str
    counts: Mapping[str, int]
    runs: tuple[RunLine, ...]
    workers: tuple[WorkerNote, ...]
    plan: Plan | None
    free_bytes: int | None

    def of(self, kind: str) -> list[RunLine]:
        """The runs of one kind; failed ones the latest first."""
        found = [run for run in self.runs if run.kind == kind]
        return sorted(found, key=lambda run: -(run.ended or 0.0)) if kind == "failed" else found

    def to_json(self) -> str:
        """Indented JSON."""
        content: dict[str, Any] = {
            "preset": self.preset,
            "results": self.results,
            "counts": dict(self.counts),
            "time": time.time(),
            "workers": [asdict(worker) for worker in self.workers],
            "runs": [asdict(run) for run in self.runs],
            "duration": asdict(self.plan.duration) if self.plan and self.plan.duration else None,
            "free_bytes": self.free_bytes,
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def to_text(self) -> str:
        """Plain text, the same on a terminal and in a pipe."""
        total = sum(self.counts.values())
        parts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count)
        lines = [
            f"preset {self.preset}: {self.heading}",
            f"results: {self.results}",
            f"{total} runs: {parts}",
        ]
        lines += [_worker(worker) for worker in self.workers] or ["no worker is running"]
        for kind in ("running", "interrupted", "failed", "damaged"):
            found = self.of(kind)
            lines += [f"{kind}: {run}" for run in found[:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"{kind}: {len(found) - SHOWN} more (--json lists them)")
        if self.plan and self.plan.duration:
            unknown = any(column.to_do and not column.duration for column in self.plan.columns)
            rest = ", not counting columns whose speed is not known yet" if unknown else ""
            lines.append(f"time to do: {self.plan.duration} on this machine{rest}")
        if self.free_bytes is not None:
            left = self.plan.disk.total if self.plan else 0
            needs = f", the runs to do need about {format_bytes(left)}" if left else ""
            lines.append(f"disk: {format_bytes(self.free_bytes)} free{needs}")
        return "\n".join(lines)


def make_status(
    survey: Survey,
    traces: Mapping[str, Trace],
    workers: Iterable[WorkerNote],
    recipe: Recipe,
    plan: Plan | None,
    heading: str,
    results: Path,
) -> Status:
    """The status of the runs of `survey`; `traces` has the ones that were begun and are not done."""
    counts = Counter(dict.fromkeys(_KINDS, 0))
    runs: list[RunLine] = []
    for state in survey.states:
        trace = traces.get(state.run.id)
        if state.is_damaged and not (trace and trace.kind == "running"):
            kind = "damaged"
            runs.append(RunLine(state.run.id, kind, reason=state.reason))
        elif trace and not state.counts:
            kind = trace.kind
            runs.append(_line(state.run.id, trace, recipe))
        elif state.record_state is RecordState.MISSING:
            kind = "to do"
        else:
            kind = str(state.record_state)
        counts[kind] += 1
    return Status(
        preset=results.name,
        heading=heading,
        results=str(results),
        counts=counts,
        runs=tuple(runs),
        workers=tuple(note for note in workers if _may_work(note)),
        plan=plan,
        free_bytes=_free(results),
    )


def _line(run: str, trace: Trace, recipe: Recipe) -> RunLine:
    progress, last = trace.progress, trace.last
    left = None
    if progress and progress.images_per_second:  # at the present speed of training, evaluation not counted
        images = (1 - progress.fraction) * progress.epochs * progress.steps * recipe.batch_size
        left = images / progress.images_per_second
    return RunLine(
        run=run,
        kind=trace.kind,
        epoch=progress.epoch if progress else None,
        epochs=progress.epochs if progress else None,
        images_per_second=progress.images_per_second if progress else None,
        test_accuracy=progress.test_accuracy if progress else None,
        seconds_left=left,
        silence=trace.silence,
        attempts=trace.attempts,
        checkpoint=trace.checkpoint,
        reason=trace.reason,
        ended=last.ended.timestamp() if last and last.ended else None,
    )


def _may_work(note: WorkerNote) -> bool:
    return note.is_alive is not False and not note.death and note.phase is not Phase.ENDED


def _worker(note: WorkerNote) -> str:
    device = f" ({note.device_name})" if note.device_name else ""
    runs = ", ".join(progress.run for progress in note.runs) or "no run yet"
    alive = "" if note.is_alive else "; on another machine, so it is unknown here whether it is alive"
    return f"worker {note.pid} on {note.host}{device}, {note.phase}: {runs}{alive}"


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _free(results: Path) -> int | None:
    """Bytes free where the results are or would be."""
    for folder in (results, *results.parents):
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return None
