"""Download many small files from many strangers' servers: politely, in parallel, and never one twice.

    <folder>/images/ab/abcd…   a picture under its own sha256: no name or address of a list becomes a path
    <folder>/fetched.jsonl     the journal, one line of JSON per address: cause ("found", or why not), detail,
                               sha256 and size of what came

A fault of an address is a result, never an error. Errors are what keeps the crawl from continuing at all:
no network, a full disk. They end it, everything is kept, and the same call resumes.
"""

import io
import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from heapq import heappop, heappush
from pathlib import Path
from queue import Empty, SimpleQueue

from repro.data.files import explain_write_failure, file_hash, one_at_a_time, progress
from repro.data.http_get import CrawlPolicy, FetchResult, can_connect, host_of, http_get, plain
from repro.errors import FetchError, SetupError
from repro.storage import make_folder, write_whole

_log = logging.getLogger(__name__)


def crawl(
    wanted: Mapping[str, frozenset[str]],
    folder: Path,
    policy: CrawlPolicy,
    retry_failed: bool = False,
) -> tuple[frozenset[str], Mapping[str, FetchResult]]:
    """Request each address in `wanted`, keep what has one of the sha256 wanted of it, and note the rest.

    Returns the sha256 of each picture on disk, and the results by address; one whose picture was there
    already may have none.

    A settled address is not requested again, unless `retry_failed` and it brought nothing.

    Raises FetchError where there is no network or the folder cannot be written, SetupError where this
    machine is at its limits. What was fetched and noted stays, and the same call resumes from there.
    """
    with one_at_a_time(folder / ".crawl.lock", "downloading the same pictures"):
        try:
            # Unbuffered: on a full disk closing must have nothing left to write.
            with (
                journal_path(folder).open("ab", buffering=0) as journal,
                progress("fetched", len(wanted), "files") as advance,
            ):
                run = _Crawl(wanted, folder, journal, policy, advance)
                try:
                    run.run(retry_failed)
                except KeyboardInterrupt:
                    so_far = f"{run.done:,} of {len(wanted):,} addresses are settled"
                    _log.info("stopped: %s, and the same command resumes from there", so_far)
                    raise
        except OSError as error:
            raise FetchError(explain_write_failure(Path(error.filename or folder), error)) from error
        return frozenset(run.on_disk), run.results


def picture(folder: Path, sha256: str) -> Path:
    """Where the picture with this sha256 lies below a crawl's folder."""
    return folder / "images" / sha256[:2] / sha256


def journal_path(folder: Path) -> Path:
    """Where the journal of a crawl lies."""
    return folder / "fetched.jsonl"


def read_journal(folder: Path) -> dict[str, FetchResult]:
    """Address → result, as far as the journal in `folder` is whole; empty where there is none.

    Raises SetupError where it cannot be read.
    """
    path = journal_path(folder)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    results = {}
    for line in lines[:-1]:  # after the last line's end there is nothing, or a torn line
        with suppress(ValueError, KeyError, TypeError):  # damaged: its address counts as not requested yet
            entry = json.loads(line)
            cause, detail, sha256 = (str(entry[key]) for key in ("cause", "detail", "sha256"))
            results[str(entry["address"])] = FetchResult(cause, detail, sha256, int(entry["size"]))
    return results


@dataclass
class _Host:
    name: str
    waiting: "deque[_Task]" = field(default_factory=deque)
    active: int = 0  # requests under way
    queued: bool = False  # whether it is in the crawl's queue
    faults: int = 0  # in a row
    next_at: float = 0.0


@dataclass
class _Task:
    """An address of the list on its way; `url`, at `host`, differs from `address` once it was redirected."""

    address: str
    url: str
    host: _Host
    attempts: int = 0
    hops: int = 0


class _Crawl:
    """The state of one crawl, all of it in the crawl's own thread; each request has a thread to wait in."""

    def __init__(
        self,
        wanted: Mapping[str, frozenset[str]],
        folder: Path,
        journal: io.FileIO,
        policy: CrawlPolicy,
        advance: Callable[[int], object],
    ) -> None:
        self.wanted, self.folder, self.journal = wanted, folder, journal
        self.policy, self.advance = policy, advance
        self.results = read_journal(folder)
        journal.truncate(journal_path(folder).read_bytes().rfind(b"\n") + 1)  # a line that a power cut tore
        self.on_disk = self._pictures_on_disk()
        self.hosts: dict[str, _Host] = {}
        self.queue: list[tuple[float, int, _Host]] = []  # hosts by when they may be asked next
        self.numbers = itertools.count()
        self.answers: SimpleQueue[tuple[_Task, FetchResult | Exception]] = SimpleQueue()
        self.done = 0
        self.active = 0  # requests under way
        self.next_at = 0.0
        # Results that say nothing until something else shows that there is a network.
        self.held: list[tuple[str, FetchResult]] = []
        self.unreachable: dict[str, str] = {}

    def _pictures_on_disk(self) -> set[str]:
        """The sha256 of the wanted pictures that are there whole: as long as noted, else with that sha256."""
        wanted = frozenset().union(*self.wanted.values())
        sizes = {result.sha256: result.size for result in self.results.values() if result.found}
        found = set()
        for path in (self.folder / "images").glob("[0-9a-f][0-9a-f]/*"):
            if path.name in wanted:
                size = sizes.get(path.name)
                if path.name == file_hash(path, "sha256") if size is None else path.stat().st_size == size:
                    found.add(path.name)
        return found

    def run(self, retry_failed: bool) -> None:
        """Settle every address."""
        for address in self.wanted:
            if not self._is_due(address, retry_failed):
                self._count()
            elif host_of(address) is None:
                self._add(address, FetchResult("not-http", "not an address of http or https"))
                self._count()
            else:
                self._enqueue(address, address)
        while self.done < len(self.wanted):
            pause = self._begin_requests()
            if self.done < len(self.wanted):
                with suppress(Empty):
                    task, result = self.answers.get(timeout=pause)
                    if isinstance(result, Exception):
                        raise result
                    self._handle(task, result)
        if self.held:
            self._check_network()

    def _is_due(self, address: str, retry_failed: bool) -> bool:
        """Whether an address must be requested."""
        result = self.results.get(address)
        if result and result.cause == "private-address" and self.policy.allow_private_addresses:
            result = None
        if self.wanted[address] <= self.on_disk or (result and not result.found and not retry_failed):
            return False
        # One of several pictures that the lists expect there may have come.
        return not (result and result.found and result.sha256 in self.on_disk)

    def _enqueue(self, address: str, url: str, hops: int = 0) -> _Host:
        name = host_of(url)
        assert name is not None  # looked at before
        host = self.hosts.setdefault(name, _Host(name))
        host.waiting.append(_Task(address, url, host, hops=hops))
        self._queue(host)
        return host

    def _queue(self, host: _Host) -> None:
        if host.waiting and not host.queued and host.active < self.policy.per_host:
            host.queued = True
            heappush(self.queue, (host.next_at, next(self.numbers), host))

    def _begin_requests(self) -> float | None:
        """Begin those that may begin; the seconds until another may, None where an answer comes first."""
        policy = self.policy
        while self.active < policy.connections:
            if len(self.unreachable) >= max(1, min(policy.unreachable_hosts, len(self.hosts))):
                # So many hosts in a row without an answer: it may be this machine's network.
                if self.active:  # one of these may still show that there is one
                    return None
                self._check_network()
            if not self.queue:
                return None
            now = time.monotonic()
            if (pause := max(self.queue[0][0], self.next_at) - now) > 0:
                return pause
            host = heappop(self.queue)[2]
            host.queued = False
            if host.waiting and host.next_at <= now:  # neither given up nor asked for a pause since
                task = host.waiting.popleft()
                if self.wanted[task.address] <= self.on_disk:
                    self._count()  # another address had the picture
                else:
                    task.attempts += 1
                    host.active += 1
                    self.active += 1
                    host.next_at = now + policy.host_pause
                    self.next_at = max(now, self.next_at) + 1 / policy.per_second
                    # A daemon: nobody who presses Ctrl-C waits for a server.
                    threading.Thread(target=self._request, args=(task,), daemon=True).start()
            self._queue(host)
        return None

    def _request(self, task: _Task) -> None:
        try:
            self.answers.put((task, http_get(task.url, self.wanted[task.address], self.policy)))
        except Exception as error:  # noqa: BLE001 whatever it is, it is raised in the crawl's own thread
            self.answers.put((task, error))

    def _handle(self, task: _Task, result: FetchResult) -> None:
        """What follows from a result: a note, another attempt, another address, a host given up."""
        policy, host = self.policy, task.host
        host.active -= 1
        self.active -= 1
        if result.contact:
            self._settle_held()
        else:
            self.unreachable[host.name] = result.detail
        weight = policy.host_attempts // 3 if result.cause == "no-connection" or not result.contact else 1
        host.faults = host.faults + weight if result.retry or result.cause == "no-connection" else 0
        if result.found:
            target = picture(self.folder, result.sha256)
            make_folder(target.parent)
            write_whole(target, result.content, durable=False)  # a torn one is fetched again
            self.on_disk.add(result.sha256)
        if result.location and task.hops < policy.redirects:
            other = self._enqueue(task.address, result.location, task.hops + 1)
            if other.faults >= policy.host_attempts:
                self._give_up(other, FetchResult("no-connection", result.detail))
        elif result.location:
            self._note(task, FetchResult("redirect", f"redirected more than {policy.redirects} times"))
        elif result.retry:
            pause = policy.unreachable_pause if not result.contact else result.pause
            if pause is None:
                pause = min(policy.back_off * 2 ** (task.attempts - 1), policy.longest_pause)
            elif pause > policy.longest_pause:
                host.faults = policy.host_attempts
            host.next_at = max(host.next_at, time.monotonic() + pause)
            if task.attempts < policy.attempts:
                host.waiting.append(task)
            else:
                self._note(task, replace(result, detail=f"{result.detail} ({task.attempts} attempts)"))
        else:
            self._note(task, result)
        if host.faults >= policy.host_attempts:
            self._give_up(host, result)
        self._queue(host)

    def _give_up(self, host: _Host, result: FetchResult) -> None:
        while host.waiting:
            self._note(
                host.waiting.popleft(), replace(result, detail=f"its host was given up: {result.detail}")
            )

    def _note(self, task: _Task, result: FetchResult) -> None:
        if task.url != task.address:
            result = replace(result, detail=f"{result.detail} at {plain(task.url)}".strip())
        if result.contact:
            self._add(task.address, result)
        else:
            self.held.append((task.address, result))
        self._count()

    def _add(self, address: str, result: FetchResult) -> None:
        """Note a result in the journal; the last of an address counts."""
        kept = {key: getattr(result, key) for key in ("cause", "detail", "sha256", "size")}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"address": address, **kept, "at": at}, ensure_ascii=False)
        self.journal.write(line.encode() + b"\n")
        self.results[address] = FetchResult(**kept)

    def _count(self) -> None:
        self.done += 1
        self.advance(1)

    def _settle_held(self) -> None:
        """There is a network: what could not be reached is gone."""
        for address, result in self.held:
            self._add(address, result)
        self.held.clear()
        self.unreachable.clear()

    def _check_network(self) -> None:
        """Raises FetchError unless one of the last three hosts that answered still takes a connection."""
        silent = ("not-http", "no-such-host", "no-connection")
        results = reversed(self.results.items())
        answered = (host_of(address) for address, result in results if result.cause not in silent)
        for host in itertools.islice(dict.fromkeys(filter(None, answered)), 3):
            if can_connect(host, not self.policy.allow_private_addresses):
                self._settle_held()
                return
        host, reason = next(reversed(self.unreachable.items()))
        raise FetchError(
            f"{len(self.unreachable):,} hosts in a row cannot be reached (the last: {host}: {reason}): "
            "is there a network? Nothing was noted as dead for it, and the same command resumes from here"
        )
