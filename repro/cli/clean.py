"""`repro clean`: removes what no run needs any more, never what a live worker may hold."""

import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from repro.cli.options import command, places, say
from repro.errors import UsageError

if TYPE_CHECKING:
    from repro.cli.context import Context
    from repro.registry import Run
    from repro.worker_note import WorkerNote


class Leftover(NamedTuple):
    """A file or folder that nothing needs, and the done run that it belongs to, if to any."""

    path: Path
    what: str
    run: "Run | None" = None

    @property
    def bytes(self) -> int:
        """Of the file, or of every file in the folder."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.lstat().st_size for file in files if file.is_file())


@command()
@places
@click.option("--yes", is_flag=True, help="Do not ask, as in a script.")
def clean(context: "Context", yes: bool) -> None:
    """Remove what the preset's runs left and nothing needs: lists it with sizes, then asks.

    Of done runs the checkpoints, and every attempt but the last; notes of dead workers; sweeps whose
    supervisor is dead. Records, quarantined and superseded ones too, are kept. What a live process holds is
    left alone.
    """
    from repro.scheduling.estimate import format_bytes

    found = list(find_leftovers(context))
    if not found:
        say("nothing to remove")
        return
    for each in found:
        click.echo(f"{format_bytes(each.bytes):>9}  {each.what}  {each.path}")
    total = format_bytes(sum(each.bytes for each in found))
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("repro clean asks before it removes anything; without a terminal add --yes")
        click.confirm(f"Remove all {len(found)}, {total}?", abort=True, err=True)
    removed = sum(remove(context, each) for each in found)
    say(f"removed {removed} of {len(found)}" + (" (the others are in use by now)" * (removed < len(found))))


def find_leftovers(context: "Context") -> Iterator[Leftover]:
    """What nothing needs, at this moment; reads only."""
    from repro.attempts import Outcome, attempt_numbers, read_attempts
    from repro.record_state import recorded_runs
    from repro.storage import lock_holder, lock_holders
    from repro.worker_note import process_start, read_worker_notes

    project, preset = context.project, context.preset.name
    holders = lock_holders()
    for run in recorded_runs(project, context.preset, context.registry)[0]:
        paths = project.run(preset, run.id)
        if lock_holder(paths.lock, holders) is not None or not _is_done(context, run):
            continue
        # The last attempt stays: the next one's number counts on from it.
        *earlier, last = attempt_numbers(paths) or [0]
        for number in earlier:
            yield Leftover(paths.attempts / str(number), "attempt of a done run", run)
        for checkpoint in sorted((paths.attempts / str(last)).glob("checkpoint-*.pt")):
            yield Leftover(checkpoint, "checkpoint of a done run", run)

    def judges(note: "WorkerNote") -> bool:
        """Whether the note will tell who is to blame for an attempt that nobody has closed yet."""
        attempts = [read_attempts(project.run(preset, progress.run)) for progress in note.runs]
        return any(a and a[-1].kind is Outcome.RUNNING and a[-1].worker == note.name for a in attempts)

    notes = read_worker_notes(project.workers(preset))
    for note in notes:
        if note.is_alive is False and not judges(note):
            yield Leftover(project.workers(preset) / f"{note.name}.json", "note of a dead worker")
    # Tasks in Slurm's queue outlive their supervisor, and have no note before they start.
    folder = project.sweeps(preset)
    for sweep in [] if (project.work(preset) / "slurm").exists() else sorted(folder.glob("*.json")):
        host, _, pid = sweep.stem.partition("-")[2].partition("-")[2].rpartition("-")
        dead = host == socket.gethostname() and pid.isdecimal() and process_start(int(pid)) is None
        if dead and not any(note.sweep == sweep.stem and note.is_alive is not False for note in notes):
            yield Leftover(sweep, "sweep of a dead supervisor")
            if (stop := sweep.with_suffix(".stop")).exists():
                yield Leftover(stop, "sweep of a dead supervisor")


def remove(context: "Context", leftover: Leftover) -> bool:
    """Removes it, a run's own under the run's lock and while it is done; whether it did."""
    from repro.storage import FileLock

    if leftover.run is None:
        leftover.path.unlink(missing_ok=True)
        return True
    with FileLock(context.project.run(context.preset.name, leftover.run.id).lock) as lock:
        if not lock.acquire() or not _is_done(context, leftover.run):
            return False
        if leftover.path.is_dir():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)
    return True


def _is_done(context: "Context", run: "Run") -> bool:
    """Whether nobody will go on with the run: `--stale rerun` may have begun to replace an older record."""
    from repro.attempts import Outcome, read_attempts
    from repro.record_state import RecordState

    (state,) = context.states([run], whole=False)
    notes = read_attempts(context.project.run(context.preset.name, run.id))
    ended = not notes or notes[-1].kind is Outcome.DONE
    return state.record_state is RecordState.DONE or (state.counts and ended)
