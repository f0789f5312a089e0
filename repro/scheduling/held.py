"""Runs that other processes train, at the same results folder: left to them, or taken over from the dead."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from repro.commit import attempts_of, break_lock, is_held, is_reported_elsewhere
from repro.registry import Run
from repro.scheduling.events import Elsewhere, Listener, Notice
from repro.scheduling.pulse import Pulse
from repro.scheduling.watch import RunWatch


@dataclass
class HeldRuns:
    """The runs that others have in hand; `tell` hears of each that is met and of each taken over."""

    tell: Listener
    _watches: dict[str, RunWatch] = field(default_factory=dict)
    _holders: dict[str, Pulse] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._watches)

    def __iter__(self) -> Iterator[str]:
        return iter(self._watches)

    def add(self, watch: RunWatch) -> None:
        """One more."""
        self._watches[watch.run.id] = watch
        self.tell(Elsewhere(watch.run.id))

    def freed(self, elapsed: float, patience: float, is_done: Callable[[Run], bool]) -> Iterator[Run]:
        """Looks again, `elapsed` seconds later, and gives the runs that must be trained after all.

        Those that `is_done` are held no more. A lock that another machine has held without a sign of life
        for `patience` seconds counts no more: a network file system may keep a dead machine's for ever.
        """
        for name, watch in list(self._watches.items()):
            if not is_done(watch.run):
                held = is_held(watch.paths) and not self._is_abandoned(watch, elapsed, patience)
                # Where locks do not cross machines, reports are the only sign of the one that trains it.
                if held or is_reported_elsewhere(watch.paths):
                    continue
                yield watch.run
            del self._watches[name]
            self._holders.pop(name, None)

    def _is_abandoned(self, watch: RunWatch, elapsed: float, patience: float) -> bool:
        """Takes the run over from another machine that has been silent for too long."""
        holder = self._holders.setdefault(watch.run.id, Pulse())
        holder.feel(watch.signs(), elapsed)
        attempts = attempts_of(watch.paths)
        host = attempts[-1].host if attempts else None
        # Of this machine's locks its kernel keeps account: the holder of one is alive.
        if host in (None, socket.gethostname()) or not holder.stopped(patience):
            return False
        break_lock(watch.paths)
        self.tell(Notice(f"{watch.run.id} is taken over: {host} holds it and has shown no sign of life"))
        return True
