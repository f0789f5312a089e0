"""The audit of a round: what was lost, done twice, accepted though it was damaged, or came out different.

It goes by what is on disk, by the journal of what happened to every record and checkpoint, and by records
of the same runs that were never disturbed; nothing that the program says of itself is taken for true but the
step at which an attempt says that it began.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from chaos.damage import Damages, age, step_of
from chaos.interposer import Event
from chaos.sweep import Sweep
from repro.attempts import AttemptNote, Outcome
from repro.errors import IntegrityError
from repro.paths import RunPaths
from repro.records import RunRecord, parse_record
from repro.registry import Run

Harm = Literal["lost", "duplicate", "corrupt accepted", "byte-unequal", "blamed", "orphan", "stop ignored"]
HARMS: tuple[Harm, ...] = get_args(Harm)


@dataclass(frozen=True)
class Finding:
    """Something that must not be; `what` is a sentence."""

    harm: Harm
    what: str


def audit(
    sweep: Sweep,
    reference: dict[str, RunRecord],
    damages: Damages,
    events: Sequence[Event],
    locks_deleted: Iterable[Path],
) -> list[Finding]:
    """Everything wrong with a finished round whose journal is `events`."""
    without_lock = {lock.parent for lock in locks_deleted} | _without_lock(events)
    failing = {
        event.pid for event in events if event.name == "fault" and event.fields[0] in ("fail", "short")
    }
    found: list[Finding] = []
    for run in sweep.runs:
        paths = sweep.paths(run)
        own = [event for event in events if event.fields and _is_about(event.path, paths)]
        found += _final_record(sweep, run, reference[run.id], damages)
        found += _History(run, paths, failing).follow(own, has_lock=paths.work not in without_lock)
        found += _quarantined(run, paths, damages)
    return found


def _final_record(sweep: Sweep, run: Run, expected: RunRecord, damages: Damages) -> list[Finding]:
    path = sweep.paths(run).record
    if not path.exists():
        return [Finding("lost", f"{run.id} has no record, and undisturbed sweeps do not make one")]
    if path.read_bytes() in damages.planted | damages.superseded:
        return [Finding("corrupt accepted", f"{run.id}: a record that was put there is still there")]
    try:
        record = sweep.record(run)
    except IntegrityError as error:
        return [Finding("corrupt accepted", f"{run.id}: the record left at the end is no good: {error}")]
    assert record is not None
    if record.comparable() == expected.comparable():
        return []
    return [Finding("byte-unequal", f"{run.id}: {_difference(record.comparable(), expected.comparable())}")]


def _quarantined(run: Run, paths: RunPaths, damages: Damages) -> list[Finding]:
    """Only what was planted may be quarantined."""
    found = []
    for folder, planted in ((paths.quarantine, damages.planted), (paths.superseded, damages.superseded)):
        for file in sorted(folder.glob("[0-9]*.json")):
            if not file.stem.isdigit() or (content := file.read_bytes()) in planted:
                continue
            where = f"{run.id}: {folder.name}/{file.name}"
            try:
                parse_record(content.decode(), where)
            except (IntegrityError, UnicodeDecodeError):
                found.append(
                    Finding("corrupt accepted", f"{where}: a torn record that the sweep itself made")
                )
            else:
                found.append(Finding("lost", f"{where}: a good record was thrown away"))
    return found


@dataclass
class _History:
    """Follows one run's record and checkpoints through the journal."""

    run: Run
    paths: RunPaths
    failing: set[int]  # pids of processes in which a system call did not do what it says
    found: list[Finding] = field(default_factory=list)
    _record: Literal["none", "good", "damaged"] = "none"
    _good: set[Path] = field(default_factory=set)
    _damaged: set[Path] = field(default_factory=set)
    _newest: Path | None = None
    _saving: set[Path] = field(default_factory=set)

    def follow(self, events: Sequence[Event], has_lock: bool) -> list[Finding]:
        """What the events show to be wrong; `has_lock` where the run's lock could be relied on."""
        self._saving = {event.path.parent for event in events if event.name == "saved"}
        for event in events:
            if event.name == "damage" and event.path == self.paths.record:
                self._record = "damaged"
            elif event.name == "damage":
                self._good.discard(event.path)
                self._damaged.add(event.path)
            elif event.name == "saved":
                if has_lock and self._newest not in (None, event.path.parent):
                    self._find("duplicate", f"{event.path} was saved after {self._newest} had begun")
                self._good.add(event.path)
                self._damaged.discard(event.path)
            elif event.name == "dropped":
                self._good.discard(event.path)
                self._damaged.discard(event.path)
            elif event.name == "attempt":
                self._newest = event.path
                self._attempt(event.path, has_lock)
            elif event.name in ("link", "rename", "unlink", "taken", "overwrite"):
                self._change(event.name)
        return self.found

    def _change(self, what: str) -> None:
        if what == "overwrite":
            self._find("corrupt accepted", "its record was opened for writing under its final name")
        elif what == "taken":
            # To be judged; one that was quarantined though it is valid is found where it lies.
            self._record = "none"
        elif what == "unlink":
            if self._record == "good":
                self._find("lost", "a committed record was removed")
            self._record = "none"
        else:
            if self._record == "good":
                self._find("duplicate", f"a second commit, by {what}, replaced the first")
            self._record = "good"

    def _attempt(self, folder: Path, has_lock: bool) -> None:
        """Whether it failed for no fault, and went on from the newest good checkpoint there was."""
        try:
            note = AttemptNote.model_validate_json((folder / "attempt.json").read_bytes())
        except (OSError, ValueError):
            # Killed before it wrote its note, or the note was torn on purpose: it says nothing.
            return
        began, attempt = note.resumed_at_step, f"attempt {folder.name}"
        if note.kind is Outcome.FAILED and note.pid not in self.failing:
            self._find(
                "blamed", f"{attempt} failed though nothing but its process was stopped: {note.reason}"
            )
        if not has_lock:
            return
        if note.kind is Outcome.SUPERSEDED:
            self._find("duplicate", f"{attempt} was superseded though its run's lock was held")
        if began == 0 and folder not in self._saving:
            # The note is first written before a checkpoint is looked for; this one ended in between.
            return
        newest = step_of(max(self._good, key=age)) if self._good else 0
        if began == newest:
            return
        if began < newest:
            self._find("lost", f"{attempt} began at step {began}: step {newest} was saved")
        else:
            damaged = any(step_of(path) == began for path in self._damaged)
            which = "a damaged checkpoint" if damaged else "no known checkpoint"
            self._find("corrupt accepted", f"{attempt} began at step {began}, from {which}")

    def _find(self, harm: Harm, what: str) -> None:
        self.found.append(Finding(harm, f"{self.run.id}: {what}"))


def _is_about(path: Path, paths: RunPaths) -> bool:
    return path == paths.record or paths.work in path.parents


def _without_lock(events: Iterable[Event]) -> set[Path]:
    """The work folders of runs in which a process trained whose locks did nothing."""
    lockless: set[int] = set()
    folders: set[Path] = set()
    for event in events:
        if event.name == "fault" and event.fields[0] == "nolock":
            lockless.add(event.pid)
        elif event.name == "attempt" and event.pid in lockless:
            folders.add(event.path.parent.parent)
    return folders


def _difference(got: object, expected: object, where: str = "") -> str:
    """The first place at which two records differ."""
    if isinstance(got, dict) and isinstance(expected, dict):
        for key in expected:
            if got.get(key) != expected[key]:
                return _difference(got.get(key), expected[key], f"{where}.{key}".lstrip("."))
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
            if ours != theirs:
                return _difference(ours, theirs, f"{where}[{index}]")
    return f"{where} is {got!r}, undisturbed {expected!r}"
