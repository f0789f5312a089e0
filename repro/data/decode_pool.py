"""Decoding many images on every core, in order, a bounded number ahead.

Work is handed out in batches to processes that import numpy and Pillow and nothing else; what comes back
does not depend on how many there are. They ignore Ctrl-C, which is their parent's to handle, and end when it
does, however it does.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import pairwise

from repro.cores import usable_cores
from repro.data.decode import Decoded, DecodeRules, Wanted, decode_batch
from repro.data.download import Progress
from repro.errors import SetupError

BATCH = 128
"""Images decoded together."""
AHEAD = 3
"""Batches a process that are under way or wait to be taken: bounds the memory."""


class Decoder:
    """Decodes sequences of images with one set of processes, started when there is enough to do."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __call__(
        self, wanted: Sequence[Wanted], rules: DecodeRules, progress: Progress | None = None
    ) -> Iterator[Decoded]:
        """The images in pieces, in order.

        Raises SetupError for a file that cannot be read, or where a process died.
        """
        bounds = [*range(0, len(wanted), BATCH), len(wanted)]
        batches = (wanted[start:end] for start, end in pairwise(bounds))
        done = 0
        for decoded in self._decoded(batches, rules, alone=len(wanted) <= BATCH):
            done += len(decoded.problems)
            if progress is not None:
                progress(done, len(wanted), "images")
            yield decoded

    def close(self) -> None:
        """Ends the processes; what they had not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _decoded(
        self, batches: Iterator[Sequence[Wanted]], rules: DecodeRules, alone: bool
    ) -> Iterator[Decoded]:
        if self._processes == 1 or (alone and self._pool is None):
            for batch in batches:
                yield decode_batch(batch, rules)
            return
        if self._pool is None:
            self._pool = _start(self._processes)
        under_way: deque[Future[Decoded]] = deque()
        try:
            for batch in batches:
                under_way.append(_submit(self._pool, batch, rules))
                if len(under_way) >= AHEAD * self._processes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            raise SetupError(
                "a process that decoded images died (killed, or out of memory?): nothing was kept; "
                "start the same command again"
            ) from None


@contextmanager
def image_decoder(processes: int | None = None) -> Iterator[Decoder]:
    """A decoder on `processes` processes (one a usable core), which have ended when the block is left."""
    decoder = Decoder(processes or usable_cores())
    try:
        yield decoder
    finally:
        decoder.close()


def _start(processes: int) -> ProcessPoolExecutor:
    # Fresh interpreters: nothing of this process, whatever threads it has, is copied into them.
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_settle_in)


def _submit(pool: ProcessPoolExecutor, batch: Sequence[Wanted], rules: DecodeRules) -> Future[Decoded]:
    # The first calls start a process each: blocked, Ctrl-C cannot reach it before it ignores it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(decode_batch, batch, rules)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle_in() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in the pool's processes only
    parent.join()
    os._exit(1)
