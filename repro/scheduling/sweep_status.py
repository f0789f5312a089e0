"""The state of a sweep, read from disk: it changes nothing and takes no lock."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from repro.attempts import NOT_RUN_YET, read_attempts, without_record
from repro.config import Preset, Recipe
from repro.errors import SetupError, counted
from repro.paths import Project
from repro.record_state import RecordState
from repro.registry import Registry, Run
from repro.scheduling.durations import format_seconds
from repro.scheduling.estimate import Survey, format_bytes
from repro.scheduling.plan import Plan
from repro.storage import lock_holder, lock_holders
from repro.worker_note import Phase, RunProgress, WorkerNote, read_worker_notes

SHOWN = 8  # runs of a kind that the text names; JSON has them all
SILENT = 30.0  # seconds without a sign of life that are worth telling

_KINDS = ("done", "older code", "running", "interrupted", "failed", "other recipe", "damaged", "to do")


@dataclass(frozen=True)
class RunLine:
    """What is on disk of a run that was begun and is not done.

    `kind` is "running", "interrupted", "failed", or "damaged" with a `reason`; `seconds_left` is at the
    present speed of training, evaluation not counted; `silence` the seconds since its worker's last sign of
    life; `begun` the share of the training, 0 to 1, that need not be repeated.
    """

    run: str
    kind: str
    progress: RunProgress | None = None
    seconds_left: float | None = None
    silence: float | None = None
    attempts: int = 0
    checkpoint: bool = False
    reason: str | None = None
    ended: float | None = None
    begun: float = 0.0

    def __str__(self) -> str:
        words = [self.run, *(self.progress.words if self.progress else ())]
        if self.seconds_left is not None:
            words.append(f"{format_seconds(self.seconds_left)} left")
        if self.silence is not None and self.silence > SILENT:
            words.append(f"no sign of life for {format_seconds(self.silence)}")
        if self.kind == "interrupted":
            words.append("resumes from a checkpoint" if self.checkpoint else "no checkpoint: it restarts")
        return "  ".join(filter(None, [*words, self.reason]))

    def fields(self) -> dict[str, object]:
        """The line for programs."""
        shown = ("epoch", "epochs", "images_per_second", "test_accuracy")
        rest = ("seconds_left", "silence", "attempts", "checkpoint", "reason", "ended")
        return {
            **{"run": self.run, "kind": self.kind},
            **{name: getattr(self.progress, name, None) for name in shown},
            **{name: getattr(self, name) for name in rest},
        }


def read_traces(
    runs: Iterable[Run], registry: Registry, preset: Preset, project: Project
) -> dict[str, RunLine]:
    """A line for each of `runs` that has ever been begun, by run id."""
    holders = lock_holders()
    folder = project.workers(preset.name)
    working = {
        progress.run: (note, progress)
        for note in read_worker_notes(folder)
        if _may_work(note)
        for progress in note.runs
    }
    found = {}
    for run in runs:
        paths = project.run(preset.name, run.id)
        if not paths.work.is_dir():
            continue
        try:
            notes = read_attempts(paths)
        except SetupError as error:
            found[run.id] = RunLine(run.id, "damaged", reason=str(error))
            continue
        last = notes[-1] if notes else None
        ended = last.ended.timestamp() if last and last.ended else None
        line = RunLine(run.id, "running", attempts=len(notes), ended=ended)
        note, progress = working.get(run.id, (None, None))
        if note and progress and last and last.worker == note.name:
            found[run.id] = replace(
                line,
                progress=progress,
                seconds_left=_seconds_left(progress, registry.config(run, preset).recipe),
                silence=_age(folder / f"{note.name}.json"),
                checkpoint=True,
                begun=progress.fraction,
            )
            continue
        kind, reason = without_record(notes, lock_holder(paths.lock, holders) is not None)
        if kind == "running":
            found[run.id] = line
        elif last and kind != NOT_RUN_YET:
            checkpoint = any(paths.attempts.glob("*/checkpoint-*.pt"))
            begun = last.saved_step / last.total_steps if checkpoint and last.total_steps else 0.0
            found[run.id] = replace(
                line, kind=kind, checkpoint=checkpoint, reason=reason or None, begun=begun
            )
    return found


def _seconds_left(progress: RunProgress, recipe: Recipe) -> float | None:
    images = (1 - progress.fraction) * progress.epochs * progress.steps * recipe.batch_size
    return images / progress.images_per_second if progress.images_per_second else None


@dataclass(frozen=True)
class Status:
    """`counts` has every run in one of the kinds; `runs` the running, interrupted, failed and damaged ones.

    `plan` is of what is left, on the devices of this machine; `free_bytes` is the room on the results' disk.
    """

    preset: str
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
        content = {
            "preset": self.preset,
            "results": self.results,
            "counts": self.counts,
            "time": time.time(),
            "workers": self.workers,
            "runs": [run.fields() for run in self.runs],
            "duration": self.plan and self.plan.duration,
            "free_bytes": self.free_bytes,
        }
        return json.dumps(content, indent=1, ensure_ascii=False, default=vars)

    def to_text(self) -> str:
        """Plain text, the same on a terminal and in a pipe."""
        total = sum(self.counts.values())
        parts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count)
        lines = [
            f"preset {self.preset}, results in {self.results}",
            f"{counted(total, 'run')}: {parts}",
        ]
        lines += [_worker(worker) for worker in self.workers] or ["no worker is running"]
        for kind in ("running", "interrupted", "failed", "damaged"):
            found = self.of(kind)
            lines += [f"{kind}: {run}" for run in found[:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"{kind}: {len(found) - SHOWN} more (--json lists them)")
        if self.plan and self.plan.duration:
            unknown = any(column.is_unknown for column in self.plan.columns)
            rest = ", not counting columns whose speed is not known yet" if unknown else ""
            lines.append(f"time to do: {self.plan.duration} on this machine{rest}")
        if self.free_bytes is not None:
            left = self.plan.disk.total if self.plan else 0
            needs = f", the runs to do need about {format_bytes(left)}" if left else ""
            lines.append(f"disk: {format_bytes(self.free_bytes)} free{needs}")
        return "\n".join(lines)


def make_status(
    survey: Survey,
    traces: Mapping[str, RunLine],
    workers: Iterable[WorkerNote],
    plan: Plan | None,
    results: Path,
) -> Status:
    """The status of the runs of `survey`; `traces` has the ones that were begun and are not done."""
    counts = Counter(dict.fromkeys(_KINDS, 0))
    runs: list[RunLine] = []
    for state in survey.states:
        line = None if state.counts else traces.get(state.run.id)
        if state.is_damaged and not (line and line.kind == "running"):
            line = RunLine(state.run.id, "damaged", reason=state.reason)
        if line:
            kind = line.kind
            runs.append(line)
        elif state.record_state is RecordState.MISSING:
            kind = "to do"
        else:
            kind = str(state.record_state)
        counts[kind] += 1
    return Status(
        preset=results.name,
        results=str(results),
        counts=counts,
        runs=tuple(runs),
        workers=tuple(note for note in workers if _may_work(note)),
        plan=plan,
        free_bytes=_free(results),
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
