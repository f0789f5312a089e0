"""GET requests bounded in time and size, and what each answer means: downloads and strangers' servers.

A name is resolved here, every address is checked where only public ones are allowed, and the request goes to
that very address: neither a name, nor one that resolves differently a moment later, nor a redirect leads to
this machine or its network. Where a proxy is set, it resolves the names: then only hosts written as numbers
can be checked here.
"""

import errno
import hashlib
import http.client
import ipaddress
import math
import os
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from repro.data.files import BLOCK
from repro.errors import SetupError, printable

HEADERS = {"User-Agent": "repro", "Accept": "image/*,*/*;q=0.5"}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
OUR_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # say nothing of a host
MAX_ADDRESSES = 4  # of one name, tried one after another


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
    max_bytes: int = 32 << 20  # of a picture; so much memory per connection, at worst
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
    content: bytes = field(default=b"", repr=False)  # of a picture that was found

    @property
    def found(self) -> bool:
        """Whether the picture came and is the published one."""
        return self.cause == "found"


class FaultError(Exception):
    """A request that brought no body, or no whole one."""

    def __init__(self, cause: str, detail: str, **facts: Any) -> None:
        self.result = FetchResult(cause, plain(detail), **facts)
        super().__init__(self.result.detail)


def plain(text: str) -> str:
    """A stranger's words, fit for one field of a report."""
    return " ".join(printable(text[:300]).split())


class _UnconnectedError(Exception):
    """No connection was made; its cause says why."""


def http_get(url: str, wanted: frozenset[str], policy: CrawlPolicy) -> FetchResult:
    """What came of one request for `url`; a body whose sha256 is in `wanted` is in its `content`.

    Whatever the server does is a result. Raises SetupError where this machine is at its limits.
    """
    public, deadline = not policy.allow_private_addresses, time.monotonic() + policy.longest
    try:
        with open_url(url, HEADERS, policy.timeout, deadline, public) as response:
            check_status(response, url, (200,))
            content = b"".join(body(response, policy.timeout, policy.max_bytes, deadline))
            page = is_page(response, content)
    except FaultError as fault:
        return fault.result
    sha256, size = hashlib.sha256(content).hexdigest(), len(content)
    if sha256 in wanted:
        return FetchResult("found", sha256=sha256, size=size, content=content)
    if page:
        return FetchResult("page", "an HTML page instead of a picture")
    return FetchResult("mismatch", f"{size:,} bytes with sha256 {sha256}")


@contextmanager
def open_url(
    url: str, headers: dict[str, str], timeout: float, deadline: float = math.inf, public: bool = False
) -> Iterator[http.client.HTTPResponse]:
    """The server's answer, of any status, to one request; no redirect is followed.

    `timeout` is in seconds without a byte, `deadline` that of the whole request on the monotonic clock.
    `public`: only addresses of the public internet are connected to. Raises FaultError; SetupError where this
    machine is at its limits.
    """
    handler = _Handler(public)
    # Headers that come byte by byte never time out.
    watch = threading.Timer(min(deadline - time.monotonic(), threading.TIMEOUT_MAX), handler.hang_up)
    watch.daemon = True
    try:
        request = urllib.request.Request(_in_ascii(url), headers=headers)
        if public:
            check_public(urllib.parse.urlsplit(request.full_url).hostname or "", numbers_only=True)
        handler.target = request.host
        opener = urllib.request.OpenerDirector()
        opener.add_handler(urllib.request.ProxyHandler())
        opener.add_handler(handler)
        watch.start()
        response = opener.open(request, timeout=timeout)
    except (FaultError, _UnconnectedError, OSError, http.client.HTTPException, ValueError) as error:
        raise _explained(error, timeout, time.monotonic() >= deadline, handler.proxied) from error
    finally:
        watch.cancel()
    with response:
        yield response


class _Handler(urllib.request.AbstractHTTPHandler):
    """Makes the one connection of a request, to an address that was checked unless it is a proxy's."""

    http_request = urllib.request.AbstractHTTPHandler.do_request_
    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, public: bool) -> None:
        super().__init__()
        self.public, self.target, self.proxied = public, "", False
        self.connection: http.client.HTTPConnection | None = None

    def _connect(self, kind: Callable[..., http.client.HTTPConnection], host: str, **options: Any) -> Any:
        self.proxied = host != self.target
        self.connection = kind(host, **options)
        dial = partial(_dial, public=self.public and not self.proxied)
        self.connection._create_connection = dial  # type: ignore[attr-defined]
        return self.connection

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connect, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connect, http.client.HTTPSConnection, context=_tls()), request)

    def hang_up(self) -> None:
        with suppress(OSError, AttributeError):  # no connection yet, or no socket any more
            self.connection.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]


def check_status(response: http.client.HTTPResponse, url: str, expected: tuple[int, ...]) -> None:
    """Raises FaultError for an answer of another status; that of a redirect says where it leads."""
    status = response.status
    answer = f"{status} {response.reason}"
    if status in expected:
        return
    if status in (301, 302, 303, 307, 308):
        location = response.headers.get("Location", "")
        with suppress(ValueError):  # what cannot be joined cannot be followed either
            location = urllib.parse.urljoin(url, location)
        if host_of(location) is None:
            raise FaultError("redirect", f"{answer} to {location}")
        raise FaultError("redirect", answer, location=location)
    if status in (408, 429) or status >= 500:
        asked = response.headers.get("Retry-After", "")  # seconds; a date is as good as none
        pause = float(asked) if re.fullmatch("[0-9]{1,9}", asked) else None
        raise FaultError("busy" if status == 429 else "server-error", answer, retry=True, pause=pause)
    raise FaultError("gone" if status in (404, 410) else "refused", answer)


def body(
    response: http.client.HTTPResponse,
    timeout: float,
    max_bytes: int,
    deadline: float = math.inf,
    done: int = 0,
) -> Iterator[bytes]:
    """The body in blocks as they arrive, after `done` bytes that are there; FaultError unless it is whole."""
    total = None if response.length is None else done + response.length
    while True:
        try:
            block = response.read1(BLOCK)  # read() would wait for a whole block
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _explained(error, timeout) from error
        done += len(block)
        if max(done, total or 0) > max_bytes:
            raise FaultError("too-large", f"the server sends more than {max_bytes:,} bytes")
        if time.monotonic() >= deadline:
            raise FaultError("too-slow", "not whole in time", retry=True)
        if not block:
            break
        yield block
    if total is not None and done < total:
        raise FaultError("cut", f"the connection ended after {done:,} of {total:,} bytes", retry=True)


def is_page(response: http.client.HTTPResponse, first: bytes) -> bool:
    """Whether a body that begins with `first` is an HTML page."""
    html = re.match(rb"\s*<(!doctype\s+)?html", first, re.IGNORECASE)
    return html is not None or "html" in response.headers.get_content_type()


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
    """Whether an IP address is one of the public internet, be it written inside an IPv6 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def check_public(host: str, numbers_only: bool = False) -> list[str]:
    """The addresses of `host`, all of them public; none for a name, where only numbers are to be checked.

    Raises FaultError for another one. Without a network, a captive portal's resolver may lead all names home:
    a name's fault is no contact.
    """
    numeric = True
    try:  # 127.1 and 0x7f000001 are numbers too
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        numeric = False
        found = [] if numbers_only else socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
    for address in addresses:
        if not is_public(address):
            text = f"{host} leads to {address}, which is not on the public internet"
            raise FaultError("private-address", text, contact=numeric)
    return addresses


def _dial(
    place: tuple[str, int], timeout: float | None, source: tuple[str, int] | None = None, *, public: bool
) -> socket.socket:
    """A connection to the host and port of `place`, at the very address that was checked."""
    host, port = place
    failure: OSError | None = None
    try:
        for address in check_public(host)[:MAX_ADDRESSES] if public else [host]:
            try:
                return socket.create_connection((address, port), timeout, source)
            except OSError as error:
                failure = error
    except OSError as error:
        failure = error
    raise _UnconnectedError from failure


def can_connect(host: str, public: bool) -> bool:
    """Whether `host`, as `host_of` names it, takes a connection within five seconds."""
    parts = urllib.parse.urlsplit(f"//{host}")
    try:
        _dial((parts.hostname or "", parts.port or 80), 5.0, public=public).close()
    except (FaultError, _UnconnectedError):
        return False
    return True


@cache
def _tls() -> ssl.SSLContext:
    """One for all: reading this machine's certificates takes longer than many a request."""
    return ssl.create_default_context()


def _in_ascii(url: str) -> str:
    """The URL as a request can name it; ValueError for one that no request can."""
    parts = urllib.parse.urlsplit(url)
    host = (parts.hostname or "").encode("idna").decode()
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{parts.port}" if parts.port else ""
    path, query = (urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, netloc, path, query, ""))


def _explained(error: Exception, timeout: float, late: bool = False, proxied: bool = False) -> FaultError:
    """What a failed connection means."""
    if isinstance(error, FaultError):
        return error
    connected = not isinstance(error, _UnconnectedError)
    reason = error if connected else error.__cause__
    if isinstance(reason, urllib.error.URLError) and isinstance(reason.reason, Exception):
        reason = reason.reason
    number = None if isinstance(reason, ssl.SSLError | socket.gaierror) else getattr(reason, "errno", None)
    if number in OUR_LIMITS:
        problem = f"this machine is at its limits ({os.strerror(number)})"
        raise SetupError(f"{problem}: raise them (`ulimit -n`) and start again")
    match reason:
        case ConnectionRefusedError():
            return FaultError("no-connection", "the connection is refused", contact=not proxied)
        case socket.gaierror():  # of the name or of this machine's network: it does not say
            return FaultError("no-such-host", f"{reason.strerror or reason}", retry=True, contact=False)
        case _ if late:
            return FaultError("too-slow", "not whole in time", retry=True, contact=connected)
        case TimeoutError():
            cause, what = ("too-slow", "byte") if connected else ("no-connection", "answer")
            return FaultError(cause, f"no {what} for {timeout:g} s", retry=True, contact=connected)
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            pass
        case ssl.SSLError():
            return FaultError("certificate", f"{getattr(reason, 'verify_message', '') or reason}")
        case http.client.InvalidURL() | UnicodeError():
            return FaultError("not-http", f"cannot be asked for: {reason}")
    if connected:
        return FaultError("cut", "no whole answer came", retry=True)
    return FaultError("no-connection", f"{reason}", retry=True, contact=False)
