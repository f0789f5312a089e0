"""What a time budget buys: whole columns, the cheapest first.

A part is what one column (a network on one data set) lacks at one seed, all losses of it: only parts that
are whole give numbers that can be compared. The column with the least left to do comes first, seed by seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repro.registry import Run
from repro.scheduling.durations import format_seconds
from repro.scheduling.estimate import Duration, Estimate

START_UP = 10.0
"""Seconds that a worker may take to import, to load the data and to make its first step."""


@dataclass(frozen=True)
class Part:
    """The runs that a column lacks at one seed; `wall` is None where no speed is known."""

    dataset: str
    network: str
    seed: int
    runs: tuple[Run, ...]
    wall: Duration | None

    @property
    def cost(self) -> float:
        """Seconds that are surely enough; infinite where no speed is known."""
        return self.wall.high + START_UP if self.wall else float("inf")

    def __str__(self) -> str:
        runs = "1 run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return f"{self.dataset}/{self.network} seed {self.seed} ({runs}, {self.wall or 'no estimate'})"


@dataclass(frozen=True)
class Budget:
    """How `seconds` are spent: `fits` is trained whole, in order; what is left over begins `rest`.

    What of the rest is not done in time leaves checkpoints, so that the same command goes on from there.
    """

    seconds: float
    fits: tuple[Part, ...]
    rest: tuple[Part, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run to do, in the order in which it is trained."""
        return tuple(run for part in (*self.fits, *self.rest) for run in part.runs)

    def lines(self) -> list[str]:
        """What the budget buys, in sentences."""
        whole = format_seconds(self.seconds)
        if not self.runs:
            return [f"budget {whole}: no run is left that could be trained here"]
        if not self.fits:
            return [
                f"budget {whole}: no column's seed fits whole; it begins {self.rest[0]}, "
                "and leaves checkpoints from which the same command goes on"
            ]
        count = len(self.fits) + len(self.rest)
        took = Duration.sum(part.wall for part in self.fits if part.wall)
        lines = [f"budget {whole}: {len(self.fits)} of {count} column seeds fit, in {took}:"]
        lines += [f"  {part}" for part in self.fits]
        if self.rest:
            lines.append(f"  what time is left begins {self.rest[0]}, and leaves checkpoints")
        return lines


def spend(seconds: float, runs: Sequence[Run], estimate: Callable[[Sequence[Run]], Estimate]) -> Budget:
    """Orders `runs`, those still to do, for a budget: what fits by its longest estimate, and the rest.

    `estimate` says how long runs of one column take. Columns without an estimate come last, in their order.
    """
    columns: dict[tuple[str, str], dict[int, list[Run]]] = {}
    for run in runs:
        seeds = columns.setdefault((run.cell.dataset, run.cell.network), {})
        seeds.setdefault(run.seed, []).append(run)
    ordered: list[tuple[float, list[Part]]] = []
    for (dataset, network), seeds in columns.items():
        parts = [
            Part(dataset, network, seed, tuple(part), estimate(part).wall) for seed, part in seeds.items()
        ]
        ordered.append((sum(part.cost for part in parts), parts))
    ordered.sort(key=lambda column: column[0])
    fits: list[Part] = []
    rest: list[Part] = []
    left = seconds
    for _, parts in ordered:
        for part in parts:
            if part.cost <= left:
                left -= part.cost
                fits.append(part)
            else:
                rest.append(part)
    # A begun run of the rest is finished soonest where the least is missing.
    rest.sort(key=lambda part: part.cost)
    return Budget(seconds, tuple(fits), tuple(rest))
