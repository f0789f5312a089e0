"""Workers on a Ray cluster: one actor per worker, which starts it as a process and says how it ended.

Retries are the supervisor's, not Ray's: an actor is never restarted.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repro.errors import SetupError
from repro.scheduling.executors.base import Executor, JobEnd, Urgency, WorkerJob
from repro.scheduling.executors.local import LocalExecutor
from repro.storage import make_folder

WAITING_LONG = 30.0  # seconds without room after which the user is told

_POLL = 0.2  # seconds between two looks of an actor at its process


@dataclass(frozen=True)
class RayRequest:
    """What each worker asks of Ray: CPU cores, and GPUs or a part of one."""

    cores: int = 1
    gpus: float = 0.0


class NodeProcess:
    """The actor: one worker as a process of its node, which dies with it."""

    def __init__(self) -> None:
        self._local = LocalExecutor()

    def begin(self, job: WorkerJob) -> None:
        """Starts the worker."""
        self._local.start([job])

    def wait(self, job: WorkerJob) -> JobEnd:
        """How the worker ended, once it has."""
        while (end := self._local.poll(job)) is None:
            time.sleep(_POLL)
        return end

    def kill(self, job: WorkerJob) -> None:
        """Ends the worker at once."""
        self._local.kill(job)


@dataclass
class _Placed:
    """A job with its actor; `begun` and `end` are Ray's references to what its methods return."""

    actor: Any
    begun: Any
    since: float
    end: Any = None


class RayExecutor(Executor):
    """One actor per job, with the cores and the part of a GPU that `request` says.

    `address` is the cluster's, as in `auto` or `10.0.0.1:6379`. Raises SetupError where Ray is not installed
    or no cluster answers. If this process dies, Ray ends its actors, and they their workers.
    """

    def __init__(self, request: RayRequest, address: str = "auto") -> None:
        self._ray = _connect(address)
        self._actor = self._ray.remote(NodeProcess).options(
            num_cpus=request.cores,
            num_gpus=request.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,  # one thread waits for the worker while another can kill it
        )
        self._request = request
        self._placed: dict[str, _Placed] = {}
        self._ends: dict[str, JobEnd] = {}
        self._messages: list[str] = []

    def capacity(self) -> int:
        """How many workers the cluster can hold at once, were it empty; 0 if it cannot hold one."""
        total = self._ray.cluster_resources()
        by_core = int(total.get("CPU", 0) / self._request.cores)
        return min(by_core, int(total.get("GPU", 0) / self._request.gpus)) if self._request.gpus else by_core

    def start(self, jobs: Sequence[WorkerJob]) -> None:
        """Asks Ray for an actor each; a worker begins where and when there is room."""
        for job in jobs:
            make_folder(job.log.parent)
            actor = self._actor.remote()
            self._placed[job.name] = _Placed(actor, actor.begin.remote(job), time.monotonic())

    def poll(self, job: WorkerJob) -> JobEnd | None:
        """How the worker ended; a lost actor is a lost node."""
        placed = self._placed.get(job.name)
        if placed is None:
            return self._ends[job.name]
        try:
            if placed.end is None:
                if not self._is_ready(placed.begun):
                    self._say_if_waiting_long(placed)
                    return None
                self._ray.get(placed.begun)
                placed.end = placed.actor.wait.remote(job)
            if self._is_ready(placed.end):
                self._close(job, self._ray.get(placed.end))
        except self._ray.exceptions.RayActorError:
            # Perhaps only out of reach: what is started again elsewhere must not continue there.
            self._ray.kill(placed.actor)
            self._close(job, JobEnd(None, "Ray lost its node", blameless=True))
        except self._ray.exceptions.RayTaskError as error:
            # The node met an error of its own: the program or the log's folder is not there.
            self._messages.append(_first_line(error.cause or error))
            self._close(job, JobEnd(SetupError.exit_code))
        return self._ends.get(job.name)

    def stop(self, job: WorkerJob, urgency: Urgency) -> None:
        """Withdraws a worker that has no node yet; others read the sweep's stop file."""
        placed = self._placed.get(job.name)
        if placed and placed.end is None and not self._is_ready(placed.begun):
            self._ray.kill(placed.actor)
            self._close(job, JobEnd(0))

    def kill(self, job: WorkerJob) -> None:
        """Kills the worker's session on its node."""
        if placed := self._placed.get(job.name):
            placed.actor.kill.remote(job)

    def messages(self) -> Sequence[str]:
        """Workers that have waited long for room, once each."""
        messages, self._messages = self._messages, []
        return messages

    def _close(self, job: WorkerJob, end: JobEnd) -> None:
        self._ends[job.name] = end
        # The actor's handle goes with the entry: without one Ray gives its place to the next.
        del self._placed[job.name]

    def _is_ready(self, reference: Any) -> bool:
        ready, _ = self._ray.wait([reference], timeout=0)
        return bool(ready)

    def _say_if_waiting_long(self, placed: _Placed) -> None:
        if time.monotonic() - placed.since < WAITING_LONG:
            return
        placed.since = float("inf")
        asked = f"{self._request.cores} CPU" + (
            f" and {self._request.gpus:g} GPU" if self._request.gpus else ""
        )
        free = _resources(self._ray.available_resources())
        self._messages.append(
            f"a worker waits for a node with {asked} free; free in the whole cluster: {free}"
        )


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise SetupError("--executor ray needs Ray: pip install '.[ray]'") from None
    if ray.is_initialized():
        return ray
    try:
        _check_reachable(address)
        # Its own log lines would disturb the progress on stderr; a worker's output is in the worker's log.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise SetupError(
            f"no Ray cluster answers at {address} ({_first_line(error)}): `ray start --head` starts one, "
            "--ray-address names another"
        ) from None
    return ray


def _check_reachable(address: str) -> None:
    """Raises OSError if nothing listens at `host:port`: Ray itself would go on asking for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10):
            return


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _resources(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
