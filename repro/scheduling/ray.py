"""Workers on a Ray cluster: an actor per worker starts it as a process, and is never restarted."""

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import SetupError
from repro.scheduling.executor import Executor, JobEnd, LocalExecutor, WorkerJob
from repro.storage import make_folder
from repro.sweep import StopRequest

WAITING_LONG = 30.0  # seconds without room after which the user is told


class NodeProcess:
    """The actor: one worker as a process of its node, which dies with it."""

    def __init__(self) -> None:
        self._local = LocalExecutor()

    def run(self, job: WorkerJob, folder: str, environment: dict[str, str]) -> JobEnd:
        """Starts the worker in the supervisor's folder, by which it finds the project; how it ended, once it
        has."""
        os.chdir(folder)
        os.environ.update(environment)
        self._local.start([job])
        while (end := self._local.poll(job)) is None:
            time.sleep(0.2)
        return end

    def kill(self, job: WorkerJob) -> None:
        """Ends the worker at once."""
        self._local.kill(job)


@dataclass
class _Placed:
    """A job's actor, and Ray's references: `ready` to its having a node, `ended` to how its worker ended."""

    actor: Any
    ready: Any
    ended: Any
    since: float
    end: JobEnd | None = None


class RayExecutor(Executor):
    """One actor per job, with so many CPU cores, and so many GPUs or a part of one.

    `address` is the cluster's, as in `auto` or `10.0.0.1:6379`. Raises SetupError where Ray is not installed
    or no cluster answers. If this process dies, Ray ends its actors, and they their workers.
    """

    def __init__(self, cores: int, gpus: float, address: str) -> None:
        super().__init__()
        self._ray = _connect(address)
        self._cores, self._gpus = cores, gpus
        self._actor = self._ray.remote(NodeProcess).options(
            num_cpus=cores,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,  # one thread waits for the worker while another can kill it
            # At an actor's end Ray would kill the worker at once, without time for its checkpoints.
            runtime_env={"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}},
        )
        self._placed: dict[str, _Placed] = {}

    def capacity(self) -> int:
        """How many workers the cluster can hold at once, were it empty; 0 if it cannot hold one."""
        total = self._ray.cluster_resources()
        by_core = int(total.get("CPU", 0) / self._cores)
        return min(by_core, int(total.get("GPU", 0) / self._gpus)) if self._gpus else by_core

    def start(self, jobs: Sequence[WorkerJob]) -> None:
        """Asks Ray for an actor each; a worker begins where and when there is room."""
        for job in jobs:
            make_folder(job.log.parent)
            actor = self._actor.remote()
            named = {name: value for name, value in os.environ.items() if name.startswith("REPRO_")}
            ready, ended = actor.__ray_ready__.remote(), actor.run.remote(job, str(Path.cwd()), named)
            self._placed[job.name] = _Placed(actor, ready, ended, time.monotonic())

    def poll(self, job: WorkerJob) -> JobEnd | None:
        """How the worker ended; a lost actor is a lost node."""
        placed = self._placed[job.name]
        if placed.end is None and self._is_there(placed.ended):
            try:
                placed.end = self._ray.get(placed.ended)
            except self._ray.exceptions.RayActorError:
                # Perhaps only out of reach: what is started again elsewhere must not continue there.
                self._ray.kill(placed.actor)
                placed.end = JobEnd(None, "Ray lost its node", blameless=True)
            except self._ray.exceptions.RayTaskError as error:
                # The node met an error of its own: the program or the log's folder is not there.
                self.say(str(error.cause or error))
                placed.end = JobEnd(SetupError.exit_code)
            placed.actor = None  # without a handle Ray gives its place to the next
        elif self.waits(job) and time.monotonic() - placed.since > WAITING_LONG:
            placed.since = float("inf")
            asked = f"{self._cores} CPU" + (f" and {self._gpus:g} GPU" if self._gpus else "")
            self.say(f"a worker waits for a node with {asked} free")
        return placed.end

    def waits(self, job: WorkerJob) -> bool:
        """Whether no node has had room for the worker yet."""
        placed = self._placed[job.name]
        return placed.end is None and not self._is_there(placed.ready)

    def stop(self, job: WorkerJob, urgency: StopRequest) -> None:
        """Withdraws a worker that has no node yet; others read the sweep's stop file."""
        if self.waits(job):
            placed = self._placed[job.name]
            self._ray.kill(placed.actor)
            placed.end, placed.actor = JobEnd(0), None

    def kill(self, job: WorkerJob) -> None:
        """Kills the worker's session on its node."""
        if (actor := self._placed[job.name].actor) is not None:
            actor.kill.remote(job)

    def _is_there(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise SetupError("--executor ray needs Ray: pip install '.[ray]'") from None
    try:
        where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
        host, colon, port = where.removeprefix("ray://").rpartition(":")
        if colon and port.isdecimal():
            # Where nothing listens, Ray itself would go on asking for minutes.
            socket.create_connection((host, int(port)), timeout=10).close()
        # Its own log lines would disturb the progress on stderr; a worker's output is in the worker's log.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise SetupError(
            f"no Ray cluster answers at {address} ({error}): `ray start --head` starts one, "
            "--ray-address names another"
        ) from None
    return ray
