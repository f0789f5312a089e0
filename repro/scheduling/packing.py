"""How many runs should share a device: as many as pay, and as fit its memory. A function of measurements."""

from collections.abc import Iterable, Sequence

from repro.scheduling.probes import ProbeResult

LADDER = (1, 2, 3, 4, 6, 8, 12, 16)
"""The numbers of runs at once that are measured."""

WORTHWHILE = 1.05
"""So many times more images a second must a further step bring."""

MEMORY_SHARE = 0.9
"""Of the device's memory that runs may fill, as measured; an allocator needs room to breathe."""


def choose_copies(results: Iterable[ProbeResult], memory_bytes: int) -> int:
    """The fewest runs at once that come within 5 % of the best total speed, and fit; 1 if nothing is known.

    Fewer are better at equal speed: each run ends sooner, and less memory is in use.
    """
    fitting = [result for result in results if fits(result, memory_bytes, result.copies)]
    if not fitting:
        return 1
    best = max(result.images_per_second for result in fitting)
    good = (result.copies for result in fitting if result.images_per_second * WORTHWHILE >= best)
    return min(good)


def next_copies(results: Sequence[ProbeResult], memory_bytes: int, most: int) -> int | None:
    """How many to measure next; None once one more does not pay, does not fit or is more than `most`."""
    if not results:
        return 1
    measured = sorted(results, key=lambda result: result.copies)
    last = measured[-1]
    if len(measured) > 1:
        before = max(result.images_per_second for result in measured[:-1])
        if last.images_per_second < before * WORTHWHILE:
            return None
    for copies in LADDER:
        if copies > last.copies:
            return copies if copies <= most and fits(last, memory_bytes, copies) else None
    return None


def fits(result: ProbeResult, memory_bytes: int, copies: int) -> bool:
    """Whether so many runs, each with what the measured one took, find room on the device."""
    return copies * result.memory_bytes <= MEMORY_SHARE * memory_bytes
