"""Workers on a Ray cluster: an actor a job, which only launches the command and says how it ended.

Retries are the scheduler's, not Ray's: an actor is never restarted. Ray's GPU fractions are bookkeeping; they
keep runs apart no more than `--per-gpu` does.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repro.commit import make_folder
from repro.errors import RunInterruptedError, SetupError
from repro.scheduling.executors.base import Ending, Executor, Job
from repro.scheduling.executors.local import LocalExecutor

_KILLED = -9
_POLL = 0.2
_LOST = Ending("Ray lost its job: its node or its process died", blameless=True)
WAITING_LONG = 20.0
"""Seconds after which the user is told that a job has found no room yet."""


@dataclass(frozen=True)
class RayRequest:
    """What every job asks of Ray: cores, and GPUs or a fraction of one."""

    cores: int = 1
    gpus: float = 0.0


@dataclass
class _Placed:
    """A job with its actor: `end` will hold the exit code, `begun` the name of the node once it has one."""

    job: Job
    actor: Any
    begun: Any
    end: Any
    since: float
    node: str | None = None
    told: bool = False


class NodeSide:
    """The actor: runs one job as a process of its node, which dies with it."""

    def __init__(self) -> None:
        self._local = LocalExecutor()
        self._words = {
            "drain": self._local.drain,
            "terminate": self._local.terminate,
            "kill": self._local.kill,
        }

    def begin(self, job: Job) -> str:
        """Starts the worker; the node's name."""
        import ray

        self._local.submit(job)
        return str(ray.util.get_node_ip_address())

    def wait(self, job: Job) -> int:
        """The worker's exit code, once it has ended."""
        while (code := self._local.poll(job)) is None:
            time.sleep(_POLL)
        return code

    def ask(self, word: str, job: Job) -> None:
        """Passes one of the executor's words on."""
        self._words[word](job)


class RayExecutor(Executor):
    """One actor a job, with the cores and the part of a GPU that `request` says.

    `address` is the cluster's, as in `auto` or `10.0.0.1:6379`. Raises SetupError where Ray is not installed
    or no cluster answers. If this process dies, Ray ends its actors, and they their workers.
    """

    def __init__(self, request: RayRequest, address: str = "auto") -> None:
        self._ray = _connect(address)
        self._actor = self._ray.remote(NodeSide).options(
            num_cpus=request.cores,
            num_gpus=request.gpus,
            max_restarts=0,
            max_task_retries=0,
            # One thread waits for the worker while another passes words on.
            max_concurrency=2,
        )
        self._request = request
        self._placed: dict[int, _Placed] = {}
        self._codes: dict[int, int] = {}
        self._endings: dict[int, Ending] = {}
        self._news: list[str] = []

    def room(self) -> int:
        """How many jobs the cluster can hold at once, were it empty; 0 if it cannot hold one."""
        total = self._ray.cluster_resources()
        by_core = int(total.get("CPU", 0) / self._request.cores)
        if not self._request.gpus:
            return by_core
        return min(by_core, int(total.get("GPU", 0) / self._request.gpus))

    def submit(self, job: Job) -> None:
        """Asks Ray for an actor; the job begins where and when there is room."""
        make_folder(job.log.parent)
        actor = self._actor.remote()
        begun = actor.begin.remote(job)
        self._placed[job.number] = _Placed(job, actor, begun, None, time.monotonic())

    def poll(self, job: Job) -> int | None:
        """The worker's exit code; a lost actor counts as a kill."""
        placed = self._placed.get(job.number)
        if placed is None:
            return self._codes[job.number]
        try:
            if placed.node is None:
                if not self._ready(placed.begun):
                    self._wait_for_room(placed)
                    return None
                placed.node = self._ray.get(placed.begun)
                placed.end = placed.actor.wait.remote(job)
            if self._ready(placed.end):
                self._close(placed, self._ray.get(placed.end))
        except self._ray.exceptions.RayActorError:
            # Perhaps only out of reach: what is started again elsewhere must not go on there.
            self._ray.kill(placed.actor)
            if placed.node:
                self._news.append(f"Ray lost the job of {placed.job.runs[0]} on node {placed.node}")
            self._close(placed, _KILLED, _LOST)
        except self._ray.exceptions.RayTaskError as error:
            # The node's side met an error of its own: the program or the log's folder is not there.
            self._close(
                placed, SetupError.exit_code, Ending(_first_line(error.cause or error), blameless=False)
            )
        return self._codes.get(job.number)

    def drain(self, job: Job) -> None:
        """The node's side passes it on; a job without a node is withdrawn."""
        self._ask(job, "drain")

    def terminate(self, job: Job) -> None:
        """The node's side passes it on; a job without a node is withdrawn."""
        self._ask(job, "terminate")

    def kill(self, job: Job) -> None:
        """Kills the worker's session through the node's side, and then that."""
        self._ask(job, "kill")

    def ending(self, job: Job) -> Ending | None:
        """What Ray says of an actor that was lost."""
        return self._endings.get(job.number)

    def news(self) -> Sequence[str]:
        """Jobs that have waited long for room, once each."""
        news, self._news = self._news, []
        return news

    def _ask(self, job: Job, word: str) -> None:
        placed = self._placed.get(job.number)
        if placed is None:
            return
        if placed.node is None and not self._ready(placed.begun):
            self._ray.kill(placed.actor)
            self._close(placed, RunInterruptedError.exit_code)
        else:
            placed.actor.ask.remote(word, job)

    def _close(self, placed: _Placed, code: int, ending: Ending | None = None) -> None:
        number = placed.job.number
        self._codes[number] = code
        if ending:
            self._endings[number] = ending
        # The actor's handle goes with the entry: without one Ray gives its place to the next.
        del self._placed[number]

    def _ready(self, reference: Any) -> bool:
        ready, _ = self._ray.wait([reference], timeout=0)
        return bool(ready)

    def _wait_for_room(self, placed: _Placed) -> None:
        if placed.told or time.monotonic() - placed.since < WAITING_LONG:
            return
        placed.told = True
        asked = f"{self._request.cores} CPU" + (
            f" and {self._request.gpus:g} GPU" if self._request.gpus else ""
        )
        free = _resources(self._ray.available_resources())
        self._news.append(f"a job waits for a node with {asked} free; free in all of the cluster: {free}")


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise SetupError("--executor ray needs Ray: pip install '.[ray]'") from None
    if ray.is_initialized():
        return ray
    try:
        _knock(address)
        # Its own log lines would disturb the progress on stderr; a worker's output is in the worker's log.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise SetupError(
            f"no Ray cluster answers at {address} ({_first_line(error)}): `ray start --head` starts one, "
            "--ray-address names another"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Raises OSError if nothing listens at `host:port`: Ray itself would go on asking for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10):
            pass


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _resources(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
