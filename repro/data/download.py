"""Published archives: where one may be on disk, and its download, resumable and checked against its MD5.

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repro.data.files import BLOCK, explain_write_failure, file_hash, one_at_a_time, progress
from repro.errors import DataCorruptError, DataMissingError, FetchError

LONGEST_PAUSE = 60.0  # seconds
RETRIED = frozenset({408, 429, 500, 502, 503, 504})  # HTTP statuses

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A set as it is published: one archive with one folder in it.

    Either is used where it is on disk: in `<data>/<name>/raw`, in `<data>`, or where the user says.
    """

    name: str
    title: str
    url: str
    mirror_variable: str  # of the environment: names another address of the same archive
    archive: str
    archive_md5: str
    folder: str
    max_bytes: int  # of the archive, packed and unpacked

    def places(self, data_dir: Path, what: str, source: Path | None = None) -> tuple[Path, Path]:
        """Where `what`, the archive or the folder, is looked for."""
        if source is not None:
            return source, source / what
        return data_dir / self.name / "raw" / what, data_dir / what

    def whole_archive(self, data_dir: Path) -> Path | None:
        """An archive on disk that has the published MD5."""
        archives = self.places(data_dir, self.archive)
        return next((path for path in archives if path.is_file() and self.wrong_md5(path) is None), None)

    def wrong_md5(self, archive: Path) -> str | None:
        """What is wrong with an archive's MD5; None where it is the published one."""
        actual = file_hash(archive, "md5")
        same = actual == self.archive_md5
        return None if same else f"{archive} has MD5 {actual}, expected {self.archive_md5}"

    def download(self, data_dir: Path, url: str | None) -> Path:
        """The archive, from `url`, from where the environment says, or from its publisher."""
        address = url or os.environ.get(self.mirror_variable) or self.url
        target = self.places(data_dir, self.archive)[0]
        return download(address, target, md5=self.archive_md5, max_bytes=self.max_bytes)

    def corrupt(self, problem: str) -> DataCorruptError:
        """The error for a file that is not as published, with what to do."""
        return DataCorruptError(f"{problem}: delete it and run `repro data fetch {self.name}`")

    def not_found(self, data_dir: Path, source: Path | None, found: str = "") -> DataMissingError:
        """The error for a set that is nowhere; `found` says what is there instead."""
        names = (self.archive, self.folder)
        places = [str(place) for name in names for place in self.places(data_dir, name, source)]
        return DataMissingError(
            f"{self.title} is not on disk ({found}looked for {', '.join(dict.fromkeys(places))}): run "
            f"`repro data fetch {self.name}`, or name its place with --from, --data-dir or REPRO_DATA"
        )


def download(
    url: str,
    target: Path,
    *,
    md5: str,
    max_bytes: int,
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
    part = target.with_name(f"{target.name}.part")
    try:
        with one_at_a_time(target.with_name(f".{target.name}.lock"), f"downloading {target.name}"):
            if target.is_file():
                if file_hash(target, "md5") == md5:
                    return target
                _log.info("%s does not match its checksum and is fetched again", target)
                target.unlink()
            resumed = _fetch_whole(url, part, max_bytes, timeout, attempts, back_off)
            if resumed and file_hash(part, "md5") != md5:
                # The earlier part may be of another version of the file: only a download in one go decides.
                _log.info("the parts of %s do not fit together; starting over", target.name)
                part.unlink()
                _fetch_whole(url, part, max_bytes, timeout, attempts, back_off)
            if (actual := file_hash(part, "md5")) != md5:
                size = _size(part)
                part.unlink()
                raise FetchError(
                    f"the {size:,} bytes that came have MD5 {actual}, expected {md5}; they were removed: "
                    "try again later, or use another mirror"
                )
            part.replace(target)
    except OSError as error:  # of the network they are dealt with where they occur
        raise FetchError(explain_write_failure(Path(error.filename or target), error)) from error
    return target


class _TemporaryError(Exception):
    """A fault worth another attempt."""

    pause: float | None = None  # what the server asked for, in seconds


def _fetch_whole(
    url: str, part: Path, max_bytes: int, timeout: float, attempts: int, back_off: float
) -> bool:
    """Requests until `part` holds a whole body; whether that began with bytes of an earlier call."""
    failures, furthest, resumed = 0, _size(part), _size(part) > 0
    while True:
        try:
            return _request(url, part, max_bytes, timeout) and resumed
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


def _request(url: str, part: Path, max_bytes: int, timeout: float) -> bool:
    """One request, after which `part` holds the whole body; whether it resumed an earlier part."""
    done = _size(part)
    headers = {"User-Agent": "scaled-bn-repro", **({"Range": f"bytes={done}-"} if done else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
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
        blocks = _blocks(response, url, timeout)
        first = next(blocks, b"")
        if re.match(rb"\s*<(!doctype\s+)?html", first, re.I) or "html" in response.headers.get_content_type():
            raise FetchError(
                f"{url}: the server sent an HTML page instead of the file (a login or an error page?); "
                "open the address in a browser, or use another mirror"
            )
        with part.open("ab" if resumed else "wb") as stream, progress("fetched", total, "bytes") as advance:
            advance(done)
            for block in itertools.chain([first], blocks):
                done += len(block)
                if max(done, total or 0) > max_bytes:
                    raise FetchError(f"{url}: the server sends more than the {max_bytes:,} bytes expected")
                stream.write(block)
                advance(len(block))
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
    answer = f"{url}: the server answered {error.code} {' '.join(str(error.reason).split())}"
    if error.code not in RETRIED:
        return FetchError(f"{answer}; check the address, or use another mirror")
    fault, asked = _TemporaryError(answer), error.headers.get("Retry-After", "")
    fault.pause = float(asked) if asked.isdecimal() else None
    return fault


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
        case http.client.InvalidURL() | UnicodeError():
            problem = f"not a URL that can be requested: {reason}"
        case ConnectionError() | http.client.HTTPException() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return _TemporaryError(f"{url}: the connection was cut")
        case _:
            problem = (
                f"the server cannot be reached ({getattr(reason, 'strerror', None) or reason}): is there a "
                "network? Without one, put the file into the data folder by hand (see README)"
            )
    return FetchError(f"{url}: {problem}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
