"""Download many small files from many strangers' servers: politely, in parallel, and never one twice.

    <folder>/images/ab/abcd…   a picture under its own sha256: no name or address of a list becomes a path
    <folder>/fetched.jsonl     the journal, one line of JSON per address: cause ("found", or why not), detail,
                               sha256 and size of what came

A fault of an address is an outcome, never an error. Errors are what keeps the crawl from continuing at all:
no network, a full disk. They end it, everything is kept, and the same call resumes.
"""

import asyncio
import itertools
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from repro.data.download import Progress
from repro.data.files import explain_write_failure, file_hash, one_at_a_time
from repro.data.http_get import CrawlPolicy, FetchResult, RequestLimits, can_connect, host_of, http_get
from repro.errors import FetchError, SetupError

SYNC_INTERVAL = 1.0  # seconds; what a power cut may cost, a killed process loses nothing

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of an address: "found", or one word for why not, and the words for a report."""

    cause: str
    detail: str = ""
    sha256: str = ""
    size: int = 0

    @property
    def found(self) -> bool:
        """Whether the picture came and is the published one."""
        return self.cause == "found"


@dataclass(frozen=True)
class Crawled:
    """What there is after a crawl; an address whose picture was there already may have no outcome."""

    on_disk: frozenset[str]  # sha256 of each picture
    outcomes: Mapping[str, Outcome]  # by address


def crawl(
    wanted: Mapping[str, frozenset[str]],
    folder: Path,
    *,
    policy: CrawlPolicy | None = None,
    limits: RequestLimits | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Crawled:
    """Request each address in `wanted`, keep what has one of the sha256 wanted of it, and note the rest.

    A settled address is not requested again, unless `retry_failed` and it brought nothing. `progress` counts
    addresses.

    Raises FetchError where there is no network or the folder cannot be written, SetupError where this
    machine is at its limits. What was fetched and noted stays, and the same call resumes from there.
    """
    with one_at_a_time(folder / ".crawl.lock", "downloading the same pictures"):
        partial = folder / ".partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)  # a killed process's; its lock is ours now
            partial.mkdir(parents=True)
            with _Journal(folder) as journal:
                run = _Crawl(
                    wanted, folder, journal, policy or CrawlPolicy(), limits or RequestLimits(), progress
                )
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
        return Crawled(frozenset(run.on_disk), journal.outcomes)


def picture(folder: Path, sha256: str) -> Path:
    """Where the picture with this sha256 lies below a crawl's folder."""
    return folder / "images" / sha256[:2] / sha256


def journal_path(folder: Path) -> Path:
    """Where the journal of a crawl lies."""
    return folder / "fetched.jsonl"


def read_journal(folder: Path) -> dict[str, Outcome]:
    """Address → outcome, as far as the journal in `folder` is whole; empty where there is none.

    Raises SetupError where it cannot be read.
    """
    path = journal_path(folder)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    outcomes = {}
    for line in lines[:-1]:  # after the last line's end there is nothing, or a torn line
        try:
            entry = json.loads(line)
            outcomes[str(entry["address"])] = Outcome(
                str(entry["cause"]), str(entry["detail"]), str(entry["sha256"]), int(entry["size"])
            )
        except (ValueError, KeyError, TypeError):
            continue  # damaged: its address counts as not requested yet
    return outcomes


class _Journal:
    """The outcomes in `folder`; opened, a line that a power cut tore is cut off."""

    def __init__(self, folder: Path) -> None:
        self.outcomes = read_journal(folder)
        # Unbuffered: on a full disk closing must have nothing left to write.
        self._stream = journal_path(folder).open("ab", buffering=0)
        whole = journal_path(folder).read_bytes().rfind(b"\n") + 1
        self._stream.truncate(whole)
        self._synced = time.monotonic()

    def add(self, address: str, outcome: Outcome) -> None:
        """Append one outcome; the last of an address counts."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"address": address, **asdict(outcome), "at": at}, ensure_ascii=False)
        self._stream.write(line.encode() + b"\n")
        if time.monotonic() - self._synced > SYNC_INTERVAL:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()
        self.outcomes[address] = outcome

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with self._stream:
            os.fsync(self._stream.fileno())


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
        journal: _Journal,
        policy: CrawlPolicy,
        limits: RequestLimits,
        progress: Progress | None,
    ) -> None:
        self.wanted, self.folder, self.journal = wanted, folder, journal
        self.policy, self.limits, self.progress = policy, limits, progress
        self.on_disk = self._pictures_on_disk()
        self.hosts: dict[str, _Host] = {}
        self.done = 0
        self.active = 0  # requests under way
        self.next_at = 0.0
        self.parts = itertools.count()
        self.gate = asyncio.Lock()
        self.connections = asyncio.Semaphore(policy.connections)
        # Outcomes that say nothing until something else shows that there is a network.
        self.held: list[tuple[str, Outcome]] = []
        self.unreachable: dict[str, str] = {}

    def _pictures_on_disk(self) -> set[str]:
        """The sha256 of the wanted pictures that are there whole: as long as noted, else with that sha256."""
        wanted = frozenset().union(*self.wanted.values())
        sizes = {outcome.sha256: outcome.size for outcome in self.journal.outcomes.values() if outcome.found}
        found = set()
        for path in (self.folder / "images").glob("[0-9a-f][0-9a-f]/*"):
            if path.name in wanted:
                size = sizes.get(path.name)
                if path.name == file_hash(path, "sha256") if size is None else path.stat().st_size == size:
                    found.add(path.name)
        return found

    async def run(self, retry_failed: bool) -> None:
        """Settle every address."""
        tasks = [task for address in self.wanted if (task := self._task(address, retry_failed))]
        self.done = len(self.wanted) - len(tasks)
        self._count(0)
        try:
            async with asyncio.TaskGroup() as self.group:
                for task in tasks:
                    self._enqueue(task)
            if self.held:
                await self._check_network()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _task(self, address: str, retry_failed: bool) -> _Task | None:
        """What is left to do for an address."""
        outcome = self.journal.outcomes.get(address)
        if outcome and outcome.cause == "private-address" and self.limits.allow_private_addresses:
            outcome = None
        if self.wanted[address] <= self.on_disk or (outcome and not outcome.found and not retry_failed):
            return None
        if outcome and outcome.found and outcome.sha256 in self.on_disk:
            return None  # one of several pictures that the lists expect there
        if host_of(address) is not None:
            return _Task(address, address)
        if outcome is None:
            self.journal.add(address, Outcome("not-http", "not an address of http or https"))
        return None

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
                result = await http_get(task.url, self.wanted[task.address], part, self.limits)
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
            while self._looks_cut_off():
                if self.active:  # one of these may still show that there is a network
                    await asyncio.sleep(0.02)
                else:
                    await self._check_network()
            begin = max(time.monotonic(), self.next_at)
            self.next_at = begin + 1 / self.policy.per_second
            await asyncio.sleep(begin - time.monotonic())

    def _handle(self, host: _Host, task: _Task, result: FetchResult, part: Path) -> None:
        """What follows from a result: an outcome, another attempt, another address, a host given up."""
        policy = self.policy
        if result.contact:
            self._settle_held()
        no_connection = not result.contact or (result.kind == "failed" and result.cause == "no-connection")
        weight = policy.host_attempts // 3 if no_connection else int(result.kind == "retry")
        host.faults = host.faults + weight if weight else 0
        match result.kind:
            case "found":
                target = picture(self.folder, result.sha256)
                target.parent.mkdir(parents=True, exist_ok=True)
                part.replace(target)
                self.on_disk.add(result.sha256)
                self._note(task, result)
            case "redirect" if task.hops >= policy.redirects:
                detail = f"redirected more than {policy.redirects} times"
                self._note(task, FetchResult("failed", "redirect", detail))
            case "redirect":
                other = self._enqueue(_Task(task.address, result.location, 0, task.hops + 1))
                if other.faults >= policy.host_attempts:
                    self._give_up(other, FetchResult("failed", "no-connection", result.detail))
            case "failed":
                self._note(task, result)
            case "retry":
                pause = policy.unreachable_pause if not result.contact else result.pause
                if pause is None:
                    pause = min(policy.back_off * 2 ** (task.attempts - 1), policy.longest_pause)
                elif pause > policy.longest_pause:
                    host.faults = policy.host_attempts
                host.next_at = max(host.next_at, time.monotonic() + pause)
                if task.attempts < policy.attempts:
                    self._enqueue(task)
                else:
                    self._note(task, result)
        if host.faults >= policy.host_attempts:
            self._give_up(host, result)
        if not result.contact:
            self.unreachable[host.name] = result.detail

    def _give_up(self, host: _Host, result: FetchResult) -> None:
        detail = f"its host was given up: {result.detail}"
        while host.waiting:
            task = host.waiting.popleft()
            self._note(task, FetchResult("failed", result.cause, detail, contact=result.contact))

    def _note(self, task: _Task, result: FetchResult) -> None:
        detail = result.detail
        if result.kind == "retry":
            detail += f" ({task.attempts} attempts)"
        if task.url != task.address:
            detail = f"{detail} at {task.url}".strip()
        outcome = Outcome(result.cause, detail, result.sha256, result.size)
        if result.contact:
            self.journal.add(task.address, outcome)
        else:
            self.held.append((task.address, outcome))
        self._count()

    def _count(self, settled: int = 1) -> None:
        self.done += settled
        if self.progress is not None:
            self.progress(self.done, len(self.wanted), "files")

    def _settle_held(self) -> None:
        """There is a network: what could not be reached is gone."""
        for address, outcome in self.held:
            self.journal.add(address, outcome)
        self.held.clear()
        self.unreachable.clear()

    def _looks_cut_off(self) -> bool:
        """Whether so many hosts in a row could not be reached that it may be this machine's network."""
        return len(self.unreachable) >= max(1, min(self.policy.unreachable_hosts, len(self.hosts)))

    async def _check_network(self) -> None:
        if not await self._reaches_a_known_host():
            host, reason = next(reversed(self.unreachable.items()))
            raise FetchError(
                f"{len(self.unreachable):,} hosts in a row cannot be reached (the last: {host}: {reason}): "
                "is there a network? Nothing was noted as dead for it, and the same command resumes from here"
            )
        self._settle_held()

    async def _reaches_a_known_host(self) -> bool:
        """Whether one of the last three hosts that answered still takes a connection."""
        silent = ("not-http", "no-such-host", "no-connection")
        outcomes = reversed(self.journal.outcomes.items())
        answered = (host_of(address) for address, outcome in outcomes if outcome.cause not in silent)
        hosts = dict.fromkeys(host for host in answered if host is not None)
        for host in itertools.islice(hosts, 3):
            if await can_connect(host, self.limits):
                return True
        return False
