"""Slurm's queue as its own commands tell it: one `squeue` for all jobs, and what a job's last state means."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from repro.errors import RunInterruptedError
from repro.scheduling.executors.base import Ending

_TIMEOUT = 60.0
_KILLED = -9
_STOPPED = RunInterruptedError.exit_code

_LIMIT = ("TIMEOUT", "DEADLINE")
_NODE_LOST = ("NODE_FAIL", "BOOT_FAIL")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "PREEMPTED", "OUT_OF_MEMORY", *_LIMIT, *_NODE_LOST)

TIME_LIMIT = Ending("its job reached Slurm's time limit", blameless=True)
CANCELLED = Ending("its job was cancelled in Slurm", blameless=False)
PREEMPTED = Ending("Slurm preempted its job", blameless=True)
ORPHANED = Ending("the Slurm daemon that supervised its job died", blameless=True)


class QueueSilentError(Exception):
    """Slurm's controller does not answer, or one of its commands failed; the message is Slurm's own."""


@dataclass(frozen=True)
class QueueEntry:
    """A job as Slurm sees it: `state` in Slurm's words, the node that it has, why it waits."""

    state: str
    node: str
    reason: str

    @property
    def ended(self) -> bool:
        """Whether Slurm is done with it; a requeued job is not."""
        return self.state in _ENDED


def read_queue() -> Mapping[str, QueueEntry]:
    """This user's jobs by id (`12`, or `12_3` in an array), those that ended a short while ago included.

    QueueSilentError if Slurm does not answer.
    """
    done = _call(
        "squeue",
        f"--user={os.getuid()}",
        "--states=all",
        "--array",
        "--noheader",
        "--format=%i|%T|%N|%r",
    )
    if done.returncode:
        raise QueueSilentError(last_words(done.stderr) or f"squeue ended with {done.returncode}")
    lines = (line.split("|", 3) for line in done.stdout.splitlines())
    return {words[0].strip(): QueueEntry(*words[1:]) for words in lines if len(words) == 4}


def cancel(ids: Iterable[str], *options: str) -> None:
    """One scancel for all of `ids`, whose jobs may have ended; QueueSilentError if Slurm does not answer."""
    done = _call("scancel", "--quiet", *options, *ids)
    # Of a job that has ended, --quiet says nothing, and the exit code may be 1 all the same.
    if done.returncode and done.stderr.strip():
        raise QueueSilentError(last_words(done.stderr))


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
            # Ctrl-C is for the scheduler; it must not end what passes it on.
            process_group=0,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueSilentError(f"{words[0]}: {error}") from None


def read_end(entry: QueueEntry | None, began: bool) -> tuple[int, Ending]:
    """Exit code and cause of a job that ended without leaving word; None: Slurm has forgotten it.

    `began`: its worker had been started on a node. A cause gets into records, so it names no node.
    """
    state = entry.state if entry else ""
    if state in _LIMIT:
        return _KILLED, TIME_LIMIT
    if state == "PREEMPTED":
        return _KILLED, PREEMPTED
    if state in _NODE_LOST:
        return _KILLED, Ending("the node of its job failed", blameless=True)
    if state == "CANCELLED":
        return _STOPPED, CANCELLED
    if state == "OUT_OF_MEMORY":
        return _KILLED, Ending(
            "Slurm killed its job for using more memory than it has (--mem)", blameless=False
        )
    if not entry:
        return _KILLED, Ending("its job is gone from Slurm's queue and left no word", blameless=True)
    if began:
        return _KILLED, Ending("its job was killed on the node", blameless=False)
    return _KILLED, Ending("its job could not start on the node", blameless=False)


def waiting(entries: Mapping[str, QueueEntry]) -> dict[str, str]:
    """The jobs that wait, by Slurm's reason, each as a sentence for the user."""
    by_reason: dict[str, list[str]] = {}
    for job, entry in entries.items():
        if entry.state == "PENDING" and entry.reason not in ("", "None"):
            by_reason.setdefault(entry.reason, []).append(job)
    return {reason: _sentence(reason, jobs) for reason, jobs in by_reason.items()}


def _sentence(reason: str, jobs: Iterable[str]) -> str:
    ids = list(jobs)
    who = "1 job waits" if len(ids) == 1 else f"{len(ids)} jobs wait"
    held = "; an administrator or you must let it go: scontrol release ID" if "held" in reason.lower() else ""
    return f"{who} in Slurm's queue ({named(ids)}): {reason}{held}"


def named(ids: Iterable[str]) -> str:
    """The first three, as a user needs no more to find the others."""
    some = list(ids)
    return ", ".join(some[:3]) + (", …" if len(some) > 3 else "")


def last_words(text: str) -> str:
    """The last line that is not blank, without the name of the command that said it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].split(": error: ", 1)[-1] if lines else ""
