"""`repro data`: fetch, prepare, verify and list the data sets."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from repro import data
from repro.manifest import Manifest, prepared_folder


def fetch_set(name: str, folder: Path) -> None:
    """Downloads the source files of `name`; does nothing where they are."""
    place = data.fetch(name, folder, _progress("fetched"), _say)
    _say(f"{name}: source files in {place}")


def prepare_set(name: str, folder: Path) -> None:
    """Makes the arrays of `name`."""
    started = time.monotonic()
    manifest = data.prepare(name, folder, _progress("prepared"), _say)
    seconds = time.monotonic() - started
    _say(f"{name}: {_describe(manifest)}, in {prepared_folder(folder, name)} ({seconds:.1f} s)")


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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _progress(doing: str) -> Callable[[int, int | None], None]:
    """Rewrites one line on a terminal; on anything else a line every ten seconds."""
    terminal = sys.stderr.isatty()
    next_line = time.monotonic() + (0.2 if terminal else 10.0)

    def show(done: int, total: int | None) -> None:
        nonlocal next_line
        now = time.monotonic()
        finished = total is not None and done >= total
        if now < next_line and not (finished and terminal):
            return
        next_line = now + (0.2 if terminal else 10.0)
        whole = f" of {total / 1e6:,.1f}" if total else ""
        line = f"{doing} {done / 1e6:,.1f}{whole} MB"
        end = "\n" if finished or not terminal else "\r"
        print(f"\r{line}" if terminal else line, end=end, file=sys.stderr, flush=True)

    return show
