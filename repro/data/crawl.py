"""Download many small files from many strangers' servers: politely, in parallel, and never one twice.

    <folder>/images/ab/abcd…   a picture under its own sha256: no name or address of a list becomes a path
    <folder>/fetched.jsonl     the journal, one line of JSON per address: cause ("found", or why not), detail,
                               sha256 and size of what came

A fault of an address is a result, never an error. Errors are what keeps the crawl from continuing at all:
no network, a full disk. They end it, everything is kept, and the same call resumes.
"""

import asyncio
import io
import itertools
import json
import logging
import shutil
import time
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from repro.data.files import explain_write_failure, file_hash, one_at_a_time, progress
from repro.data.http_get import (
    BadAddressError,
    CrawlPolicy,
    FetchResult,
    connectable_addresses,
    host_of,
    http_get,
)
from repro.errors import FetchError, SetupError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crawled:
    """What there is after a crawl; an address whose picture was there already may have no result."""

    on_disk: frozenset[str]  # sha256 of each picture
    results: Mapping[str, FetchResult]  # by address


def crawl(
    wanted: Mapping[str, frozenset[str]],
    folder: Path,
    policy: CrawlPolicy | None = None,
    retry_failed: bool = False,
) -> Crawled:
    """Request each address in `wanted`, keep what has one of the sha256 wanted of it, and note the rest.

    A settled address is not requested again, unless `retry_failed` and it brought nothing.

    Raises FetchError where there is no network or the folder cannot be written, SetupError where this
    machine is at its limits or httpx is not installed. What was fetched and noted stays, and the same call
    resumes from there.
    """
    with one_at_a_time(folder / ".crawl.lock", "downloading the same pictures"):
        partial = folder / ".partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)  # a killed process's; its lock is ours now
            partial.mkdir(parents=True)
            # Unbuffered: on a full disk closing must have nothing left to write.
            with (
                journal_path(folder).open("ab", buffering=0) as journal,
                progress("fetched", len(wanted), "files") as advance,
            ):
                run = _Crawl(wanted, folder, journal, policy or CrawlPolicy(), advance)
                try:
                    asyncio.run(run.run(retry_failed))
                except KeyboardInterrupt:
                    so_far = f"{run.done:,} of {len(wanted):,} addresses are settled"
                    _log.info("stopped: %s, and the same command resumes from there", so_far)
                    raise
        except OSError as error:
            raise FetchError(explain_write_failure(Path(error.filename or folder), error)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return Crawled(frozenset(run.on_disk), run.results)


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
class _Task:
    """An address of the list on its way; `url` differs from `address` once it was redirected."""

    address: str
    url: str
    attempts: int = 0
    hops: int = 0


@dataclass
class _Host:
    name: str
    waiting: deque[_Task] = field(default_factory=deque)
    workers: int = 0
    faults: int = 0  # in a row
    next_at: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # one of the workers at a time may begin


class _Crawl:
    """The state of one crawl: up to `per_host` coroutines per host, each with one request at a time."""

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
        self.done = 0
        self.active = 0  # requests under way
        self.next_at = 0.0
        self.parts = itertools.count()
        self.gate = asyncio.Lock()
        self.connections = asyncio.Semaphore(policy.connections)
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

    async def run(self, retry_failed: bool) -> None:
        """Settle every address."""
        # Names are resolved in threads: as many as there may be connections.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(self.policy.connections))
        tasks = [_Task(address, address) for address in self.wanted if self._is_due(address, retry_failed)]
        self._count(len(self.wanted) - len(tasks))
        try:
            async with asyncio.TaskGroup() as self.group:
                for task in tasks:
                    self._enqueue(task)
            if self.held:
                await self._check_network()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _is_due(self, address: str, retry_failed: bool) -> bool:
        """Whether an address must be requested."""
        result = self.results.get(address)
        if result and result.cause == "private-address" and self.policy.allow_private_addresses:
            result = None
        if self.wanted[address] <= self.on_disk or (result and not result.found and not retry_failed):
            return False
        if result and result.found and result.sha256 in self.on_disk:
            return False  # one of several pictures that the lists expect there
        if host_of(address) is None:
            self._add(address, FetchResult("not-http", "not an address of http or https"))
            return False
        return True

    def _enqueue(self, task: _Task) -> _Host:
        name = host_of(task.url)
        assert name is not None  # looked at before
        host = self.hosts.setdefault(name, _Host(name))
        host.waiting.append(task)
        if host.workers < min(self.policy.per_host, len(host.waiting)):
            host.workers += 1
            self.group.create_task(self._serve(host))
        return host

    async def _serve(self, host: _Host) -> None:
        """One of a host's workers: a request at a time, until nothing waits for it."""
        while (task := await self._begin(host)) is not None:
            part = self.folder / ".partial" / str(next(self.parts))
            try:
                result = await http_get(task.url, self.wanted[task.address], part, self.policy)
                self._handle(host, task, result, part)
            finally:
                self.active -= 1
                self.connections.release()
                part.unlink(missing_ok=True)
        host.workers -= 1

    async def _begin(self, host: _Host) -> _Task | None:
        """The next task of a host, once it may be requested; None where nothing waits."""
        async with host.turn:
            while host.waiting:
                if (rest := host.next_at - time.monotonic()) > 0:
                    await asyncio.sleep(rest)
                    continue
                await self.connections.acquire()
                await self._wait_for_pace()
                # While this waited, the host may have been given up, or asked for a pause.
                if host.waiting and host.next_at <= time.monotonic():
                    task = host.waiting.popleft()
                    if not self.wanted[task.address] <= self.on_disk:
                        task.attempts += 1
                        self.active += 1
                        host.next_at = time.monotonic() + self.policy.host_pause
                        return task
                    self._count()  # another address had the picture
                self.connections.release()
        return None

    async def _wait_for_pace(self) -> None:
        """Wait until another request may begin: by the rate over all hosts, while there is a network."""
        async with self.gate:
            # So many hosts in a row without an answer: it may be this machine's network.
            while len(self.unreachable) >= max(1, min(self.policy.unreachable_hosts, len(self.hosts))):
                if self.active:  # one of these may still show that there is a network
                    await asyncio.sleep(0.02)
                else:
                    await self._check_network()
            begin = max(time.monotonic(), self.next_at)
            self.next_at = begin + 1 / self.policy.per_second
            await asyncio.sleep(begin - time.monotonic())

    def _handle(self, host: _Host, task: _Task, result: FetchResult, part: Path) -> None:
        """What follows from a result: a note, another attempt, another address, a host given up."""
        policy = self.policy
        if result.contact:
            self._settle_held()
        else:
            self.unreachable[host.name] = result.detail
        weight = policy.host_attempts // 3 if result.cause == "no-connection" or not result.contact else 1
        host.faults = host.faults + weight if result.retry or result.cause == "no-connection" else 0
        if result.found:
            target = picture(self.folder, result.sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
            self.on_disk.add(result.sha256)
        if result.location and task.hops < policy.redirects:
            other = self._enqueue(_Task(task.address, result.location, 0, task.hops + 1))
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
                self._enqueue(task)
            else:
                self._note(task, replace(result, detail=f"{result.detail} ({task.attempts} attempts)"))
        else:
            self._note(task, result)
        if host.faults >= policy.host_attempts:
            self._give_up(host, result)

    def _give_up(self, host: _Host, result: FetchResult) -> None:
        while host.waiting:
            self._note(
                host.waiting.popleft(), replace(result, detail=f"its host was given up: {result.detail}")
            )

    def _note(self, task: _Task, result: FetchResult) -> None:
        if task.url != task.address:
            result = replace(result, detail=f"{result.detail} at {task.url}".strip())
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

    def _count(self, settled: int = 1) -> None:
        self.done += settled
        self.advance(settled)

    def _settle_held(self) -> None:
        """There is a network: what could not be reached is gone."""
        for address, result in self.held:
            self._add(address, result)
        self.held.clear()
        self.unreachable.clear()

    async def _check_network(self) -> None:
        """Raises FetchError unless one of the last three hosts that answered still takes a connection."""
        silent = ("not-http", "no-such-host", "no-connection")
        results = reversed(self.results.items())
        answered = (host_of(address) for address, result in results if result.cause not in silent)
        for host in itertools.islice(dict.fromkeys(filter(None, answered)), 3):
            with suppress(OSError, ValueError, BadAddressError):
                parts = urllib.parse.urlsplit(f"//{host}")
                async with asyncio.timeout(5):
                    addresses = await connectable_addresses(parts.hostname or "", False, self.policy)
                    _, writer = await asyncio.open_connection(addresses[0], parts.port)
                    writer.close()
                self._settle_held()
                return
        host, reason = next(reversed(self.unreachable.items()))
        raise FetchError(
            f"{len(self.unreachable):,} hosts in a row cannot be reached (the last: {host}: {reason}): "
            "is there a network? Nothing was noted as dead for it, and the same command resumes from here"
        )
