"""A sweep: the ordered list of runs that workers share, on disk, and what is left to do of it.

    <results>/<preset>/.work/sweeps/ID.json   the runs, each with the record that is expected, and a baseline
    <results>/<preset>/.work/sweeps/ID.stop   `drain` or `now`: a request to all workers, on any machine

Nobody assigns a run: each worker takes the first one that is free. Imports no torch.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from repro.attempts import (
    NOT_RUN_YET,
    AttemptNote,
    GivenUp,
    Outcome,
    given_up,
    is_suspect,
    last_saved_step,
    memory_that_was_too_small,
    read_attempts,
    without_record,
    write_attempt,
)
from repro.config import Preset
from repro.errors import IntegrityError, RecordUnreadableError, ReproError, SetupError, UsageError
from repro.paths import Project, RunPaths, read_file
from repro.records import Signature, read_record
from repro.registry import Registry, Run
from repro.signature import code_hash, config_hash, data_hash
from repro.storage import (
    FileLock,
    commit_record,
    lock_holder,
    lock_holders,
    make_folder,
    record_digest,
    write_whole,
)
from repro.worker_note import Phase, WorkerNote

StopRequest = Literal["drain", "now"]  # finish the runs in progress; or checkpoint at the next step


@dataclass(frozen=True)
class SweepRun:
    """A run to train. Hashes are those of the record that is expected, `data` None where it is not known.

    The baseline: `attempts` is the number of its last attempt when the sweep was planned, `record` the sha256
    of the record's file then (None: there was none). Only attempts and records beyond it count.
    """

    run: str
    config: str
    data: str | None
    code: str
    attempts: int
    record: str | None

    def expects(self, signature: Signature) -> bool:
        """Whether a record of this signature is the one to be made."""
        same_data = self.data is None or signature.data == self.data
        return same_data and (signature.config, signature.code) == (self.config, self.code)


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, in order; `workers` share them, `workers_per_device` of them one device."""

    id: str
    preset: str
    runs: tuple[SweepRun, ...]
    workers: int = 1
    workers_per_device: int = 1

    def write(self, path: Path) -> None:
        """Writes the sweep to `path`; SetupError if the file system refuses."""
        make_folder(path.parent)
        write_whole(path, json.dumps(asdict(self), indent=0).encode())

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """The sweep at `path`; SetupError where there is none that can be read."""
        try:
            content = json.loads(read_file(path))
            return cls(**{**content, "runs": tuple(SweepRun(**run) for run in content["runs"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SetupError(f"cannot read the sweep {path}: {error}") from None


def plan_sweep(
    runs: Sequence[Run],
    registry: Registry,
    preset: Preset,
    project: Project,
    fingerprints: "dict[str, str | None]",
    workers: int = 1,
    workers_per_device: int = 1,
) -> Sweep:
    """The sweep that trains `runs`, in order, with the baseline of this moment.

    Raises RecordUnreadableError, before anything is trained, for records that cannot be read, SetupError for
    folders, attempts and locks that cannot be used.
    """
    with FileLock(project.work(preset.name) / "lock-check") as lock:
        lock.acquire()  # a file system without kernel locks is found before training
    entries: list[SweepRun] = []
    in_the_way: list[ReproError] = []
    for run in runs:
        config = registry.config(run, preset)
        fingerprint = fingerprints.get(run.cell.dataset)
        paths = project.run(preset.name, run.id)
        attempts: Sequence[AttemptNote] = ()
        try:
            make_folder(paths.record.parent)
            attempts = read_attempts(paths)
            FileLock(paths.lock).check()
            read_record(paths.record, run.id, preset.name)
        except (RecordUnreadableError, SetupError) as error:
            in_the_way.append(error)
        except IntegrityError:
            pass  # damaged: whoever trains the run moves it to quarantine
        entries.append(
            SweepRun(
                run=run.id,
                config=config_hash(config),
                data=None if fingerprint is None else data_hash(fingerprint, config),
                code=code_hash(config),
                attempts=attempts[-1].number if attempts else 0,
                record=record_digest(paths.record),
            )
        )
    if in_the_way:
        kind = max((type(error) for error in in_the_way), key=lambda kind: kind.exit_code)
        raise kind("\n".join([*dict.fromkeys(map(str, in_the_way)), "move it away, then run again"]))
    # Only a name: nothing is decided by this clock.
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
    return Sweep(name, preset.name, tuple(entries), workers, workers_per_device)


def request_stop(sweep_file: Path, how: StopRequest) -> None:
    """Asks every worker of the sweep to stop, wherever it is."""
    write_whole(sweep_file.with_suffix(".stop"), how.encode())


def stop_request(sweep_file: Path) -> StopRequest | None:
    """What the sweep's workers are asked; None: nothing."""
    try:
        return "drain" if read_file(sweep_file.with_suffix(".stop")).strip() == b"drain" else "now"
    except OSError:
        return None


class RunStatus(StrEnum):
    """Where a run of the sweep is, for one worker."""

    SETTLED = "settled"  # done, given up or impossible here: never read again
    SUSPECT = "suspect"  # takeable by a process that trains nothing else
    FREE = "free"


class RunQueue:
    """The runs of a sweep that are left for one device, in order.

    `device_memory` (bytes) decides which runs have proved too large for it; None: for the supervisor, which
    asks on behalf of all devices. `kinds` has what each run without a record was when it was last looked at,
    as `repro status` calls it: "to do", "running", "interrupted" or "failed".
    """

    def __init__(
        self, sweep: Sweep, registry: Registry, project: Project, device_memory: int | None = None
    ) -> None:
        self.sweep = sweep
        self.device_memory = device_memory
        self.given_up: dict[str, GivenUp] = {}
        self.impossible: dict[str, str] = {}  # run → why not on this device
        self.done: dict[str, None] = {}  # in the order in which they were found done
        self.project = project
        self.kinds: dict[str, str] = dict.fromkeys((entry.run for entry in sweep.runs), "to do")
        preset = registry.preset(sweep.preset)
        self._open: dict[str, SweepRun] = {}
        for entry in sweep.runs:
            try:
                same = config_hash(registry.config(registry.parse(entry.run), preset)) == entry.config
            except UsageError as error:
                self.impossible[entry.run] = str(error)
                continue
            if same:
                self._open[entry.run] = entry
            else:
                self.impossible[entry.run] = f"{project.experiments} has another recipe than the sweep"

    @property
    def open(self) -> Sequence[SweepRun]:
        """The runs that are not settled, in order."""
        return tuple(self._open.values())

    def exclude(self, run: str, reason: str) -> None:
        """Leaves a run to other devices."""
        self.impossible[run] = reason
        self._open.pop(run, None)

    def status(self, entry: SweepRun) -> RunStatus:
        """Where a run is now, as its record and its attempts beyond the baseline tell; locks aside."""
        status = self._read(entry) if entry.run in self._open else RunStatus.SETTLED
        if status is RunStatus.SETTLED:
            self._open.pop(entry.run, None)
        return status

    def takeable(self, alone: bool = True) -> Iterator[SweepRun]:
        """The runs that a worker may try to lock, in order; suspects only where it trains nothing else."""
        for entry in self.open:
            status = self.status(entry)
            if status is RunStatus.FREE or (status is RunStatus.SUSPECT and alone):
                yield entry

    def locked(self) -> dict[str, int]:
        """The open runs whose lock a process of this machine holds, with its pid; takes no lock itself."""
        holders = lock_holders()
        found = {}
        for entry in self.open if holders else ():
            pid = lock_holder(self.paths(entry.run).lock, holders)
            if pid is not None:
                found[entry.run] = pid
        return found

    def close_dead_attempt(self, entry: SweepRun) -> None:
        """Closes the note of an attempt that still says running; call it holding the run's lock.

        Whoever wrote it is dead, then. What its worker said last decides whether the run is to blame. A
        finished result that an attempt could not commit any more is committed.
        """
        paths = self.paths(entry.run)
        notes = read_attempts(paths)
        if not notes or notes[-1].kind is Outcome.DONE:
            return
        for note in notes:
            if note.kind is Outcome.DONE:
                continue  # its record was committed, and removed since
            folder = paths.attempts / str(note.number)
            if self._commit_finished(entry, folder):
                write_attempt(folder, note.model_copy(update={"ended": datetime.now(UTC), "outcome": "done"}))
                return
        note = notes[-1]
        folder = paths.attempts / str(note.number)
        if note.kind is not Outcome.RUNNING:
            return
        life = WorkerNote.read(self.project.workers(self.sweep.preset) / f"{note.worker}.json")
        stopping = life is not None and (life.phase is Phase.STOPPING or life.blameless)
        outcome = Outcome.INTERRUPTED if stopping else Outcome.CRASHED
        death = life.death if life else ""
        update = {
            "ended": datetime.now(UTC),
            "outcome": f"{outcome}: {death}" if death else str(outcome),
            "saved_step": max(note.resumed_at_step, last_saved_step(folder)),
            "alone": len(life.runs) <= 1 if life else note.alone,
        }
        write_attempt(folder, note.model_copy(update=update))

    def _commit_finished(self, entry: SweepRun, folder: Path) -> bool:
        """Commits the record that an attempt finished and left uncommitted; False if it left none to use."""
        try:
            record = read_record(folder / "record.json", entry.run, self.sweep.preset)
        except IntegrityError:
            return False
        if record is None or not entry.expects(record.signature):
            return False
        return commit_record(record, self.paths(entry.run), folder, entry.record)

    def close_dead_attempts(self) -> None:
        """The same for every open run whose lock is free: what is left to take may be less then."""
        for entry in self.open:
            notes = read_attempts(self.paths(entry.run))
            if notes and notes[-1].kind is Outcome.RUNNING:
                with FileLock(self.paths(entry.run).lock) as lock:
                    if lock.acquire():
                        self.close_dead_attempt(entry)

    def paths(self, run: str) -> RunPaths:
        """Where a run keeps its files."""
        return self.project.run(self.sweep.preset, run)

    def _read(self, entry: SweepRun) -> RunStatus:
        if self._has_result(entry):
            self.done[entry.run] = None
            return RunStatus.SETTLED
        every = read_attempts(self.paths(entry.run))
        notes = [note for note in every if note.number > entry.attempts]
        # An attempt of before the sweep that says running is a dead worker's.
        in_progress = bool(notes) and notes[-1].kind is Outcome.RUNNING
        self.kinds[entry.run] = without_record(every, in_progress)[0].replace(NOT_RUN_YET, "to do")
        if verdict := given_up(notes):
            self.given_up[entry.run] = verdict
            return RunStatus.SETTLED
        too_small = memory_that_was_too_small(notes)
        if too_small is not None and self.device_memory is not None and too_small >= self.device_memory:
            reason = next(note.reason for note in reversed(notes) if note.device_memory_bytes == too_small)
            self.impossible[entry.run] = f"out of memory: {reason}"
            return RunStatus.SETTLED
        return RunStatus.SUSPECT if is_suspect(notes) else RunStatus.FREE

    def _has_result(self, entry: SweepRun) -> bool:
        """Whether a valid record was committed since the baseline, whoever did it, with whatever code.

        Two machines with different code must not replace each other's results for ever.
        """
        path = self.paths(entry.run).record
        digest = record_digest(path)
        if digest is None or digest == entry.record:
            return False
        try:
            return read_record(path, entry.run, self.sweep.preset) is not None
        except IntegrityError:
            return False  # damaged: whoever trains the run moves it to quarantine
