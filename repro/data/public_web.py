"""Connections to strangers' servers: http and https only, public addresses only, and never for too long.

Where a name leads is looked at after it is resolved, at the moment of connecting, so that neither a name
nor a redirect leads to this machine or its network. Where a proxy is set, it resolves the names: then only
hosts written as numbers can be checked here.
"""

import functools
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from repro.data.download import web_opener

NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class RequestLimits:
    """What one request may take. Times are in seconds."""

    timeout: float = 20.0
    """Without a byte."""
    longest: float = 120.0
    """In all."""
    max_bytes: int = 32 << 20
    allow_private_addresses: bool = False
    """Whether addresses of this machine and of private networks may be connected to."""


class BadAddressError(Exception):
    """An address that is never asked for; `cause` is one word for counting.

    `resolved` where it was a name's address: without a network, a portal's resolver may lead all names home.
    """

    def __init__(self, cause: str, reason: str, resolved: bool = False) -> None:
        super().__init__(reason)
        self.cause = cause
        self.resolved = resolved


class Line:
    """The connection of one request, which another thread can cut when it takes too long."""

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits
        self.deadline = time.monotonic() + limits.longest
        self.connected = False
        self.proxied = False
        self.was_cut = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def open(
        self, address: tuple[str, int], timeout: float | None = None, source: tuple[str, int] | None = None
    ) -> socket.socket:
        """Connect to host and port, as `socket.create_connection` does; proxies may have any address."""
        private = self.limits.allow_private_addresses or self.proxied
        connection = connect(address, self.limits.timeout, private, self.deadline)
        with self._lock:
            # A copy: the original may be wrapped for TLS, and closed at any time.
            self._socket = connection.dup()
            self.connected = True
        if self.was_cut:
            self.cut()
        return connection

    def cut(self) -> None:
        """End the connection, whatever its thread is waiting for."""
        with self._lock:
            self.was_cut = True
            if self._socket is not None:
                with suppress(OSError):  # the server was faster
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connection."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def opener(self) -> urllib.request.OpenerDirector:
        """Opens addresses over this line, and hands every redirect back as the HTTPError that it is."""
        return web_opener(_HTTPHandler(self), _HTTPSHandler(self))


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


def host_of(url: str) -> str | None:
    """Host and port of an address that may be asked for; None for anything else than http and https."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            return None
        return f"{parts.hostname}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
    except ValueError:
        return None


def quoted(url: str) -> str:
    """`url` with what HTTP cannot carry quoted; percent signs stay as they are.

    Raises BadAddressError for what is not an address of http or https, ValueError for an impossible host.
    """
    if host_of(url) is None:
        raise BadAddressError("not-http", "not an address of http or https")
    parts = urllib.parse.urlsplit(url)
    netloc = parts.netloc
    if not netloc.isascii():
        port = f":{parts.port}" if parts.port else ""
        netloc = f"{(parts.hostname or '').encode('idna').decode()}{port}"
    safe = "%/:=&?~#+!$,;'@()*[]|"
    path, query = (urllib.parse.quote(text, safe=safe) for text in (parts.path, parts.query))
    return parts._replace(netloc=netloc, path=path, query=query, fragment="").geturl()


def connect(
    address: tuple[str, int], timeout: float, allow_private: bool, deadline: float | None = None
) -> socket.socket:
    """A TCP connection to host and port; to a public address only, unless `allow_private`.

    Raises BadAddressError for a host with an address that is not public, OSError where there is no answer.
    """
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    for *_, place in found:
        if not allow_private:
            _check_public(address[0], str(place[0]))
    failure = OSError(f"{address[0]} has no address")
    for family, kind, protocol, _, place in found:
        if deadline is not None and time.monotonic() > deadline:
            break
        try:
            connection = socket.socket(family, kind, protocol)
        except OSError as error:  # an address family that this machine lacks
            failure = error
            continue
        try:
            connection.settimeout(timeout)
            connection.connect(place)
        except OSError as error:
            connection.close()
            failure = error
            continue
        return connection
    raise failure


def _check_public(host: str, address: str) -> None:
    if not is_public(address):
        reason = f"{host} leads to {address}, which is not on the public internet"
        raise BadAddressError("private-address", reason, resolved=host != address)


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, line: Line, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._create_connection = line.open


class _TLSConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, line: Line, timeout: float) -> None:
        super().__init__(host, timeout=timeout, context=_tls())
        self._create_connection = line.open


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all: reading this machine's certificates takes longer than many a request."""
    return ssl.create_default_context()


class _HTTPHandler(urllib.request.AbstractHTTPHandler):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line
        self.http_request = self.do_request_

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._open(_Connection, request)

    def _open(
        self, connection: Callable[..., http.client.HTTPConnection], request: urllib.request.Request
    ) -> http.client.HTTPResponse:
        target = urllib.parse.urlsplit(request.full_url)
        self.line.proxied = request.host != target.netloc
        if self.line.proxied and not self.line.limits.allow_private_addresses:
            host = target.hostname or ""
            with suppress(ValueError):  # a name
                _check_public(host, str(ipaddress.ip_address(host)))
        return self.do_open(functools.partial(connection, line=self.line), request)


class _HTTPSHandler(_HTTPHandler):
    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.https_request = self.do_request_

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._open(_TLSConnection, request)
