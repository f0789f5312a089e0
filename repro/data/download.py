"""Published archives: where one may be on disk, and its download, resumable and checked against its MD5.

The bytes go to `<name>.part`, which a later attempt, source or process resumes where the server honours a
Range request; only a part with the right MD5 gets the file's own name. Temporary faults (5xx, reset, timeout,
a body that ends early) are retried with growing pauses. A source that fails for good, or is slow, is left for
the next; a slow one is waited for where every other one fails.
"""

import itertools
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from repro.data.files import BLOCK, explain_write_failure, file_hash, one_at_a_time, progress
from repro.data.http_get import FaultError, body, check_status, is_page, open_url
from repro.errors import DataCorruptError, DataMissingError, FetchError

MAX_REDIRECTS = 10
LONGEST_PAUSE = 60.0  # seconds
# At this speed CIFAR-100 takes 14 minutes. Its publisher's server has been seen to take an hour (73 kB/s).
MIN_SPEED = 200_000  # bytes per second
_ADVICE = {
    "certificate": "check this machine's clock and certificates (SSL_CERT_FILE)",
    "no-connection": "try again later, or name a mirror with --url",
    "no-such-host": "is there a network? Without one, put the file into the data folder by hand",
    "page": "open the address in a browser, or name a mirror with --url",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A set as it is published: one archive with one folder in it.

    Either is used where it is on disk: in `<data>/<name>/raw`, in `<data>`, or where the user says.
    """

    name: str
    title: str
    url: str
    mirrors: tuple[str, ...] = ()  # further addresses of the same bytes, tried in this order
    mirror_variable: str  # of the environment: names another address of the same archive, the only one tried
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
        """The archive, from `url` or where the environment says, else from its publisher or a mirror."""
        named = url or os.environ.get(self.mirror_variable)
        urls = (named,) if named else (self.url, *self.mirrors)
        target = self.places(data_dir, self.archive)[0]
        return download(urls, target, md5=self.archive_md5, max_bytes=self.max_bytes)

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


@dataclass(frozen=True)
class Patience:
    """How long a source is waited for; times in seconds."""

    timeout: float = 30.0  # without a byte
    attempts: int = 5  # in a row that bring less than 1 MiB each
    back_off: float = 1.0  # the first pause between two attempts; it doubles each time
    window: float = 20.0  # over which a source is slow that brings less than MIN_SPEED, pauses included


class _SourceError(Exception):
    """Why a source was left."""

    def __init__(self, reason: str, advice: str, slow: bool = False) -> None:
        super().__init__(reason)
        self.advice, self.slow = advice, slow


def download(
    urls: Sequence[str], target: Path, *, md5: str, max_bytes: int, patience: Patience = Patience()
) -> Path:
    """Download the file at all of `urls` to `target`, whose folder is created; a whole file is left alone.

    The addresses are tried in order; the last one is never left for being slow. Returns `target`.

    Raises FetchError with the reason of each; what arrived stays in `<target>.part` unless its MD5 is wrong.
    """
    for url in urls:
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
            _fetch_from_any(urls, part, md5, max_bytes, patience)
            part.replace(target)
    except OSError as error:  # of the network they are dealt with where they occur
        raise FetchError(explain_write_failure(Path(error.filename or target), error)) from error
    return target


def _fetch_from_any(urls: Sequence[str], part: Path, md5: str, max_bytes: int, patience: Patience) -> None:
    """Requests until `part` holds the file with the right MD5; FetchError where no source has it."""
    waiting, waited_for = list(urls), {urls[-1]}
    problems: dict[str, _SourceError] = {}
    while waiting:
        url = waiting.pop(0)
        window = math.inf if url in waited_for else patience.window
        try:
            return _fetch_checked(url, part, md5, max_bytes, replace(patience, window=window))
        except _SourceError as problem:
            problems[url] = problem
            if problem.slow:
                waiting.append(url)
                waited_for.add(url)
            if waiting:
                _log.info("%s; trying %s", problem, waiting[0])
    advice = problems[urls[0]].advice
    reasons = "; ".join(map(str, problems.values()))
    if len(urls) > 1:
        reasons = f"none of {len(urls)} sources has {part.stem}: {reasons}"
        advice = f"try again later, name a mirror with --url, or put the file into {part.parent} by hand"
    if done := _size(part):
        advice += f". {done:,} bytes are kept: the next attempt resumes from there"
    raise FetchError(f"{reasons}; {advice}")


def _fetch_checked(url: str, part: Path, md5: str, max_bytes: int, patience: Patience) -> None:
    """Requests until `part` holds a whole body with the right MD5; _SourceError where that cannot be."""
    while True:
        resumed = _fetch_whole(url, part, max_bytes, patience)
        if (actual := file_hash(part, "md5")) == md5:
            return
        size = _size(part)
        part.unlink()
        if not resumed:
            raise _SourceError(
                f"{url}: the {size:,} bytes that came have MD5 {actual}, expected {md5}; they were removed",
                "try again later, or name a mirror with --url",
            )
        # The earlier part may be of another version of the file: only a download in one go decides.
        _log.info("the parts of %s do not fit together; starting over", part.stem)


def _fetch_whole(url: str, part: Path, max_bytes: int, patience: Patience) -> bool:
    """Requests until `part` holds a whole body; whether that began with bytes of an earlier call."""
    failures, hops, furthest, address = 0, 0, _size(part), url
    resumed, speed = furthest > 0, _Speedometer(patience.window)
    while True:
        try:
            return _request(address, part, max_bytes, patience.timeout, speed) and resumed
        except FaultError as caught:
            fault = caught.result
        if fault.location and hops < MAX_REDIRECTS:
            address, hops = fault.location, hops + 1
            continue
        reason = f"{url}: {fault.detail}" + (f" (from {address})" if address != url else "")
        advice = _ADVICE.get(fault.cause, "check the address, or name a mirror with --url")
        if fault.cause == "slow" or not (fault.retry and fault.contact):
            raise _SourceError(reason, advice, slow=fault.cause == "slow")
        reached = _size(part)
        # A slow line that is cut now and then still gets there: only attempts without progress count.
        failures = 1 if reached >= furthest + BLOCK else failures + 1
        furthest = max(furthest, reached)
        if failures >= patience.attempts:
            raise _SourceError(f"{reason}; gave up after {failures} attempts in a row", advice)
        if slow := speed.problem():
            raise _SourceError(f"{reason}; {slow}", advice, slow=True)
        pause = min(fault.pause or patience.back_off * 2 ** (failures - 1), LONGEST_PAUSE)
        _log.info("%s; trying again in %g s", reason, pause)
        time.sleep(pause)
        address, hops = url, 0


class _Speedometer:
    """Whether a source brings MIN_SPEED, looked at every `window` seconds."""

    def __init__(self, window: float) -> None:
        self._window, self._began, self._bytes = window, time.monotonic(), 0

    def problem(self, count: int = 0) -> str | None:
        """Counts further bytes; what is wrong with the speed once a window is over."""
        self._bytes += count
        if (seconds := time.monotonic() - self._began) < self._window:
            return None
        speed, self._began, self._bytes = self._bytes / seconds, time.monotonic(), 0
        slow = f"{speed / 1000:,.0f} kB/s in {seconds:.0f} s, expected {MIN_SPEED / 1000:,.0f} kB/s or more"
        return slow if speed < MIN_SPEED else None


def _request(url: str, part: Path, max_bytes: int, timeout: float, speed: _Speedometer) -> bool:
    """One request, after which `part` holds the whole body; whether it resumed an earlier part."""
    done = _size(part)
    headers = {"User-Agent": "repro", **({"Range": f"bytes={done}-"} if done else {})}
    with open_url(url, headers, timeout) as response:
        if response.status == 416 and done:  # the part is whole, or longer than the file: the MD5 tells
            return True
        check_status(response, url, (200, 206) if done else (200,))
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.unlink()
            raise FaultError("cut", "the server sent another range than the one asked for", retry=True)
        done = done if resumed else 0
        total = None if response.length is None else done + response.length
        blocks = body(response, timeout, max_bytes, done=done)
        first = next(blocks, b"")
        if is_page(response, first):
            raise FaultError("page", "an HTML page instead of the file (a login or an error page?)")
        with part.open("ab" if resumed else "wb") as stream, progress("fetched", total, "bytes") as advance:
            advance(done)
            try:
                for block in itertools.chain([first], blocks):
                    stream.write(block)
                    advance(len(block))
                    if slow := speed.problem(len(block)):
                        raise FaultError("slow", slow)
            finally:
                stream.flush()
                os.fsync(stream.fileno())
    return resumed


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
