"""Fetching one URL to one file, so that what is there afterwards is what was asked for.

The bytes go to `<name>.part`, which a later attempt, or a later process, goes on from where the server
honours a Range request. Only a part whose checksum is right is renamed to the file's own name. One process
downloads at a time, under a kernel lock; whoever waited finds the file there and does nothing.

Passing faults (a 5xx answer, a reset, a timeout, a body that ends early) are tried again with growing
pauses; anything else is a FetchError of one line at once.
"""

import errno
import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

from filelock import FileLock, Timeout

from repro.errors import FetchError, SetupError


class Progress(Protocol):
    """Told how far something is: what is done and what there is in all, None where that is not known."""

    def __call__(self, done: int, total: int | None, unit: str = "bytes", /) -> None:
        """`unit` is "bytes", or what is counted, in the plural: "images"."""


Notify = Callable[[str], None]
"""Called with one sentence for the user: waiting for another process, trying again."""

BLOCK = 1 << 20
LONGEST_PAUSE = 60.0
TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Checksum:
    """What a file's bytes must hash to; `algorithm` is "sha256" or "md5"."""

    algorithm: str
    value: str

    def of(self, path: Path) -> str:
        """The digest of the file at `path` by this algorithm, hexadecimal."""
        with path.open("rb") as stream:
            return hashlib.file_digest(
                stream, lambda: hashlib.new(self.algorithm, usedforsecurity=False)
            ).hexdigest()


@dataclass(frozen=True)
class Patience:
    """How long a download goes on trying. Times are in seconds."""

    timeout: float = 30.0
    """Without a byte from the server."""
    attempts: int = 5
    """In a row that bring less than a mebibyte beyond what there was."""
    back_off: float = 1.0
    """The first pause; each following one is twice as long, to a minute at most."""


class _PassingFaultError(Exception):
    """A fault worth another attempt; `pause` is what the server asked for, in seconds."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


def download(
    url: str,
    target: Path,
    *,
    checksum: Checksum,
    max_bytes: int,
    progress: Progress | None = None,
    notify: Notify | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch `url` to `target`, whose folder is made, and return `target`.

    A file that is there with the right checksum is left alone; one with a wrong checksum is replaced.
    Not one byte beyond `max_bytes` is kept.

    Raises FetchError; what came of the file stays in `<target>.part` unless its checksum was wrong.
    """
    patience = patience or Patience()
    notify = notify or _silent
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise FetchError(f"cannot fetch {url}: expected a URL that begins with http:// or https://")
    if target.is_file() and checksum.of(target) == checksum.value:
        return target
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(target.with_name(f".{target.name}.lock"), f"downloading {target.name}", notify):
        if target.is_file():
            if checksum.of(target) == checksum.value:
                return target
            notify(f"{target} does not match its checksum and is fetched again")
            with _writing(target):
                target.unlink()
        _fetch_under_lock(url, target, checksum, max_bytes, progress, notify, patience)
    return target


@contextmanager
def one_at_a_time(lock: Path, doing: str, notify: Notify | None = None) -> Iterator[None]:
    """Hold the kernel lock on the file `lock` (which stays); where another process holds it, say so and wait.

    Raises SetupError where the lock's file cannot be made or the file system has no locks.
    """
    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except Timeout:
            (notify or _silent)(f"another process is {doing}; waiting for it to finish")
            held.acquire()
    except (OSError, NotImplementedError) as error:
        reason = explain_write_failure(lock, error) if isinstance(error, OSError) else str(error)
        raise SetupError(f"cannot lock {lock.parent}: {reason}") from error
    try:
        # filelock turns itself into a lock that a killed process never gives back where flock is missing.
        if not isinstance(held, FileLock):
            raise SetupError(
                f"the file system of {lock.parent} has no file locks: use a folder on another one"
            )
        yield
    finally:
        held.release()


def explain_write_failure(path: Path, error: OSError) -> str:
    """Why `path` could not be written and what to do, in one line."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return (
                f"no space left for {path}: free some on that disk, or choose another folder with --data-dir"
            )
        case errno.EFBIG:
            return f"{path} would pass the limit on file sizes (`ulimit -f`): raise it and start again"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"no permission to write {path}: choose another folder with --data-dir or REPRO_DATA"
        case errno.ENOTDIR | errno.EEXIST:
            return f"cannot make {path}: a file stands where a folder is needed; move it or change --data-dir"
    return f"cannot write {path}: {error.strerror or error}"


def is_html(content_type: str, start: bytes) -> bool:
    """Whether an answer that should be a file is a page for people, by its type or its first bytes."""
    return "html" in content_type or re.match(rb"\s*<(!doctype\s+)?html", start, re.I) is not None


def web_opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Speaks what `handlers` do and nothing else, through the environment's proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        *handlers,
    ):
        opener.add_handler(handler)
    return opener


def _fetch_under_lock(
    url: str,
    target: Path,
    checksum: Checksum,
    max_bytes: int,
    progress: Progress | None,
    notify: Notify,
    patience: Patience,
) -> None:
    part = target.with_name(f"{target.name}.part")
    opener = web_opener(urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), _BoundedRedirects())
    failures, furthest, started_over = 0, _size(part), False
    while True:
        try:
            resumed = _transfer(opener, url, part, max_bytes, progress, patience.timeout)
        except _PassingFaultError as fault:
            reached = _size(part)
            # A slow line that cuts now and then still gets there: only attempts without headway are counted.
            failures = 1 if reached >= furthest + BLOCK else failures + 1
            furthest = max(furthest, reached)
            if failures >= patience.attempts:
                raise FetchError(
                    f"{url}: {fault}; gave up after {failures} attempts in a row. {reached:,} bytes "
                    "are kept, and the same command goes on from there"
                ) from None
            pause = min(fault.pause or patience.back_off * 2 ** (failures - 1), LONGEST_PAUSE)
            notify(f"{url}: {fault}; trying again in {pause:g} s")
            time.sleep(pause)
            continue
        actual = checksum.of(part)
        size = _size(part)
        with _writing(target):
            if actual == checksum.value:
                part.replace(target)
                return
            part.unlink()
        if started_over or not resumed:
            raise FetchError(
                f"{url}: the {size:,} bytes that came have {checksum.algorithm} {actual}, expected "
                f"{checksum.value}; they were removed: try again later, or use another mirror"
            )
        # The earlier part may be of another version of the file; all of it in one go decides.
        notify(f"{url}: the parts do not fit together (wrong {checksum.algorithm}), starting over")
        started_over = True


def _transfer(
    opener: urllib.request.OpenerDirector,
    url: str,
    part: Path,
    max_bytes: int,
    progress: Progress | None,
    timeout: float,
) -> bool:
    """One request, after which `part` holds the whole body; whether it went on from an earlier part.

    Raises _PassingFaultError or FetchError.
    """
    offset = _size(part)
    headers = {"User-Agent": "scaled-bn-repro", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = cast(http.client.HTTPResponse, opener.open(request, timeout=timeout))
    except urllib.error.HTTPError as error:
        with error:
            # 416: the part is whole already, or longer than the file; the checksum tells which.
            if error.code == 416 and offset:
                return True
            raise _refusal(url, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise _fault(url, error, timeout) from error
    with response:
        if response.status == 206 and _first_byte(response) != offset:
            with _writing(part):
                part.unlink()
            raise _PassingFaultError("the server sent another range than the one asked for")
        if response.status != 206:
            offset = 0
        total = None if response.length is None else offset + response.length
        if total is not None and total > max_bytes:
            raise FetchError(f"{url}: the server announces {total:,} bytes, expected at most {max_bytes:,}")
        block = _read(response, url, timeout)
        if is_html(response.headers.get_content_type(), block):
            raise FetchError(
                f"{url}: the server sent an HTML page instead of the file (a login or an error page?); "
                "open the address in a browser, or use another mirror"
            )
        done = offset
        with _writing(part):
            # Unbuffered, so that closing never has bytes left to write, and nothing to fail at.
            stream = part.open("ab" if offset else "wb", buffering=0)
        with stream:
            while block:
                done += len(block)
                if done > max_bytes:
                    with _writing(part):
                        part.unlink()
                    raise FetchError(
                        f"{url}: the server sent more than the {max_bytes:,} bytes expected at most"
                    )
                with _writing(part):
                    write_all(stream, block)
                if progress is not None:
                    progress(done, total)
                block = _read(response, url, timeout)
            with _writing(part):
                os.fsync(stream.fileno())
    if total is not None and done < total:
        raise _PassingFaultError(f"the connection ended after {done:,} of {total:,} bytes")
    return offset > 0


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FetchError(explain_write_failure(path, error)) from error


def write_all(stream: IO[bytes], block: bytes) -> None:
    """Write every byte of `block` to an unbuffered stream."""
    rest = memoryview(block)
    while rest:
        rest = rest[stream.write(rest) :]


def _read(response: http.client.HTTPResponse, url: str, timeout: float) -> bytes:
    # read1 gives what has arrived; read waits for a whole block, so a slow line would look stalled.
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _fault(url, error, timeout) from error


def _fault(url: str, error: OSError | http.client.HTTPException, timeout: float) -> Exception:
    """What a failed connection means: a passing fault, or a FetchError in the user's words."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    host = urllib.parse.urlsplit(url).netloc
    if isinstance(reason, TimeoutError):
        return _PassingFaultError(f"no byte came for {timeout:g} s")
    if isinstance(reason, ssl.SSLCertVerificationError):
        return FetchError(
            f"{url}: the certificate of {host} cannot be verified ({reason.verify_message}); check this "
            "machine's clock and certificates (SSL_CERT_FILE)"
        )
    if isinstance(reason, ConnectionRefusedError):
        return FetchError(f"{url}: {host} refuses the connection; try again later, or use another mirror")
    if isinstance(
        reason, (ConnectionError, http.client.HTTPException, ssl.SSLEOFError, ssl.SSLZeroReturnError)
    ):
        if isinstance(reason, http.client.InvalidURL):
            return FetchError(f"{url}: not a URL that can be asked for: {reason}")
        return _PassingFaultError("the connection was cut")
    if isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) in (
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
    ):
        return FetchError(
            f"{url}: {host} cannot be reached ({getattr(reason, 'strerror', None) or reason}): is there a "
            "network? Without one, put the file in the data folder by hand (see README)"
        )
    return FetchError(f"{url}: the connection failed: {reason}")


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    answer = f"the server answered {error.code} {error.reason}"
    if error.code in TRY_AGAIN:
        asked = error.headers.get("Retry-After", "")
        return _PassingFaultError(answer, float(asked) if asked.isdigit() else None)
    if 300 <= error.code < 400:
        elsewhere = error.headers.get("Location", "nowhere")
        return FetchError(f"{url}: redirected too often, or away from http and https; last to {elsewhere}")
    return FetchError(f"{url}: {answer}; check the address, or use another mirror")


class _BoundedRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5


def _first_byte(response: http.client.HTTPResponse) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _silent(message: str) -> None:
    """What `notify` is where nobody listens."""
