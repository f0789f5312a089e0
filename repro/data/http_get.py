"""One GET request for a small file from a stranger's server, bounded in time and size, to public hosts only.

A name is resolved here, every address is checked, and the request goes to that very address: neither a name,
nor one that resolves differently a moment later, nor a redirect leads to this machine or its network. Where
a proxy is set, it resolves the names: then only hosts written as numbers can be checked here.
"""

import asyncio
import errno
import hashlib
import ipaddress
import os
import re
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from repro.data.files import explain_write_failure
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
            addresses = await connectable_addresses(target.raw_host.decode(), proxy is not None, policy)
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
    except BadAddressError as error:
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


class BadAddressError(Exception):
    """A host that is never connected to; `resolved` where it is a name.

    Without a network, a captive portal's resolver may lead all names home.
    """

    def __init__(self, host: str, address: str, resolved: bool) -> None:
        super().__init__(f"{host} leads to {address}, which is not on the public internet")
        self.resolved = resolved


async def connectable_addresses(host: str, proxied: bool, policy: CrawlPolicy) -> list[str]:
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
            raise BadAddressError(host, address, resolved=not numeric)
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
        asked = response.headers.get("Retry-After", "")  # seconds; a date is as good as none
        pause = float(asked) if re.fullmatch("[0-9]{1,9}", asked) else None
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


def _plain(text: object) -> str:
    """A stranger's text, fit for one field of a report."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]
