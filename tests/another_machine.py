"""A worker of another machine, as this one sees it where locks do not cross the file system."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from repro.paths import RunPaths
from repro.records import Attempt
from repro.storage import begin_attempt, note_attempt, write_whole


@contextmanager
def another_machine(paths: RunPaths, beats: bool = True, age: float = 0.0) -> Iterator[None]:
    """An attempt under way and, if it `beats`, its reports; the last one is `age` seconds old."""
    folder = begin_attempt(paths)
    now = datetime.now(UTC)
    note_attempt(
        folder,
        Attempt(
            number=1, started=now, ended=None, outcome="running", resumed_at_step=0, host="elsewhere", pid=1
        ),
    )
    gone = threading.Event()

    def report() -> None:
        beat = 0
        while not gone.wait(0.02):
            beat += 1
            write_whole(paths.progress, f'{{"beat": {beat}}}'.encode())

    write_whole(paths.progress, b'{"beat": 0}')
    reported = time.time() - age
    os.utime(paths.progress, (reported, reported))
    thread = threading.Thread(target=report)
    if beats:
        thread.start()
    try:
        yield
    finally:
        gone.set()
        if beats:
            thread.join()
