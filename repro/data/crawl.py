"""Download many small files from many strangers' servers: politely, in parallel, and never one twice.

    <folder>/images/ab/abcd…   a picture under its own sha256: no name or address of a list becomes a path
    <folder>/fetched.jsonl     the journal, one line of JSON per address: cause ("found", or why not), detail,
                               sha256 and size of what came

A fault of an address is a result, never an error. Errors are what keeps the crawl from continuing at all:
no network, a full disk. They end it, everything is kept, and the same call resumes.

A name is resolved here, every address is checked, and the request goes to that very address: neither a name,
nor one that resolves differently a moment later, nor a redirect leads to this machine or its network. Where
a proxy is set, it resolves the names: then only hosts written as numbers can be checked here.
"""

import asyncio
import email.utils
import errno
import hashlib
import io
import ipaddress
import itertools
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from repro.data.files import explain_write_failure, file_hash, one_at_a_time
from repro.data.progress import progress
from repro.errors import FetchError, SetupError

if TYPE_CHECKING:
    import httpx

HEADERS = {
    "User-Agent": "scaled-bn-repro",
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
OUR_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # say nothing of a host
MOST_ADDRESSES = 4  # of one name, tried one after another

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrawlPolicy:
    """How politely, and how long, strangers' servers are asked; times in seconds."""

    connections: int = 32  # at once, over all hosts
    per_host: int = 2  # at once to one host
    per_second: float = 40.0  # requests begun, over all hosts
    host_pause: float = 0.25  # from the beginning of one request to a host to that of the next
    attempts: int = 3  # for one address, where its faults are temporary
    back_off: float = 2.0  # first pause of a host after a temporary fault; it doubles with each attempt
    longest_pause: float = 120.0  # a host that asks for more is given up
    host_attempts: int = 9  # faults in a row until a host is given up; one without a connection counts 3
    unreachable_pause: float = 30.0  # after a failed connection: it may be this machine's network
    unreachable_hosts: int = 40  # in a row, with no contact to any other, that look like having no network
    redirects: int = 5
    timeout: float = 20.0  # of a request, without a byte
    longest: float = 120.0  # of a request, in all
    max_bytes: int = 32 << 20
    allow_private_addresses: bool = False  # whether this machine and private networks may be connected to


@dataclass(frozen=True)
class FetchResult:
    """What came of a request; the first four fields are what the journal keeps of an address."""

    cause: str  # "found", or one word for why not, for counting
    detail: str = ""  # the words for a report
    sha256: str = ""
    size: int = 0
    retry: bool = False  # whether the fault may be temporary
    location: str = ""  # where a redirect leads
    pause: float | None = None  # seconds that the server asked to be left alone
    contact: bool = True  # whether anything answered, be it a refusal: then there is a network

    @property
    def found(self) -> bool:
        """Whether the picture came and is the published one."""
        return self.cause == "found"


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
            with suppress(OSError, ValueError, _BadAddressError):
                parts = urllib.parse.urlsplit(f"//{host}")
                async with asyncio.timeout(5):
                    addresses = await _addresses(parts.hostname or "", False, self.policy)
                    _, writer = await asyncio.open_connection(addresses[0], parts.port)
                    writer.close()
                self._settle_held()
                return
        host, reason = next(reversed(self.unreachable.items()))
        raise FetchError(
            f"{len(self.unreachable):,} hosts in a row cannot be reached (the last: {host}: {reason}): "
            "is there a network? Nothing was noted as dead for it, and the same command resumes from here"
        )


async def http_get(url: str, wanted: frozenset[str], part: Path, policy: CrawlPolicy) -> FetchResult:
    """Request `url` once; a body whose sha256 is in `wanted` is left in the file `part`.

    Whatever the server does is a result. Raises FetchError where `part` cannot be written, SetupError where
    this machine is at its limits or httpx is not installed.
    """
    try:
        import httpx
    except ImportError:
        raise SetupError("fetching FaceScrub needs httpx: pip install '.[facescrub]'") from None

    answered, proxy = False, None
    try:
        async with asyncio.timeout(policy.longest):
            target = httpx.URL(url)
            proxy = _proxy(target.scheme, target.netloc.decode())
            addresses = await _addresses(target.raw_host.decode(), proxy is not None, policy)
            for address in addresses:
                request = httpx.Request(
                    "GET",
                    target.copy_with(host=address),
                    headers={"Host": target.netloc.decode(), **HEADERS},
                    extensions={
                        "timeout": httpx.Timeout(policy.timeout).as_dict(),
                        "sni_hostname": target.raw_host.decode(),
                    },
                )
                # A new connection each time: one kept open belongs to the name that it was opened for. Not
                # a client, which would parse a redirect's address and fail where it makes no sense.
                async with httpx.AsyncHTTPTransport(verify=_tls(), proxy=proxy) as transport:
                    try:
                        response = await transport.handle_async_request(request)
                    except (httpx.ConnectError, httpx.ConnectTimeout):
                        if address == addresses[-1]:
                            raise
                        continue
                    answered = True
                    try:
                        return await _read(response, url, wanted, part, policy)
                    finally:
                        await response.aclose()
            raise AssertionError("the last address returns or raises")
    except _BadAddressError as error:
        return FetchResult("private-address", str(error), contact=not error.resolved)
    except TimeoutError:
        return FetchResult("too-slow", f"not whole after {policy.longest:g} s", retry=True, contact=answered)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return _explain(error, policy, proxied=proxy is not None)


def host_of(url: str) -> str | None:
    """Host and port of an address that may be requested; None for anything but http and https."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            return None
        return f"{parts.hostname}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
    except ValueError:
        return None


def is_public(address: str) -> bool:
    """Whether `address`, an IPv4 or IPv6 address, is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class _BadAddressError(Exception):
    """A host that is never connected to; `resolved` where it is a name.

    Without a network, a captive portal's resolver may lead all names home.
    """

    def __init__(self, host: str, address: str, resolved: bool) -> None:
        super().__init__(f"{host} leads to {address}, which is not on the public internet")
        self.resolved = resolved


async def _addresses(host: str, proxied: bool, policy: CrawlPolicy) -> list[str]:
    """What to connect to for `host`: its addresses, all of them checked; through a proxy, the name itself."""
    try:  # 127.1 and 0x7f000001 are numbers too
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        numeric = True
    except (OSError, UnicodeError):
        numeric, loop = False, asyncio.get_running_loop()
        found = [] if proxied else await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
    for address in addresses:
        if not policy.allow_private_addresses and not is_public(address):
            raise _BadAddressError(host, address, resolved=not numeric)
    return [host] if proxied else addresses[:MOST_ADDRESSES]


def _proxy(scheme: str, netloc: str) -> str | None:
    """The proxy that the environment sets for a URL."""
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy or urllib.request.proxy_bypass(netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@cache
def _tls() -> ssl.SSLContext:
    """One for all: reading this machine's certificates takes longer than many a request."""
    return ssl.create_default_context()


async def _read(
    response: "httpx.Response", url: str, wanted: frozenset[str], part: Path, policy: CrawlPolicy
) -> FetchResult:
    status = response.status_code
    answer = f"{status} {_plain(response.reason_phrase)}"
    if status in (301, 302, 303, 307, 308):
        location = response.headers.get("Location", "")
        with suppress(ValueError):  # what cannot be joined cannot be followed either
            location = urllib.parse.urljoin(url, location)
        if host_of(location) is None:
            return FetchResult("redirect", f"{answer} to {_plain(location)}")
        return FetchResult("redirect", answer, location=location)
    if status in (408, 429) or status >= 500:
        pause = _seconds(response.headers.get("Retry-After", ""))
        return FetchResult("busy" if status == 429 else "server-error", answer, retry=True, pause=pause)
    if status != 200:
        return FetchResult("gone" if status in (404, 410) else "refused", answer)
    try:
        return await _save(response, wanted, part, policy)
    except OSError as error:  # of the disk: httpx has its own for the network
        raise FetchError(explain_write_failure(part, error)) from error


async def _save(
    response: "httpx.Response", wanted: frozenset[str], part: Path, policy: CrawlPolicy
) -> FetchResult:
    import httpx

    text = response.headers.get("Content-Length", "")
    announced = int(text) if re.fullmatch("[0-9]{1,18}", text) else None
    digest, size = hashlib.sha256(), 0
    html = "html" in response.headers.get("Content-Type", "")
    with part.open("wb") as stream:
        try:
            async for block in response.aiter_raw():
                html = html or (not size and re.match(rb"\s*<(!doctype\s+)?html", block, re.I) is not None)
                size += len(block)
                if max(size, announced or 0) > policy.max_bytes:
                    return FetchResult("too-large", f"more than {policy.max_bytes:,} bytes")
                digest.update(block)
                stream.write(block)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if announced is None:
                raise
            text = f"the connection ended after {size:,} of {announced:,} bytes"
            return FetchResult("cut", text, retry=True)
        sha256 = digest.hexdigest()
        if sha256 in wanted:
            return FetchResult("found", sha256=sha256, size=size)
    if html:
        return FetchResult("page", "an HTML page instead of a picture")
    return FetchResult("mismatch", f"{size:,} bytes with sha256 {sha256}")


def _explain(error: Exception, policy: CrawlPolicy, proxied: bool) -> FetchResult:
    """What a failed connection means."""
    import httpx

    for inner in _causes(error):
        number = getattr(inner, "errno", None)
        if number in OUR_LIMITS and not isinstance(inner, (ssl.SSLError, socket.gaierror)):
            problem = f"this machine is at its limits ({os.strerror(number)})"
            raise SetupError(f"{problem}: raise them (`ulimit -n`) and start again")
        if isinstance(inner, ConnectionRefusedError):
            return FetchResult("no-connection", "the connection is refused", contact=not proxied)
        ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
        if isinstance(inner, ssl.SSLError) and not isinstance(inner, ended):
            return FetchResult("certificate", _plain(getattr(inner, "verify_message", "") or inner))
    connected = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
    match error:
        case socket.gaierror():  # of the name or of this machine's network: it does not say
            return FetchResult("no-such-host", _plain(error.strerror or error), retry=True, contact=False)
        case httpx.TimeoutException():
            cause, what = ("too-slow", "byte") if connected else ("no-connection", "answer")
            return FetchResult(cause, f"no {what} for {policy.timeout:g} s", retry=True, contact=connected)
        case httpx.InvalidURL() | httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | ValueError():
            return FetchResult("not-http", f"cannot be asked for: {_plain(error)}")
    if connected:
        return FetchResult("cut", "no whole answer came", retry=True)
    return FetchResult("no-connection", _plain(error), retry=True, contact=False)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that it was made of: httpx keeps the socket's own error at the end of a chain."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from _causes(part)
        error = error.__cause__ or error.__context__


def _seconds(retry_after: str) -> float | None:
    """What a Retry-After header asks for: a number of seconds, or a date."""
    if re.fullmatch("[0-9]{1,9}", retry_after):
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _plain(text: object) -> str:
    """A stranger's text, fit for one field of a report."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]
