"""The parts of the model in protocol_model.py: rules, runs, workers, devices, and what a sweep has to deal with."""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from repro.attempts import AttemptNote

STEPS = 12  # of a run
CHECKPOINT = 4  # steps between two checkpoints
MOST_TURNS = 60_000  # a sweep that takes longer never ends
MOST_ATTEMPTS = 60
MOST_STARTS_IN_VAIN = 20  # of a device's workers in a row
TURNS = Generator[None, None, None]


class Rule(StrEnum):
    """What can be knocked out."""

    ALONE = "only a crash alone in the process counts, and a suspect is alone"
    PROGRESS = "what came before a later saved step is forgiven"
    BOUND = "ten interruptions are enough"
    FOLDER = "an attempt without a note is a crash"
    UNDER_LOCK = "a dead attempt is judged under its run's lock"
    STOPPING = "a worker says that it is stopping before it stops"
    MEMORY = "out of memory counts for devices of that size only"
    DATA = "a run whose data are missing is left to others"
    LEFT = "no worker starts for runs that its device cannot train"
    SELF_TEST = "a device is tested before it gets a run"
    STARTS = "a device whose workers die before their first run is left out"
    BASELINE = "any record since the sweep was planned counts, and is never replaced"
    FENCE = "an attempt ends when there is a newer one"


@dataclass
class Attempt:
    """`note` is None until it is written; `saved` is the last step in its folder's checkpoints."""

    life: "Life"
    note: AttemptNote | None = None
    saved: int = 0
    step: int = 0
    late_steps: int = 0  # taken after a newer attempt had begun


@dataclass(eq=False)
class Run:
    """`behaviour` is what happens when it is trained; `memory` what it takes."""

    dataset: int
    behaviour: str = "healthy"
    memory: int = 1
    holder: "Life | None" = None
    attempts: list[Attempt] = field(default_factory=list)
    checkpoint: tuple[int, str] | None = None  # step and arithmetic
    record: str | None = None  # the code that made it
    commits: list[str] = field(default_factory=list)
    kills: int = 0  # from outside, since its last progress
    stops: int = 0


@dataclass(eq=False)
class Life:
    """A worker: what its note says is `phase` and `company`, the number of its runs."""

    active: dict[Run, Attempt] = field(default_factory=dict)
    asked: bool = False
    checkpointing: bool = False
    phase: str = "starting"
    company: int = 0
    stepped: bool = False
    left: set[Run] = field(default_factory=set)


@dataclass(eq=False)
class Device:
    """A device, and what its supervisor knows of it."""

    memory: int
    data: Collection[int] = (0, 1)
    broken: bool = False
    code: str = "A"
    arithmetic: str = "x"
    sweep: int = 0
    life: Life | None = None
    turns: TURNS | None = None
    left: frozenset[Run] = frozenset()
    deaths_at_start: int = 0
    starts_in_vain: int = 0
    kills: int = 0  # from outside, without a step in between
    out: bool = False


class DiedError(Exception):
    """The process is gone, by its own doing."""


@dataclass(frozen=True)
class Scenario:
    """What a sweep has to deal with; probabilities are per turn of a worker."""

    behaviours: dict[int, str] = field(default_factory=dict)
    workers: int = 3
    sweeps: int = 1
    runs_at_once: int = 4
    runs: int = 18
    broken: int = 0
    without_data: int = 0
    small: int = 0
    codes: Sequence[str] = "A"
    arithmetics: Sequence[str] = "x"
    kill: float = 0.004
    stop: float = 0.002
    kill_stopping: float = 0.0
    lose_lock: float = 0.0


SCENARIOS = {
    "segfault at step 2": Scenario({3: "segfault", 9: "segfault"}),
    "segfault late, sticky CUDA error": Scenario({2: "segfault late", 7: "sticky"}),
    "errors, kills, stops": Scenario({4: "error"}, stop=0.01),
    "killed very often": Scenario(kill=0.05, runs_at_once=1),
    "stopped, then killed": Scenario(stop=0.05, kill=0.0, kill_stopping=0.5, runs_at_once=1),
    "stopped again and again": Scenario({2: "slow"}, stop=0.05, kill=0.0),
    "a broken device": Scenario(broken=1),
    "no device that works": Scenario(broken=2, workers=2),
    "a data set missing on one": Scenario(without_data=1),
    "a data set missing on all": Scenario(without_data=3),
    "small devices beside a large one": Scenario({5: "big", 6: "big"}, small=2),
    "two codes": Scenario(codes="AB", sweeps=2, workers=2, kill=0.001),
    "two arithmetics, segfault late": Scenario(
        {2: "segfault late"}, arithmetics="xy", workers=2, runs_at_once=1
    ),
    "two supervisors": Scenario({4: "error", 8: "segfault"}, sweeps=2, workers=4),
    "locks are lost": Scenario(lose_lock=0.01),
    "killed between folder and note": Scenario({3: "dies in the folder"}),
}
