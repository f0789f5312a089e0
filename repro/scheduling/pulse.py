"""Signs of life of a worker, and how long there have been none.

Time is counted in the scheduler's own looks, each of a bounded length: neither a clock that jumps nor a
machine or a scheduler that was asleep looks like a worker that hangs.
"""

from dataclasses import dataclass

LONGEST_LOOK = 5.0
"""Seconds that the time between two looks counts at most."""

SLOWER = 5
"""How many times as long as its longest silence so far a worker may be silent."""


@dataclass
class Pulse:
    """One worker's signs of life: anything that changes as long as it gets on."""

    _signs: object = None
    _longest: float = 0.0
    silent: float = 0.0

    def feel(self, signs: object, elapsed: float) -> None:
        """Compares with the look before, `elapsed` seconds ago."""
        if signs != self._signs:
            self._signs = signs
            self._longest = max(self._longest, self.silent)
            self.silent = 0.0
        else:
            self.silent += min(elapsed, LONGEST_LOOK)

    def stopped(self, allowed: float) -> bool:
        """Whether it has been silent for longer than `allowed` seconds, and than a slow worker would be."""
        return self.silent > max(allowed, SLOWER * self._longest)
