"""What a crawl keeps, so that one that is killed goes on: the pictures, and what became of every address.

    <folder>/images/ab/abcd…   a picture under its own sha256: no name or address of a list becomes a path
    <folder>/fetched.jsonl     the journal, a line of JSON an address: cause ("found", or why not), detail,
                               sha256 and size of what came

A line is appended once an address is settled, and a later line of the same address counts. A line that a
power cut tore is cut off, and its address is asked for again.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from repro.data.download import Checksum, explain_write_failure, write_all
from repro.errors import FetchError, SetupError

SYNC_INTERVAL = 1.0
"""Seconds; what a power cut may cost, a killed process loses nothing."""


@dataclass(frozen=True)
class Outcome:
    """What became of an address: "found", or one word for why not with the words for a report."""

    cause: str
    detail: str = ""
    sha256: str = ""
    size: int = 0

    @property
    def found(self) -> bool:
        """Whether the picture came and is the published one."""
        return self.cause == "found"


def picture(folder: Path, sha256: str) -> Path:
    """Where the picture with this sha256 lies below a crawl's folder."""
    return folder / "images" / sha256[:2] / sha256


def journal_of(folder: Path) -> Path:
    """Where the journal of a crawl lies."""
    return folder / "fetched.jsonl"


def pictures_on_disk(folder: Path, outcomes: Mapping[str, Outcome], wanted: frozenset[str]) -> set[str]:
    """The sha256 of the `wanted` pictures that are there whole.

    That is: as long as noted or, where nothing is noted, with the right sha256.
    """
    sizes = {outcome.sha256: outcome.size for outcome in outcomes.values() if outcome.found}
    there = set()
    for path in (folder / "images").glob("[0-9a-f][0-9a-f]/*"):
        if path.name not in wanted:
            continue
        size = sizes.get(path.name)
        if path.name == _sha256(path) if size is None else path.stat().st_size == size:
            there.add(path.name)
    return there


class Journal:
    """The file of outcomes at `path`; opened, it is read and mended first.

    Raises SetupError where it cannot be read, FetchError where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes = read_journal(path)
        self._synced = time.monotonic()
        try:
            whole = _whole_lines(path)
            self._stream = path.open("ab", buffering=0)
            self._stream.truncate(whole)
        except OSError as error:
            raise FetchError(explain_write_failure(path, error)) from error

    def add(self, address: str, outcome: Outcome) -> None:
        """Append one outcome; on its way to the disk when this returns, there within a second or at close."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"address": address, **asdict(outcome), "at": at}, ensure_ascii=False)
        try:
            write_all(self._stream, line.encode() + b"\n")
            if time.monotonic() - self._synced > SYNC_INTERVAL:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise FetchError(explain_write_failure(self.path, error)) from error
        self.outcomes[address] = outcome

    def close(self) -> None:
        """Sync and close the file."""
        try:
            os.fsync(self._stream.fileno())
            self._stream.close()
        except OSError as error:
            raise FetchError(explain_write_failure(self.path, error)) from error


def read_journal(path: Path) -> dict[str, Outcome]:
    """Address → outcome, as far as the journal at `path` is whole; empty where there is none.

    Raises SetupError where it cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    outcomes = {}
    for line in lines[:-1]:  # after the last line's end there is nothing, or a torn line
        try:
            entry = json.loads(line)
            outcomes[str(entry["address"])] = Outcome(
                str(entry["cause"]), str(entry["detail"]), str(entry["sha256"]), int(entry["size"])
            )
        except (ValueError, KeyError, TypeError):
            continue  # damaged: its address counts as not asked for yet
    return outcomes


def _whole_lines(path: Path) -> int:
    """How many bytes of the file at `path` are whole lines."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def _sha256(path: Path) -> str:
    return Checksum("sha256", path.name).of(path)
