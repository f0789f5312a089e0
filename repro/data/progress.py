"""How far a long step has come: a bar on a terminal, elsewhere a line of the log every ten seconds."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 10.0  # seconds between two lines of a log

_log = logging.getLogger(__name__)


@contextmanager
def progress(doing: str, total: int | None, unit: str) -> Iterator[Callable[[int], object]]:
    """Hands over what counts further `unit`s ("bytes", "images"); silent unless INFO is logged.

    `total` is how many there are in all, None where that is unknown.
    """
    if not _log.isEnabledFor(logging.INFO):
        yield lambda count: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        counted = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = ("{task.description}", BarColumn(), counted, unit, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        done, next_line = 0, time.monotonic() + PAUSE

        def advance(count: int) -> None:
            nonlocal done, next_line
            done += count
            if (now := time.monotonic()) >= next_line:
                next_line = now + PAUSE
                _log.info("%s %s%s %s", doing, f"{done:,}", f" of {total:,}" if total else "", unit)

        yield advance
