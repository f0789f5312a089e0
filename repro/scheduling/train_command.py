"""The one command that is ever launched: `repro train RUN_ID…`, for machines and for people."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from repro.scheduling.slots import Slot

StalePolicy = Literal["keep", "rerun"]
"""What becomes of a run whose record was made by older code: it counts, or it is trained again."""


@dataclass(frozen=True)
class TrainCommand:
    """Everything of the command but the runs and the slot; `program` is what starts this package.

    `threads` are the CPU threads of one run, `precision` None leaves the choice to the device, and so do
    techniques that are neither switched `on` nor `off`; `checkpoint_interval` (seconds) None leaves it to
    `repro train`.
    """

    preset: str
    results: Path
    data: Path
    threads: int
    stale: StalePolicy = "keep"
    precision: str | None = None
    deterministic: bool = False
    switch_on: tuple[str, ...] = ()
    switch_off: tuple[str, ...] = ()
    log: str | None = None
    checkpoint_interval: float | None = None
    program: tuple[str, ...] = (sys.executable, "-m", "repro")

    def argv(self, runs: Sequence[str], slot: Slot) -> tuple[str, ...]:
        """The command that trains `runs`, in order, on `slot`."""
        return (*self.program, *self._arguments(runs, slot), "--co-tenants", str(slot.co_tenants))

    def line(self, runs: Sequence[str], slot: Slot) -> str:
        """The same as a line to paste into a shell: it trains `runs` alone on the same device."""
        line = shlex.join(("repro", *self._arguments(runs, slot)))
        return f"CUDA_VISIBLE_DEVICES={slot.uuid} {line}" if slot.uuid else line

    def _arguments(self, runs: Sequence[str], slot: Slot) -> list[str]:
        words = ["train", *runs, "--preset", self.preset, "--results", str(self.results)]
        words += ["--data-dir", str(self.data), "--device", slot.device, "--threads", str(self.threads)]
        if self.stale == "rerun":
            words += ["--stale", "rerun"]
        if self.precision:
            words += ["--precision", self.precision]
        if self.deterministic:
            words += ["--deterministic"]
        for option, names in (("--with", self.switch_on), ("--without", self.switch_off)):
            words += [word for name in names for word in (option, name)]
        if self.log:
            words += ["--log", self.log]
        if self.checkpoint_interval is not None:
            words += ["--checkpoint-interval", f"{self.checkpoint_interval:g}"]
        return words
