"""Workers as tasks of a Slurm job array, through sbatch, squeue and scancel.

Each task is the same worker as anywhere else. Slurm may start a task never, once or twice; whatever it does,
what counts is what the worker commits. The folder is on the shared file system, as the results are.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from repro.errors import SetupError
from repro.scheduling.executor import Executor, JobEnd, WorkerJob
from repro.storage import make_folder, write_whole
from repro.sweep import StopRequest

WARNING_SECONDS = 90  # before the time limit a worker is told, to write its checkpoints
LARGEST_ARRAY = 1000  # Slurm's own limit (MaxArraySize) is 1001 unless its administrator changed it
_QUEUE_INTERVAL = 2.0  # seconds between two calls of squeue; up to 30 while the controller does not answer
_MISSES = 3  # looks at the queue in which a job must be missing: squeue lags behind sbatch

_ENDED: Mapping[str, JobEnd] = {
    "COMPLETED": JobEnd(0),
    "FAILED": JobEnd(None),
    "CANCELLED": JobEnd(None, "its job was cancelled in Slurm", blameless=True),
    "PREEMPTED": JobEnd(None, "Slurm preempted its job", blameless=True),
    "TIMEOUT": JobEnd(None, "its job reached Slurm's time limit", blameless=True),
    "NODE_FAIL": JobEnd(None, "the node of its job failed", blameless=True),
    "OUT_OF_MEMORY": JobEnd(None, "Slurm killed its job for using more memory than it has (--mem)"),
}


class QueueSilentError(Exception):
    """Slurm's controller does not answer, or one of its commands failed; the message is Slurm's own."""


class SlurmExecutor(Executor):
    """Submits workers that are started together as one array, all of them called `name`.

    Each task has so many `cores`, and whatever else `options` of sbatch ask for by name; True is one without
    a value, None leaves it to the cluster. Jobs of that name that an earlier supervisor left in the queue
    count against `most`, the jobs at once.

    Raises SetupError where Slurm is missing or its controller does not answer.
    """

    def __init__(
        self, folder: Path, name: str, most: int, cores: int, options: Mapping[str, str | bool | None]
    ) -> None:
        super().__init__()
        missing = [each for each in ("sbatch", "srun", "squeue", "scancel") if shutil.which(each) is None]
        if missing:
            raise SetupError(f"no {missing[0]} on PATH: run this on a login node of the Slurm cluster")
        self._folder = folder
        self._cores = cores
        self._options = options
        self._name = name
        self._most = most
        self._ids: dict[str, str] = {}  # a job's name → its id in Slurm
        self._missed: dict[str, int] = {}
        self._queue: dict[str, tuple[str, str]] = {}  # id → state and reason, of all jobs of this name
        self._next_look = 0.0
        self._pause = _QUEUE_INTERVAL
        self._told: set[str] = set()
        try:
            self._queue = self._read_queue()
        except QueueSilentError as error:
            raise SetupError(f"Slurm does not answer ({error}): see what `sinfo` says") from None

    def room(self) -> int:
        """The jobs at once, less those of this name that are in the queue."""
        self._look()
        present = sum(state not in _ENDED for state, _ in self._queue.values())
        unseen = sum(each not in self._queue for each in self._ids.values())
        return max(0, self._most - present - unseen)

    def start(self, jobs: Sequence[WorkerJob]) -> None:
        """One sbatch for all of them; SetupError with its words if it refuses."""
        for first in range(0, len(jobs), LARGEST_ARRAY):
            self._submit(jobs[first : first + LARGEST_ARRAY])

    def poll(self, job: WorkerJob) -> JobEnd | None:
        """How the task ended, as its state in the queue tells; the exit code stays unknown."""
        self._look()
        number = self._ids[job.name]
        entry = self._queue.get(number)
        if entry is not None:
            self._missed[job.name] = 0
            return _ENDED.get(entry[0])
        if self._missed.get(job.name, 0) >= _MISSES:
            return JobEnd(None, "its job is gone from Slurm's queue", blameless=True)
        return None

    def waits(self, job: WorkerJob) -> bool:
        """Whether the task has not started, or was put back into the queue."""
        return self._queue.get(self._ids[job.name], ("PENDING", ""))[0] == "PENDING"

    def stop(self, job: WorkerJob, urgency: StopRequest) -> None:
        """Cancels a task that waits; a running worker reads the sweep's stop file."""
        if self.waits(job):
            self.kill(job)

    def kill(self, job: WorkerJob) -> None:
        """Cancels the task: Slurm ends what is left of it on its node."""
        with contextlib.suppress(QueueSilentError):  # said by the next look at the queue
            _call("scancel", "--quiet", self._ids[job.name])

    def _submit(self, jobs: Sequence[WorkerJob]) -> None:
        make_folder(self._folder)
        script = self._folder / f"{jobs[0].name}.sh"
        write_whole(script, self._script(jobs).encode())
        try:
            said = _call(
                "sbatch",
                "--parsable",
                f"--job-name={self._name}",
                f"--array=0-{len(jobs) - 1}",
                f"--output={self._folder}/%A_%a.out",
                *sbatch_options(self._cores, self._options),
                str(script),
            )
        except QueueSilentError as error:
            where = "`sinfo` lists partitions, `sacctmgr show associations user=$USER` accounts"
            raise SetupError(f"sbatch refuses the jobs: {error}; {where}") from None
        array = said.split(";")[0].strip()
        self._ids |= {job.name: f"{array}_{task}" for task, job in enumerate(jobs)}

    def _script(self, jobs: Sequence[WorkerJob]) -> str:
        """One case per task. Under srun a worker is a step of its own, which Slurm signals directly."""
        lines = ["#!/bin/bash", "case $SLURM_ARRAY_TASK_ID in"]
        for task, job in enumerate(jobs):
            make_folder(job.log.parent)
            # "parent": the step's daemon; where it dies, Slurm may start the task again elsewhere.
            variables = {**job.environment, "REPRO_DIE_WITH_PARENT": "parent", "PYTHONUNBUFFERED": "1"}
            exports = " ".join(shlex.quote(f"{name}={value}") for name, value in variables.items())
            # Without --ntasks=1 an exclusive node would get a worker per core.
            step = f"srun --ntasks=1 --cpus-per-task={self._cores} --open-mode=append"
            log = shlex.quote(f"--output={job.log}")
            lines.append(f"{task}) exec env {exports} {step} {log} {shlex.join(job.argv)} ;;")
        return "\n".join([*lines, "esac", ""])

    def _look(self) -> None:
        if time.monotonic() < self._next_look:
            return
        try:
            self._queue = self._read_queue()
            self._pause = _QUEUE_INTERVAL
        except QueueSilentError as error:
            self._pause = min(2 * self._pause, 30.0)
            self.say(f"Slurm does not answer ({error}): retrying")
        else:
            for name, number in self._ids.items():
                self._missed[name] = 0 if number in self._queue else self._missed.get(name, 0) + 1
            self._say_why_jobs_wait()
        self._next_look = time.monotonic() + self._pause

    def _read_queue(self) -> dict[str, tuple[str, str]]:
        """This user's jobs of the sweep's name, those that ended a short while ago included."""
        text = _call(
            "squeue",
            f"--user={os.getuid()}",
            f"--name={self._name}",
            "--states=all",
            "--array",
            "--noheader",
            "--format=%i|%T|%r",
        )
        entries = (line.strip().split("|", 2) for line in text.splitlines())
        return {number: (state, reason) for number, state, reason in entries}

    def _say_why_jobs_wait(self) -> None:
        waiting = Counter(reason for state, reason in self._queue.values() if state == "PENDING")
        del waiting[""], waiting["None"]
        for reason, count in waiting.items():
            held = "; release it with: scontrol release ID" if "held" in reason.lower() else ""
            if reason not in self._told:
                jobs = "1 job waits" if count == 1 else f"{count} jobs wait"
                self.say(f"{jobs} in Slurm's queue: {reason}{held}")
        self._told = set(waiting)


def sbatch_options(cores: int, options: Mapping[str, str | bool | None]) -> list[str]:
    """The options of sbatch on its command line; what the user says replaces what is asked for here."""
    asked = {
        "cpus-per-task": str(cores),
        # A task that Slurm puts back is the same worker again: it skips what is done and resumes.
        "requeue": True,
        "signal": f"USR1@{WARNING_SECONDS}",
        **options,
    }
    given = {name: value for name, value in asked.items() if value not in (None, False)}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def requeue_this_task() -> None:
    """Puts the running task back into Slurm's queue: it ran into its time limit and got further."""
    if number := os.environ.get("SLURM_JOB_ID"):
        with contextlib.suppress(QueueSilentError):  # a supervisor, or the next `repro run`, starts another
            _call("scontrol", "requeue", number)


def _call(*words: str) -> str:
    """What one of Slurm's commands prints; QueueSilentError with its last words if it fails."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
            # Ctrl-C is for the supervisor; it must not end what passes it on.
            process_group=0,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueSilentError(f"{words[0]}: {error}") from None
    if done.returncode and done.stderr.strip():
        raise QueueSilentError(done.stderr.strip().splitlines()[-1].split(": error: ", 1)[-1])
    return done.stdout
