"""Workers as Slurm jobs, submitted through submitit.

Slurm may start a job never, once or twice; whatever it does, what counts is what the job's worker commits.
Jobs outlive the scheduler: a note of each in `folder` lets the next one take them over.
"""

import contextlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from repro.commit import make_folder, write_whole
from repro.errors import RunInterruptedError, SetupError
from repro.scheduling.executors.base import Ending, Executor, Job
from repro.scheduling.executors.slurm_node import Heard, NodeSide, Note
from repro.scheduling.executors.slurm_queue import (
    CANCELLED,
    ORPHANED,
    PREEMPTED,
    TIME_LIMIT,
    QueueEntry,
    QueueSilentError,
    cancel,
    named,
    read_end,
    read_queue,
    waiting,
)
from repro.scheduling.executors.slurm_submission import LARGEST_ARRAY, SlurmRequest, SlurmSubmission
from repro.scheduling.slots import Slot


@dataclass(frozen=True)
class SlurmPace:
    """Seconds between two looks at the notes, and between two calls of squeue, at least and at most."""

    notes: float = 1.0
    queue: float = 2.0
    queue_longest: float = 30.0


@dataclass
class _Submitted:
    """A job in Slurm's hands: `missing` counts the looks that found it ended without word.

    `asked` is the last word for it: a signal's name, or KILL.
    """

    job: Job
    id: str
    missing: int = 0
    asked: str | None = None


class SlurmExecutor(Executor):
    """One Slurm job a job, those that are started together as one array.

    `folder` is on the shared file system, as the results are. Whether a job has ended is read from the note
    that it leaves there and from one squeue for all of them; submitit's own results are not looked at.
    Raises SetupError where submitit or Slurm is missing, or the controller does not answer.
    """

    def __init__(self, folder: Path, request: SlurmRequest, pace: SlurmPace | None = None) -> None:
        self._folder = folder
        self._pace = pace or SlurmPace()
        self._submission = SlurmSubmission(folder, request)
        self._unsent: list[Job] = []
        self._submitted: dict[int, _Submitted] = {}
        self._unsaid: set[int] = set()
        self._codes: dict[int, int] = {}
        self._endings: dict[int, Ending] = {}
        self._news: list[str] = []
        self._told: frozenset[str] = frozenset()
        self._next_send = 0.0
        self._next_notes = 0.0
        self._next_queue = 0.0
        self._queue_pause = self._pace.queue
        try:
            self._queue: Mapping[str, QueueEntry] = read_queue()
        except QueueSilentError as error:
            raise SetupError(f"Slurm does not answer ({error}): see what `sinfo` says") from None

    def submit(self, job: Job) -> None:
        """Takes `job`; it goes to Slurm with the others of this round when the first of them is polled."""
        make_folder(job.log.parent)
        self._unsent.append(job)

    def poll(self, job: Job) -> int | None:
        """The worker's exit code, as its node noted it or as Slurm's word for its end implies.

        Raises SetupError if Slurm refuses the jobs for a reason that waiting does not change.
        """
        self._send()
        self._say()
        self._look()
        return self._codes.get(job.number)

    def drain(self, job: Job) -> None:
        """SIGUSR2 to the node's side; a job that waits is cancelled."""
        self._ask(job, "USR2")

    def terminate(self, job: Job) -> None:
        """SIGTERM to the node's side, which passes it on; a job that waits is cancelled."""
        self._ask(job, "TERM")

    def kill(self, job: Job) -> None:
        """Cancels the job: Slurm kills what is left of it on its node.

        A job that cannot be reached because Slurm does not answer is left to the next scheduler.
        """
        self._ask(job, "KILL")

    def ending(self, job: Job) -> Ending | None:
        """Slurm's reason for the end, if it was Slurm's doing."""
        return self._endings.get(job.number)

    def adopt(self, first: int, runs: Collection[str]) -> Sequence[Job]:
        """Jobs in the queue that an earlier scheduler has noted in `folder`."""
        adopted: list[Job] = []
        for path in sorted(self._folder.glob("*.job.json")):
            note = _read_job(path)
            entry = self._queue.get(note[0]) if note else None
            if note is None or entry is None or entry.ended:
                path.unlink(missing_ok=True)
            elif not set(note[1].runs).isdisjoint(runs):
                job = replace(note[1], number=first + len(adopted))
                self._submitted[job.number] = _Submitted(job, note[0])
                adopted.append(job)
        return adopted

    def news(self) -> Sequence[str]:
        """Why jobs wait, once for each reason, and when Slurm stops answering."""
        news, self._news = self._news, []
        return news

    def _send(self) -> None:
        if not self._unsent or time.monotonic() < self._next_send:
            return
        jobs = self._unsent[:LARGEST_ARRAY]
        sides = [NodeSide(job, self._note(job)) for job in jobs]
        try:
            ids = self._submission.send(sides)
        except SetupError as error:
            # While others are in the queue a refusal may be a full queue or a controller that restarts.
            if not self._submitted:
                raise
            self._tell(f"{error}; trying again")
            self._next_send = time.monotonic() + self._pace.queue_longest
            return
        del self._unsent[: len(jobs)]
        for job, id in zip(jobs, ids, strict=True):
            self._submitted[job.number] = _Submitted(job, id)
            content = {"id": id, "job": asdict(job)}
            write_whole(self._job_note(job), json.dumps(content, default=str).encode())
        self._look_soon()

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._next_notes:
            self._next_notes = now + self._pace.notes
            self._read_notes()
        if self._submitted and now >= self._next_queue:
            before = self._queue
            self._read_queue()
            changed = self._queue != before
            longest = self._pace.queue_longest
            self._queue_pause = self._pace.queue if changed else min(1.2 * self._queue_pause, longest)
            self._next_queue = time.monotonic() + self._queue_pause

    def _look_soon(self) -> None:
        self._queue_pause = self._pace.queue
        self._next_queue = min(self._next_queue, time.monotonic() + self._queue_pause)

    def _read_notes(self) -> None:
        """A worker that came to its own end is believed; any other may be started again by Slurm."""
        for submitted in list(self._submitted.values()):
            note = Note.read(self._note(submitted.job))
            if note is None or note.code is None:
                continue
            if note.code >= 0 and note.code != RunInterruptedError.exit_code:
                self._close(submitted, note.code)
            elif note.heard is Heard.ORPHANED:
                # Slurm may believe for minutes that it runs; then it would start it once more.
                self._cancel([submitted])
                self._close(submitted, note.code, ORPHANED)
            else:
                self._look_soon()

    def _read_queue(self) -> None:
        try:
            self._queue = read_queue()
        except QueueSilentError as error:
            self._tell(f"Slurm does not answer ({error}); its jobs go on, asking again")
            return
        going_on: list[_Submitted] = []
        for submitted in list(self._submitted.values()):
            entry = self._queue.get(submitted.id)
            # A job that was cancelled is not put back, however long its node takes to be rid of it.
            if entry and not entry.ended and (submitted.asked, entry.state) != ("KILL", "COMPLETING"):
                submitted.missing = 0
                going_on.append(submitted)
                continue
            note = Note.read(self._note(submitted.job))
            if note and note.code is not None:
                self._close(submitted, note.code, _ending(note, entry))
                continue
            # Looked at twice: a note may take a moment to cross the file system, a requeue to be decided.
            submitted.missing += 1
            if submitted.missing > 1:
                code, ending = read_end(entry, began=note is not None)
                if entry and entry.node:
                    self._tell(f"job {submitted.id} of Slurm on {entry.node}: {ending.cause}")
                self._close(submitted, code, ending)
                self._keep_last_words(submitted)
            self._look_soon()
        # Said again at every look, as a job that is starting does not hear it.
        self._pass_on(going_on)
        mine = {each.id: self._queue[each.id] for each in self._submitted.values() if each.id in self._queue}
        for text in waiting(mine).values():
            self._tell(text)

    def _close(self, submitted: _Submitted, code: int, ending: Ending | None = None) -> None:
        number = submitted.job.number
        self._codes[number] = code
        if ending:
            self._endings[number] = ending
        del self._submitted[number]
        self._note(submitted.job).unlink(missing_ok=True)
        self._job_note(submitted.job).unlink(missing_ok=True)

    def _keep_last_words(self, submitted: _Submitted) -> None:
        """Adds what Slurm said of a job that left no word to the job's log."""
        said = self._folder / f"{submitted.id}_0_log.err"
        with contextlib.suppress(FileNotFoundError), submitted.job.log.open("a") as log:
            log.write(said.read_text(errors="replace"))

    def _ask(self, job: Job, word: str) -> None:
        if job in self._unsent:
            self._unsent.remove(job)
            self._codes[job.number] = RunInterruptedError.exit_code
        if submitted := self._submitted.get(job.number):
            if submitted.asked != word:
                submitted.asked = word
                self._unsaid.add(job.number)
            self._look_soon()

    def _say(self) -> None:
        if self._unsaid:
            self._pass_on([each for number, each in self._submitted.items() if number in self._unsaid])
            self._unsaid.clear()

    def _pass_on(self, jobs: Sequence[_Submitted]) -> None:
        """Says to Slurm what was asked of each, a word to all of its jobs at once.

        Where Slurm is silent a call takes seconds, and the scheduler hears nothing else meanwhile.
        """
        for word in sorted({each.asked for each in jobs if each.asked}):
            those = [each for each in jobs if each.asked == word]
            if word == "KILL":
                if not self._cancel(those):
                    self._leave(those)
            elif self._cancel(those, "--state=PENDING"):
                self._cancel(those, f"--signal={word}")

    def _leave(self, jobs: Sequence[_Submitted]) -> None:
        """Gives up jobs that cannot be cancelled; their notes stay for the next scheduler."""
        one = len(jobs) == 1
        who = f"{'job' if one else f'{len(jobs)} jobs'} of Slurm ({named(each.id for each in jobs)})"
        self._tell(
            f"{who} {'was' if one else 'were'} not cancelled; "
            f"the next `repro run` takes {'it' if one else 'them'} over"
        )
        for submitted in jobs:
            self._codes[submitted.job.number] = RunInterruptedError.exit_code
            del self._submitted[submitted.job.number]

    def _cancel(self, jobs: Sequence[_Submitted], *options: str) -> bool:
        """Whether Slurm took it."""
        try:
            cancel([each.id for each in jobs], *options)
        except QueueSilentError as error:
            self._tell(f"scancel failed: {error}")
            return False
        return True

    def _tell(self, text: str) -> None:
        """Once for each sentence of the last hundred."""
        if text not in self._told:
            self._told = frozenset([*self._told, text][-100:])
            self._news.append(text)

    def _note(self, job: Job) -> Path:
        return self._folder / f"{job.log.stem}.node.json"

    def _job_note(self, job: Job) -> Path:
        return self._folder / f"{job.log.stem}.job.json"


def _ending(note: Note, entry: QueueEntry | None) -> Ending | None:
    """Why a worker that noted its end was stopped; None if nobody asked it to."""
    state = entry.state if entry else ""
    if note.heard is Heard.WARNING or state in ("TIMEOUT", "DEADLINE"):
        return TIME_LIMIT
    if state == "PREEMPTED":
        return PREEMPTED
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return read_end(entry, began=True)[1]
    return CANCELLED if state == "CANCELLED" else None


def _read_job(path: Path) -> tuple[str, Job] | None:
    """Slurm's id and the job of a note; None if it cannot be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        job = content["job"]
        return content["id"], Job(
            number=job["number"],
            runs=tuple(job["runs"]),
            argv=tuple(job["argv"]),
            environment=job["environment"],
            log=Path(job["log"]),
            slot=Slot(**job["slot"]),
            place=job["place"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
