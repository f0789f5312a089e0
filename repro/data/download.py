"""Published archives: where one may be on disk, and its download, resumable and checked against its MD5.

The bytes go to `<name>.part`, which a later attempt or process resumes where the server honours a Range
request; only a part with the right MD5 gets the file's own name. Temporary faults (5xx, reset, timeout, a
body that ends early) are retried with growing pauses; anything else is a FetchError of one line at once.
"""

import itertools
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from repro.data.files import BLOCK, explain_write_failure, file_hash, one_at_a_time, progress
from repro.data.http_get import FaultError, body, check_status, is_page, open_url
from repro.errors import DataCorruptError, DataMissingError, FetchError

MAX_REDIRECTS = 10
LONGEST_PAUSE = 60.0  # seconds
_ADVICE = {
    "certificate": "check this machine's clock and certificates (SSL_CERT_FILE)",
    "no-connection": "try again later, or use another mirror",
    "no-such-host": "is there a network? Without one, put the file into the data folder by hand (see README)",
    "page": "open the address in a browser, or use another mirror",
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


def _fetch_whole(
    url: str, part: Path, max_bytes: int, timeout: float, attempts: int, back_off: float
) -> bool:
    """Requests until `part` holds a whole body; whether that began with bytes of an earlier call."""
    failures, hops, furthest, address = 0, 0, _size(part), url
    resumed = furthest > 0
    while True:
        try:
            return _request(address, part, max_bytes, timeout) and resumed
        except FaultError as caught:
            fault = caught.result
        if fault.location and hops < MAX_REDIRECTS:
            address, hops = fault.location, hops + 1
            continue
        if not (fault.retry and fault.contact):
            advice = _ADVICE.get(fault.cause, "check the address, or use another mirror")
            raise FetchError(f"{address}: {fault.detail}; {advice}")
        reached = _size(part)
        # A slow line that is cut now and then still gets there: only attempts without progress count.
        failures = 1 if reached >= furthest + BLOCK else failures + 1
        furthest = max(furthest, reached)
        if failures >= attempts:
            raise FetchError(
                f"{address}: {fault.detail}; gave up after {failures} attempts in a row. {reached:,} bytes "
                "are kept: the same command resumes from there"
            )
        pause = min(fault.pause or back_off * 2 ** (failures - 1), LONGEST_PAUSE)
        _log.info("%s: %s; trying again in %g s", address, fault.detail, pause)
        time.sleep(pause)
        address, hops = url, 0


def _request(url: str, part: Path, max_bytes: int, timeout: float) -> bool:
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
            finally:
                stream.flush()
                os.fsync(stream.fileno())
    return resumed


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
