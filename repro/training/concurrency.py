"""How many runs a process trains at once on a GPU: one more while that pays and memory allows."""

import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import PositiveInt, TypeAdapter

from repro.errors import SetupError
from repro.storage import write_whole

ROUNDS = 50  # steps of each run in one measurement
MEASUREMENTS = 4  # their median decides
WORTHWHILE = 1.05  # times the total speed that one more run must bring
MEMORY_MARGIN = 1.2  # times what the last run took must be free for another


class Concurrency:
    """Decides when a run may join: up to `limit`, which "auto" raises by one while the total speed grows.

    A round is one step of each run. Rounds with an evaluation or a capture are not measured.
    """

    def __init__(self, limit: int, device: torch.device, cache: Path | None = None, kind: str = "") -> None:
        self.limit = limit
        self._device = device
        self._cache = cache  # None once nothing is to be measured
        self._kind = kind
        self._speeds: dict[int, float] = {}  # runs at once → rounds per second × runs
        self._measured: list[float] = []
        self._rounds = 0
        self._began = 0.0
        self._runs = 0
        self._exhausted = self._disturbed = False
        self._growth = 0

    @classmethod
    def of(cls, asked: "int | Literal['auto']", device: torch.device, cache: Path, kind: str) -> Self:
        """As asked. "auto" is what `cache` has for runs of this `kind` from before, else measured.

        On a CPU it is one run per process, where each process has cores of its own.
        """
        if asked != "auto":
            return cls(asked, device)
        if device.type != "cuda":
            return cls(1, device)
        kind = f"{torch.cuda.get_device_name(device)}, {kind}"
        found = _read(cache).get(kind)
        return cls(found, device) if found else cls(1, device, cache, kind)

    def may_add(self, runs: int) -> bool:
        """Whether one more than `runs` runs is wanted and would fit."""
        return runs < self.limit and not self._exhausted and self._fits()

    def added(self, reserved: int) -> None:
        """A run has joined, and has taken so many bytes of the device."""
        self._growth = max(self._growth, reserved)
        self.disturbed()

    def removed(self) -> None:
        """A run has ended: there may be room for another."""
        self._exhausted = False
        self.disturbed()

    def nothing_to_add(self) -> None:
        """No run is left that could join; asked again once one has ended."""
        self._exhausted = True

    def too_many(self, runs: int) -> None:
        """So many ran out of memory."""
        self.limit = max(1, runs - 1)
        self._cache = None

    def disturbed(self) -> None:
        """The round under way, and so the measurement, is worth nothing."""
        self._disturbed = True

    def begin_round(self, runs: int) -> None:
        """Before one step of each of `runs` runs."""
        if runs != self._runs:
            self._runs, self._disturbed = runs, True
            self._measured.clear()
        if self._disturbed:
            self._rounds, self._disturbed = 0, False
        if self._cache and self._rounds == 0:
            self._wait()
            self._began = time.perf_counter()

    def end_round(self) -> None:
        """After it."""
        self._rounds += 1
        if self._disturbed or not self._cache or self._rounds <= ROUNDS or self._runs < self.limit:
            return
        self._wait()  # launches run ahead of the device: only now is what was launched also done
        self._measured.append(self._runs * self._rounds / (time.perf_counter() - self._began))
        self._rounds = 0
        if len(self._measured) == MEASUREMENTS:
            self._decide(statistics.median(self._measured), self._cache)
            self._measured.clear()

    def _decide(self, speed: float, cache: Path) -> None:
        self._speeds[self._runs] = speed
        before = self._speeds.get(self._runs - 1)
        if before is None or speed >= before * WORTHWHILE:
            self.limit = self._runs + 1
        else:
            # No run is ended for speed; once one has, none takes its place.
            self.limit = self._runs - 1
            self._cache = None
            known = {**_read(cache), self._kind: self.limit}
            with contextlib.suppress(SetupError):  # a cache: measured again next time
                write_whole(cache, json.dumps(known, indent=1).encode())

    def _fits(self) -> bool:
        if self._device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + unused >= MEMORY_MARGIN * self._growth

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _read(cache: Path) -> dict[str, int]:
    try:
        return TypeAdapter(dict[str, PositiveInt]).validate_json(cache.read_bytes())
    except (OSError, ValueError):
        return {}
