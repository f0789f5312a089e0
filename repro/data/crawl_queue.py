"""What a crawl asks for next: one host after the other, none too often, none that has fallen silent.

Knows neither threads nor sockets; the time is handed in.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Manners:
    """How politely, and how long, strangers' servers are asked. Times are in seconds."""

    connections: int = 32
    """At once, over all hosts."""
    per_host: int = 2
    """At once to one host."""
    per_second: float = 40.0
    """Requests begun, over all hosts."""
    host_pause: float = 0.25
    """From the beginning of one request to a host to that of the next."""
    attempts: int = 3
    """For one address, where its faults are passing ones."""
    back_off: float = 2.0
    """The first pause of a host after a passing fault; each following one is twice as long."""
    longest_pause: float = 120.0
    """A host that asks for more is given up."""
    host_attempts: int = 9
    """Faults of a host in a row, whatever the address, after which it is given up; where it cannot even be
    connected to, a third of them."""
    unreachable_pause: float = 30.0
    """Until a host that cannot be connected to is looked at again: it may be this machine's network."""
    unreachable_hosts: int = 40
    """In a row, without contact to any other, that look like having no network."""
    redirects: int = 5


@dataclass
class Task:
    """An address of the list on its way; `url` differs from `address` once it was redirected."""

    address: str
    url: str
    host: str
    attempts: int = 0
    hops: int = 0


@dataclass
class _Host:
    waiting: deque[Task] = field(default_factory=deque)
    active: int = 0
    next_at: float = 0.0
    faults: int = 0
    listed: bool = False
    """Whether it is in the heap."""


class CrawlQueue:
    """Tasks by host. Whoever takes a task gives it back with `settle`, `again` or `move`."""

    def __init__(self, manners: Manners, tasks: Iterable[Task]) -> None:
        self.manners = manners
        self.waiting = 0
        self.active = 0
        self._hosts: dict[str, _Host] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._count = 0
        self._next_at = 0.0
        for task in tasks:
            self._add(task)

    def take(self, now: float) -> Task | None:
        """A task that may begin now; None where none may."""
        if self._next_at > now or self.active >= self.manners.connections:
            return None
        while self._heap and self._heap[0][0] <= now:
            name = heapq.heappop(self._heap)[2]
            host = self._hosts[name]
            host.listed = False
            if not host.waiting or host.active >= self.manners.per_host:
                continue  # listed again when it has room
            if host.next_at > now:
                self._list(name, host)
                continue
            task = host.waiting.popleft()
            task.attempts += 1
            host.active += 1
            host.next_at = now + self.manners.host_pause
            self._next_at = max(now, self._next_at) + 1 / self.manners.per_second
            self.waiting -= 1
            self.active += 1
            self._list(name, host)
            return task
        return None

    def wait(self, now: float) -> float | None:
        """Seconds until `take` may have a task; None where only a task in progress can change that."""
        if not self._heap or self.active >= self.manners.connections:
            return None
        return max(0.0, self._heap[0][0] - now, self._next_at - now)

    @property
    def hosts(self) -> int:
        """How many hosts were ever in the queue."""
        return len(self._hosts)

    def settle(self, task: Task, connected: bool) -> None:
        """`task` is done with; where its host was `connected` to, its row of faults has ended."""
        self._leave(task)
        host = self._hosts[task.host]
        host.faults = 0 if connected else host.faults + self.manners.host_attempts // 3

    def again(self, task: Task, now: float, pause: float | None, connected: bool) -> bool:
        """Note a passing fault, after which the host rests; whether `task` waits for another attempt."""
        self._leave(task)
        host, manners = self._hosts[task.host], self.manners
        host.faults += 1 if connected else manners.host_attempts // 3
        if not connected:
            pause = manners.unreachable_pause
        elif pause is None:
            pause = min(manners.back_off * 2 ** (task.attempts - 1), manners.longest_pause)
        elif pause > manners.longest_pause:
            host.faults = manners.host_attempts
        host.next_at = max(host.next_at, now + pause)
        if task.attempts >= manners.attempts:
            return False
        self._add(task)
        return True

    def is_silent(self, host: str) -> bool:
        """Whether `host` has had too many faults in a row and is to be given up."""
        return self._hosts[host].faults >= self.manners.host_attempts

    def move(self, task: Task, url: str, host: str) -> None:
        """`task` goes on at another address, in the queue of that one's host."""
        self.settle(task, connected=True)
        self._add(Task(task.address, url, host, 0, task.hops + 1))

    def give_up(self, host: str) -> list[Task]:
        """Every task that waits for `host`, taken out."""
        tasks = list(self._hosts[host].waiting)
        self._hosts[host].waiting.clear()
        self.waiting -= len(tasks)
        return tasks

    def _add(self, task: Task) -> None:
        host = self._hosts.setdefault(task.host, _Host())
        host.waiting.append(task)
        self.waiting += 1
        self._list(task.host, host)

    def _leave(self, task: Task) -> None:
        host = self._hosts[task.host]
        host.active -= 1
        self.active -= 1
        self._list(task.host, host)

    def _list(self, name: str, host: _Host) -> None:
        if not host.listed and host.waiting and host.active < self.manners.per_host:
            self._count += 1
            host.listed = True
            heapq.heappush(self._heap, (host.next_at, self._count, name))
