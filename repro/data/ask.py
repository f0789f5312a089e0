"""One request for one small file from a stranger's server, and what came of it, in words that are counted."""

import email.utils
import errno
import hashlib
import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal, TypeVar, cast

from repro.data.download import explain_write_failure, is_html, write_all
from repro.data.public_web import BadAddressError, Line, RequestLimits, host_of, quoted
from repro.errors import FetchError, SetupError

BLOCK = 1 << 16
HEADERS = {"User-Agent": "scaled-bn-repro", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
OUR_OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Faults of this machine, which say nothing about an address."""

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What came of one request."""

    kind: Literal["found", "elsewhere", "again", "never"]
    """The file is there; it is at `location`; a passing fault; a lasting one."""
    cause: str
    """One word for counting."""
    detail: str = ""
    sha256: str = ""
    size: int = 0
    location: str = ""
    pause: float | None = None
    """Seconds that the server asked to be left alone."""
    contact: bool = True
    """Whether anything answered, be it a refusal: then there is a network."""


def ask(url: str, wanted: frozenset[str], part: Path, limits: RequestLimits, line: Line) -> Answer:
    """Request `url` once over `line`; a body whose sha256 is in `wanted` is left, synced, in the file `part`.

    Raises FetchError where `part` cannot be written, SetupError where this machine is at its limits.
    """
    try:
        request = urllib.request.Request(quoted(url), headers=HEADERS)
        opened = line.opener().open(request, timeout=limits.timeout)
        with cast(http.client.HTTPResponse, opened) as response:
            if response.status != 200:
                return Answer("never", "refused", f"{response.status} {_plain(response.reason)}")
            return _receive(response, wanted, part, limits, line)
    except urllib.error.HTTPError as error:
        with error:
            return _no(error, url)
    except BadAddressError as error:
        return Answer("never", error.cause, str(error), contact=not error.resolved)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _fault(error, limits, line)
    finally:
        line.close()


def _receive(
    response: http.client.HTTPResponse, wanted: frozenset[str], part: Path, limits: RequestLimits, line: Line
) -> Answer:
    announced = response.length
    if announced is not None and announced > limits.max_bytes:
        return Answer("never", "too-large", f"{announced:,} bytes announced")
    digest, size = hashlib.sha256(), 0
    block = response.read1(BLOCK)
    if is_html("", block):
        return Answer("never", "page", "an HTML page instead of a picture")
    with _writing(part, partial(part.open, "wb", buffering=0)) as stream:
        while block:
            size += len(block)
            if size > limits.max_bytes:
                return Answer("never", "too-large", f"more than {limits.max_bytes:,} bytes")
            digest.update(block)
            _writing(part, partial(write_all, cast(IO[bytes], stream), block))
            block = response.read1(BLOCK)
        if line.was_cut:
            return _too_slow(limits)
        if announced is not None and size < announced:
            return Answer("again", "cut", f"the connection ended after {size:,} of {announced:,} bytes")
        sha256 = digest.hexdigest()
        if sha256 in wanted:
            _writing(part, partial(os.fsync, stream.fileno()))
            return Answer("found", "found", sha256=sha256, size=size)
    if is_html(response.headers.get_content_type(), b""):
        return Answer("never", "page", "an HTML page instead of a picture")
    return Answer("never", "mismatch", f"{size:,} bytes with sha256 {sha256}")


def _writing(part: Path, write: Callable[[], T]) -> T:
    """What `write` returns; its OSError, unlike one of the network, stops everything."""
    try:
        return write()
    except OSError as error:
        raise FetchError(explain_write_failure(part, error)) from error


def _no(error: urllib.error.HTTPError, url: str) -> Answer:
    """What another status than 200 means."""
    answer = f"{error.code} {_plain(error.reason)}"
    if error.code in (301, 302, 303, 307, 308):
        where = urllib.parse.urljoin(url, error.headers.get("Location", ""))
        if host_of(where) is None:
            return Answer("never", "redirect", f"{answer} to {_plain(where)}")
        return Answer("elsewhere", "redirect", answer, location=where)
    if error.code in (408, 429) or error.code >= 500:
        cause = "busy" if error.code == 429 else "server-error"
        return Answer("again", cause, answer, pause=_seconds(error.headers.get("Retry-After", "")))
    return Answer("never", "gone" if error.code in (404, 410) else "refused", answer)


def _seconds(retry_after: str) -> float | None:
    """What a Retry-After header asks for: a number of seconds, or a date."""
    if retry_after.isdecimal() and len(retry_after) < 10:
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _fault(error: Exception, limits: RequestLimits, line: Line) -> Answer:
    """What a failed connection means."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    number = getattr(reason, "errno", None)
    if number in OUR_OWN_LIMITS:
        raise SetupError(
            f"this machine is at its limits ({os.strerror(number)}): raise them (`ulimit -n`) and start again"
        )
    if line.was_cut:
        return _too_slow(limits)
    if isinstance(reason, TimeoutError) and line.connected:
        return Answer("again", "too-slow", f"no byte for {limits.timeout:g} s")
    if isinstance(reason, TimeoutError):
        return Answer("again", "no-connection", f"no answer for {limits.timeout:g} s", contact=False)
    if isinstance(reason, socket.gaierror):
        # Whether it is the name or this machine's network, the error does not say.
        return Answer("again", "no-such-host", _plain(reason.strerror or reason), contact=False)
    if isinstance(reason, ConnectionRefusedError):
        return Answer("never", "no-connection", "the connection is refused", contact=not line.proxied)
    if isinstance(reason, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return Answer("again", "cut", "the connection was cut")
    if isinstance(reason, ssl.SSLError):
        return Answer("never", "certificate", _plain(getattr(reason, "verify_message", "") or reason))
    if isinstance(reason, (http.client.InvalidURL, ValueError)):
        return Answer("never", "not-http", f"cannot be asked for: {_plain(reason)}")
    if isinstance(reason, http.client.HTTPException):
        return Answer("again", "cut", "no whole answer came")
    return Answer("again", "no-connection", _plain(reason), contact=line.connected)


def _too_slow(limits: RequestLimits) -> Answer:
    return Answer("again", "too-slow", f"not whole after {limits.longest:g} s")


def _plain(text: object) -> str:
    """A stranger's text, fit for one field of a report."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]
