"""Events and outcomes as lines of text, the same on a terminal and in a log."""

from repro.scheduling.durations import format_seconds
from repro.scheduling.events import (
    Elsewhere,
    Event,
    Failed,
    Finished,
    Notice,
    Paused,
    Quarantined,
    Requeued,
    Resumed,
)
from repro.scheduling.outcome import Outcome


def describe(event: Event) -> str | None:
    """The event as one line; None for one that only a live view shows."""
    match event:
        case Finished(run, accuracy, seconds, ended, total):
            reached = "diverged" if accuracy is None else f"{accuracy:.1f} %"
            return f"{_count(ended, total)} done {run}  {reached}  {format_seconds(seconds)}"
        case Failed(failure, ended, total):
            return f"{_count(ended, total)} failed {failure.run}  {failure.cause}  (log: {failure.log})"
        case Requeued(runs, cause):
            which = runs[0] if len(runs) == 1 else f"{len(runs)} runs, each alone, from {runs[0]} on"
            return f"again: {which}: {cause}"
        case Quarantined(run, path, reason):
            return f"quarantined the record of {run}, which is trained again: {reason} (now {path})"
        case Elsewhere(run):
            return f"{run} is being trained by another process"
        case Paused(reason):
            return f"paused: {reason}; runs under way go on, and the rest when there is room again"
        case Resumed():
            return "the results folder can be written again: going on"
        case Notice(text):
            return text
        case _:
            return None


def summarise(outcome: Outcome) -> str:
    """What the sweep came to: counts, time, every failure with its cause and the line that repeats it."""
    counts = [
        (len(outcome.done), "done"),
        (len(outcome.skipped), "done before"),
        (len(outcome.failed), "failed"),
        (len(outcome.left), "left to another process"),
        (len(outcome.unfinished), "to do"),
    ]
    total = sum(count for count, _ in counts)
    parts = ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing to do"
    lines = [f"{total} {'run' if total == 1 else 'runs'}: {parts}; {format_seconds(outcome.seconds)}"]
    for failure in outcome.failed:
        often = f" (launched {failure.launches} times)" if failure.launches > 1 else ""
        lines += [
            f"failed {failure.run}: {failure.cause}{often}",
            f"  log: {failure.log}",
            f"  repeat it: {failure.command}",
        ]
    lines += [f"left to another process: {run}" for run in outcome.left]
    if outcome.stopped_early:
        lines.append(f"stopped early: {outcome.stopped_early}")
    if outcome.interrupted and outcome.unfinished:
        why = "budget spent" if outcome.interrupted == "budget" else f"interrupted by {outcome.interrupted}"
        lines.append(f"{why}: the same command goes on where this one stopped")
    return "\n".join(lines)


def _count(ended: int, total: int) -> str:
    return f"[{ended:>{len(str(total))}}/{total}]"
