"""`repro data`: fetch, prepare, verify and list the data sets."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from repro import data
from repro.data.download import Progress
from repro.manifest import Manifest, prepared_folder
from repro.scheduling.durations import format_seconds


def fetch_set(name: str, folder: Path, options: data.FetchOptions) -> None:
    """Downloads the source files of `name`; does nothing where they are."""
    with _messages_shown():
        place = data.fetch(name, folder, options, _progress("fetched"))
    _say(f"{name}: source files in {place}")


def prepare_set(name: str, folder: Path, options: data.PrepareOptions) -> None:
    """Makes the arrays of `name`."""
    started = time.monotonic()
    with _messages_shown():
        manifest = data.prepare(name, folder, options, _progress("prepared"))
    seconds = time.monotonic() - started
    place = prepared_folder(folder, manifest.name)
    _say(f"{manifest.name}: {_describe(manifest)}, in {place} ({seconds:.1f} s)")
    for note in (f"partial: {manifest.partial}" if manifest.partial else "", *manifest.notes):
        if note:
            _say(f"{manifest.name}: {note}")


def verify_set(name: str, folder: Path) -> None:
    """Hashes the arrays of `name`; says so if they are whole."""
    _say(f"{name}: {_describe(data.verify(name, folder))}: every array is as its manifest says")


def list_data(folder: Path, as_json: bool) -> str:
    """A line a data set, or JSON."""
    states = data.listing(folder)
    if as_json:
        return json.dumps([asdict(state) for state in states], indent=1)
    from tabulate import tabulate

    rows = [
        (
            state.name,
            state.state,
            "" if state.images is None else f"{state.images:,}",
            "" if state.classes is None else state.classes,
            f"{state.bytes / 1e6:,.0f} MB" if state.bytes else "",
            state.detail,
        )
        for state in states
    ]
    headers = ("set", "state", "images", "classes", "size", "detail")
    return tabulate(rows, headers, maxcolwidths=[None] * 5 + [70], disable_numparse=True)


def _describe(manifest: Manifest) -> str:
    return (
        f"{manifest.train.count:,} training and {manifest.test.count:,} test images "
        f"of {manifest.classes} classes, {manifest.image_size} × {manifest.image_size}"
    )


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(self.format(record))


@contextmanager
def _messages_shown() -> Iterator[None]:
    """What `repro.data` logs goes to stderr, as it is."""
    logger, handler = logging.getLogger("repro.data"), _ToStderr()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _progress(doing: str) -> Progress:
    """Rewrites one line on a terminal; on anything else a line every ten seconds."""
    terminal = sys.stderr.isatty()
    pause = 0.2 if terminal else 10.0
    started = time.monotonic()
    next_line = started + pause

    def show(done: int, total: int | None, unit: str = "bytes", /) -> None:
        nonlocal next_line
        now = time.monotonic()
        finished = total is not None and done >= total
        if now < next_line and not (finished and terminal):
            return
        next_line = now + pause
        if unit == "bytes":
            whole = f" of {total / 1e6:,.1f}" if total else ""
            line = f"{doing} {done / 1e6:,.1f}{whole} MB"
        else:
            whole = f" of {total:,}" if total else ""
            line = f"{doing} {done:,}{whole} {unit}"
        rate = done / max(now - started, 1e-9)
        if unit != "bytes":
            line += f", {rate:,.0f} a second"
        if total and done and not finished:
            line += f", {format_seconds((total - done) / rate)} left"
        end = "\n" if finished or not terminal else "\r"
        # \x1b[K clears what a longer line before left behind.
        print(f"\r{line}\x1b[K" if terminal else line, end=end, file=sys.stderr, flush=True)

    return show
