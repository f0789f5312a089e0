"""Workers as processes of this machine."""

import os
import signal
import subprocess

from repro.commit import make_folder, refusal
from repro.scheduling.executors.base import Executor, Job
from repro.scheduling.guardian import guarded_environment


class LocalExecutor(Executor):
    """One process a job, in a session of its own so that the terminal's Ctrl-C reaches only the scheduler.

    A worker is told whose death it must not survive, and a guardian sees to it.
    """

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def submit(self, job: Job) -> None:
        """Starts the process; SetupError names the program or the log that stood in the way."""
        environment = {
            **os.environ,
            **job.environment,
            **guarded_environment(os.getpid()),
            # A killed worker takes its buffers along; its last words are what the summary quotes.
            "PYTHONUNBUFFERED": "1",
        }
        make_folder(job.log.parent)
        try:
            with job.log.open("ab") as log:
                self._processes[job.number] = subprocess.Popen(
                    job.argv,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise refusal(f"cannot start {job.argv[0]} with its log at {job.log}", error) from None

    def poll(self, job: Job) -> int | None:
        """The exit code once the process has ended; whatever else lived in its session is killed then."""
        process = self._processes[job.number]
        if process.returncode is None:
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            # Not reaped yet: until then no other process group can get this number.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode

    def drain(self, job: Job) -> None:
        """SIGUSR2 to the worker alone: its children have no handler and would die of it."""
        self._signal_worker(job, signal.SIGUSR2)

    def terminate(self, job: Job) -> None:
        """SIGTERM to the worker alone; it ends its children itself."""
        self._signal_worker(job, signal.SIGTERM)

    def kill(self, job: Job) -> None:
        """SIGKILL to the worker's whole session."""
        process = self._processes[job.number]
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)

    def _signal_worker(self, job: Job, number: signal.Signals) -> None:
        process = self._processes[job.number]
        # Not Popen.send_signal: it reaps a process that has ended, and `poll` needs it unreaped.
        if process.returncode is None:
            os.kill(process.pid, number)
