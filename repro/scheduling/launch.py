"""One worker under way, and whether it shows signs of life."""

from dataclasses import dataclass, field

from repro.scheduling.causes import Cause
from repro.scheduling.events import Running
from repro.scheduling.executors.base import Job
from repro.scheduling.interruption import Stage
from repro.scheduling.progress import read_progress
from repro.scheduling.pulse import Pulse
from repro.scheduling.watch import RunWatch


@dataclass
class Launch:
    """A worker under way: `watches` are its runs that have not ended, `told` what it was asked.

    `alone`: its run must have the device to itself. `ending` is why the scheduler itself ends the worker, at
    `kill_at` (of time.monotonic) the hard way. `oom_kills` is the kernel's count when it began.
    """

    job: Job
    watches: dict[str, RunWatch]
    oom_kills: int
    alone: bool = False
    told: Stage = Stage.GO_ON
    began_a_run: bool = False
    ending: Cause | None = None
    kill_at: float | None = None
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def on_gpu(self) -> bool:
        """Whether it trains on a GPU."""
        return self.job.slot.device == "cuda"

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine, with this kernel and this driver."""
        return self.job.slot.host is None

    def in_hand(self) -> Running:
        """The run that it trains now, as far as the disk tells."""
        for run, watch in reversed(self.watches.items()):
            if attempt := watch.latest_attempt():
                return Running(self.job, run, attempt.number, began=True)
        return Running(self.job, None, 0, self.began_a_run)

    def feel(self, elapsed: float) -> bool:
        """Looks for a sign of life; whether the run in hand has reported any progress yet."""
        hand = self.in_hand()
        watch = self.watches.get(hand.run) if hand.run else None
        try:
            written = self.job.log.stat().st_size
        except FileNotFoundError:
            written = 0
        self.pulse.feel((written, hand.run, watch and watch.signs()), elapsed)
        report = watch and read_progress(watch.paths.progress)
        return bool(report and report.attempt == hand.attempt)
