"""How a sweep stands, told from what lies on disk: it changes nothing, not even by taking a lock."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro.config import Recipe
from repro.record_state import RecordState
from repro.scheduling.durations import format_seconds
from repro.scheduling.footprint import format_bytes
from repro.scheduling.heartbeat import SILENT, Heartbeat
from repro.scheduling.plan import Plan
from repro.scheduling.progress import Progress
from repro.scheduling.survey import Survey
from repro.scheduling.traces import Phase, Trace

SHOWN = 8
"""Runs of a kind that the text names; JSON has them all."""

_KINDS = (
    "done",
    "older code",
    "running",
    "interrupted",
    "failed",
    "other recipe",
    "damaged",
    "to do",
)


@dataclass(frozen=True)
class RunStatus:
    """A run that is not simply done or to do; `seconds_left` is at its present speed."""

    run: str
    kind: str
    epoch: int | None = None
    epochs: int | None = None
    images_per_second: float | None = None
    test_accuracy: float | None = None
    seconds_left: float | None = None
    report_age: float | None = None
    attempts: int = 0
    checkpoint: bool = False
    reason: str | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Status:
    """`counts` has every run in one of the kinds; `runs` the running, interrupted, failed and damaged ones.

    `plan` is of what is left, on the slots of the schedulers at work or else of this machine;
    `free_bytes` is the room on the disk of the results.
    """

    preset: str
    heading: str
    results: str
    counts: Mapping[str, int]
    runs: tuple[RunStatus, ...]
    schedulers: tuple[Heartbeat, ...]
    plan: Plan | None
    free_bytes: int | None

    def of(self, kind: str) -> list[RunStatus]:
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
            "schedulers": [asdict(scheduler) for scheduler in self.schedulers],
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
        lines += [_scheduler(scheduler) for scheduler in self.schedulers] or ["no scheduler is at work here"]
        for kind in ("running", "interrupted", "failed", "damaged"):
            found = self.of(kind)
            lines += [f"{kind}: {_run(run)}" for run in found[:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"{kind}: {len(found) - SHOWN} more (--json lists them)")
        if self.plan and self.plan.duration:
            unknown = any(column.to_do and not column.duration for column in self.plan.columns)
            where = "on its slots" if self.schedulers else "on this machine's slots"
            rest = ", without the columns whose speed is not known yet" if unknown else ""
            lines.append(f"time to do: {self.plan.duration} {where}{rest}")
        if self.free_bytes is not None:
            needs = f", the runs to do need about {format_bytes(self.plan.disk.total)}" if self.plan else ""
            lines.append(f"disk: {format_bytes(self.free_bytes)} free{needs}")
        return "\n".join(lines)


def make_status(
    survey: Survey,
    traces: Mapping[str, Trace],
    schedulers: Sequence[Heartbeat],
    recipe: Recipe,
    plan: Plan | None,
    heading: str,
    results: Path,
) -> Status:
    """The status of the runs of `survey`; `traces` has the ones that were begun and are not done."""
    counts = Counter(dict.fromkeys(_KINDS, 0))
    runs: list[RunStatus] = []
    for state in survey.states:
        trace = traces.get(state.run.id)
        if trace and not state.counts:
            kind = str(trace.phase)
            runs.append(_traced(state.run.id, trace, recipe))
        elif state.record_state in (RecordState.CORRUPT, RecordState.MISPLACED):
            kind = "damaged"
            runs.append(RunStatus(state.run.id, kind, reason=state.reason))
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
        schedulers=tuple(schedulers),
        plan=plan,
        free_bytes=_free(results),
    )


def _traced(run: str, trace: Trace, recipe: Recipe) -> RunStatus:
    progress = trace.progress
    left = _seconds_left(progress, recipe) if progress and trace.phase is Phase.RUNNING else None
    return RunStatus(
        run=run,
        kind=str(trace.phase),
        epoch=progress.epoch if progress else None,
        epochs=progress.epochs if progress else None,
        images_per_second=progress.images_per_second if progress else None,
        test_accuracy=progress.test_accuracy if progress else None,
        seconds_left=left,
        report_age=trace.report_age,
        attempts=trace.attempts,
        checkpoint=trace.checkpoint,
        reason=trace.cause,
        ended=trace.ended,
    )


def _seconds_left(progress: Progress, recipe: Recipe) -> float | None:
    """At the present speed of training, evaluation not counted."""
    if not progress.images_per_second:
        return None
    images = (1 - progress.fraction) * progress.epochs * progress.steps * recipe.batch_size
    return images / progress.images_per_second


def _scheduler(beat: Heartbeat) -> str:
    devices = Counter(slot.device for slot in beat.slots)
    slots = ", ".join(f"{count} on {device}" for device, count in devices.items())
    since = time.strftime("%d %b %H:%M", time.localtime(beat.started))
    until = ""
    if beat.deadline is not None:
        until = f", its budget lasts {format_seconds(max(0.0, beat.deadline - time.time()))} more"
    word = f"; its last word: {beat.notice}" if beat.notice else ""
    if beat.paused:
        word += "; paused: the results folder takes no writes; it goes on by itself when there is room"
    if beat.age > SILENT:
        word += f"; no report for {format_seconds(beat.age)}"
    return (
        f"scheduler {beat.pid} on {beat.host} since {since}, slots: {slots}{until}: "
        f"{beat.done} done, {beat.failed} failed, {beat.todo} to do{word}"
    )


def _run(run: RunStatus) -> str:
    words = [run.run]
    if run.epoch is not None and run.epochs is not None:
        words.append(f"epoch {min(run.epoch + 1, run.epochs)}/{run.epochs}")
    if run.kind == "running":
        if run.images_per_second:
            words.append(f"{run.images_per_second:,.0f} images/s")
        if run.test_accuracy is not None:
            words.append(f"{run.test_accuracy:.1f} %")
        if run.seconds_left is not None:
            words.append(f"{format_seconds(run.seconds_left)} left")
        if run.report_age is not None and run.report_age > 10:
            words.append(f"no report for {format_seconds(run.report_age)}")
    elif run.kind == "interrupted":
        words.append("with a checkpoint" if run.checkpoint else "without a checkpoint: it starts again")
    if run.reason:
        words.append(run.reason)
    return "  ".join(words)


def _free(results: Path) -> int | None:
    """Bytes free where the results lie or would be made."""
    for folder in (results, *results.parents):
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return None
