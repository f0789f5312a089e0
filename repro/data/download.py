"""Download one URL to one file, resumable and checked against its published MD5.

The bytes go to `<name>.part`, which a later attempt or process resumes where the server honours a Range
request; only a part with the right MD5 gets the file's own name. Temporary faults (5xx, reset, timeout, a
body that ends early) are retried with growing pauses; anything else is a FetchError of one line at once.
"""

import http.client
import itertools
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from repro.data.files import BLOCK, explain_write_failure, file_hash, one_at_a_time
from repro.errors import FetchError

LONGEST_PAUSE = 60.0  # seconds
RETRIED = frozenset({408, 429, 500, 502, 503, 504})  # HTTP statuses

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """Receives how much is done, and how much there is in all, None where that is unknown."""

    def __call__(self, done: int, total: int | None, unit: str = "bytes", /) -> None:
        """`unit` is "bytes", or what is counted, in the plural: "images"."""


def download(
    url: str,
    target: Path,
    *,
    md5: str,
    max_bytes: int,
    progress: Progress | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    back_off: float = 1.0,
) -> Path:
    """Download `url` to `target`, whose folder is created, and return `target`; a whole file is left alone.

    `timeout` is in seconds without a byte; `attempts` in a row may bring less than 1 MiB each; `back_off` is
    the first pause in seconds, which doubles each time.

    Raises FetchError; what arrived stays in `<target>.part` unless its MD5 is wrong.
    """
    if not url.startswith(("http://", "https://")):
        raise FetchError(f"cannot fetch {url}: expected a URL that begins with http:// or https://")
    if target.is_file() and file_hash(target, "md5") == md5:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target.with_name(f".{target.name}.lock"), f"downloading {target.name}"):
            if target.is_file() and file_hash(target, "md5") == md5:
                return target
            if target.is_file():
                _log.info("%s does not match its checksum and is fetched again", target)
                target.unlink()
            part = target.with_name(f"{target.name}.part")
            request = partial(_request, url, part, max_bytes, progress, timeout)
            _retry_until_whole(request, part, md5, attempts, back_off)
            part.replace(target)
    except OSError as error:  # of the network they are dealt with where they occur
        raise FetchError(explain_write_failure(Path(error.filename or target), error)) from error
    return target


class _TemporaryError(Exception):
    """A fault worth another attempt; `pause` is what the server asked for, in seconds."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self, request: Any, answer: Any, code: int, reason: str, headers: Any, url: str
    ) -> Any:
        if not url.startswith(("http://", "https://")):  # urllib would follow one to ftp
            raise urllib.error.HTTPError(url, code, reason, headers, answer)
        return super().redirect_request(request, answer, code, reason, headers, url)


def _retry_until_whole(
    request: Callable[[], bool], part: Path, md5: str, attempts: int, back_off: float
) -> None:
    failures, furthest, restarted = 0, _size(part), False
    while True:
        try:
            resumed = request()
        except _TemporaryError as fault:
            reached = _size(part)
            # A slow line that is cut now and then still gets there: only attempts without progress count.
            failures = 1 if reached >= furthest + BLOCK else failures + 1
            furthest = max(furthest, reached)
            if failures >= attempts:
                raise FetchError(
                    f"{fault}; gave up after {failures} attempts in a row. {reached:,} bytes are kept: "
                    "the same command resumes from there"
                ) from None
            pause = min(fault.pause or back_off * 2 ** (failures - 1), LONGEST_PAUSE)
            _log.info("%s; trying again in %g s", fault, pause)
            time.sleep(pause)
            continue
        if (actual := file_hash(part, "md5")) == md5:
            return
        problem = f"the {_size(part):,} bytes that came have MD5 {actual}, expected {md5}"
        part.unlink()
        if restarted or not resumed:
            raise FetchError(f"{problem}; they were removed: try again later, or use another mirror")
        # The earlier part may be of another version of the file: only a download in one go decides.
        _log.info("the parts do not fit together: %s; starting over", problem)
        restarted = True


def _request(url: str, part: Path, max_bytes: int, progress: Progress | None, timeout: float) -> bool:
    """One request, after which `part` holds the whole body; whether it resumed an earlier part."""
    done = _size(part)
    headers = {"User-Agent": "scaled-bn-repro", **({"Range": f"bytes={done}-"} if done else {})}
    opener = urllib.request.build_opener(_WebRedirects())
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and done:  # the part is whole, or longer than the file: the MD5 tells
                return True
            raise _refused(url, error) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(url, error, timeout) from error
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.unlink()
            raise _TemporaryError(f"{url}: the server sent another range than the one asked for")
        done = done if resumed else 0
        total = None if response.length is None else done + response.length
        if (total or 0) > max_bytes:
            raise FetchError(f"{url}: the server announces {total:,} bytes, expected at most {max_bytes:,}")
        blocks = _blocks(response, url, timeout)
        first = next(blocks, b"")
        html = re.match(rb"\s*<(!doctype\s+)?html", first, re.I)
        if html or "html" in response.headers.get_content_type():
            raise FetchError(
                f"{url}: the server sent an HTML page instead of the file (a login or an error page?); "
                "open the address in a browser, or use another mirror"
            )
        with part.open("ab" if resumed else "wb") as stream:
            for block in itertools.chain([first], blocks):
                done += len(block)
                if done > max_bytes:
                    part.unlink()
                    raise FetchError(
                        f"{url}: the server sent more than the {max_bytes:,} bytes expected at most"
                    )
                stream.write(block)
                if progress is not None:
                    progress(done, total)
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and done < total:
        raise _TemporaryError(f"{url}: the connection ended after {done:,} of {total:,} bytes")
    return resumed


def _blocks(response: http.client.HTTPResponse, url: str, timeout: float) -> Iterator[bytes]:
    try:
        while block := response.read1(BLOCK):  # what has arrived: read() waits for a whole block
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, error, timeout) from error


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    answer = f"{url}: the server answered {error.code} {error.reason}"
    if error.code in RETRIED:
        asked = error.headers.get("Retry-After", "")
        return _TemporaryError(answer, float(asked) if asked.isdecimal() else None)
    if 300 <= error.code < 400:
        return FetchError(f"{url}: redirected too often, or away from http and https; last to {error.url}")
    return FetchError(f"{answer}; check the address, or use another mirror")


def _failed(url: str, error: Exception, timeout: float) -> Exception:
    """What a failed connection means: a fault worth a retry, or a FetchError in the user's words."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    match reason:
        case TimeoutError():
            return _TemporaryError(f"{url}: no byte came for {timeout:g} s")
        case ssl.SSLCertVerificationError():
            problem = f"the certificate cannot be verified ({reason.verify_message}); check this machine's "
            return FetchError(f"{url}: {problem}clock and certificates (SSL_CERT_FILE)")
        case ConnectionRefusedError():
            problem = "the server refuses the connection; try again later, or use another mirror"
        case http.client.InvalidURL() | ValueError() if not isinstance(reason, OSError):
            problem = f"not a URL that can be requested: {reason}"
        case ConnectionError() | http.client.HTTPException() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return _TemporaryError(f"{url}: the connection was cut")
        case _:
            problem = (
                f"the server cannot be reached ({getattr(reason, 'strerror', None) or reason}): is there a "
            )
            problem += "network? Without one, put the file into the data folder by hand (see README)"
    return FetchError(f"{url}: {problem}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
