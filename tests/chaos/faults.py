"""The kinds of fault, how often each is drawn, and the count of those that happened."""

import errno
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from chaos.interposer import Role, Ticket
from repro.errors import UsageError

PAUSE = "SIGSTOP, then SIGCONT"
TWICE = "SIGINT twice"


@dataclass(frozen=True)
class Signalled:
    """Signals to a living worker or supervisor; a pause is SIGSTOP and, a moment later, SIGCONT."""

    name: str
    role: Role
    signals: tuple[signal.Signals, ...]
    weight: float


def _signalled(role: Role, **weights: float) -> list[Signalled]:
    return [
        Signalled(f"{role}: {name}", role, (signal.Signals[name],), weight)
        for name, weight in weights.items()
    ]


SIGNALS = (
    *_signalled("worker", SIGKILL=16, SIGTERM=9, SIGUSR1=9, SIGUSR2=4, SIGINT=6),
    Signalled(f"worker: {PAUSE}", "worker", (signal.SIGSTOP, signal.SIGCONT), 28),
    *_signalled("supervisor", SIGKILL=2, SIGTERM=1.5, SIGUSR1=0.5, SIGINT=1.5),
    Signalled(f"supervisor: {TWICE}", "supervisor", (signal.SIGINT, signal.SIGINT), 1.5),
    Signalled(f"supervisor: {PAUSE}", "supervisor", (signal.SIGSTOP, signal.SIGCONT), 3),
)

FULL_DISK = "the results' file system fills up"
LOCK_DELETED = "lock file deleted while held"
RESTARTED = "supervisor killed and started again at once"
STOP_NOW = "repro stop --now"
DRAIN = "repro stop"
SECOND = "a second supervisor on the same folder"
ELSEWHERE = "a second supervisor, as on another machine"

LIVE: dict[str, float] = {FULL_DISK: 4, LOCK_DELETED: 5, RESTARTED: 2, STOP_NOW: 2, DRAIN: 1}
"""What else happens while a sweep runs, beside signals."""

Damage = Literal[
    "checkpoint torn",
    "checkpoint with a flipped bit",
    "both checkpoints damaged",
    "checkpoint of another run",
    "record torn",
    "record empty",
    "record with a flipped bit",
    "record with an edited number",
    "record of another run",
    "record of another recipe",
    "attempt's note torn",
    "worker's note torn",
    "lock files deleted",
]

DAMAGES: dict[Damage, float] = {
    "checkpoint torn": 5,
    "checkpoint with a flipped bit": 6,
    "both checkpoints damaged": 3,
    "checkpoint of another run": 4,
    "record torn": 3,
    "record empty": 1,
    "record with a flipped bit": 4,
    "record with an edited number": 4,
    "record of another run": 3,
    "record of another recipe": 3,
    "attempt's note torn": 2,
    "worker's note torn": 1,
    "lock files deleted": 2,
}
"""What is done to files between two sweeps, when no process of theirs is alive."""

COMMIT_CALLS = 12
"""Calls of a commit whose folder is there already, with two to spare; a first one makes that too."""
CHECKPOINT_CALLS = 18
ATTEMPT_CALLS = 14
"""Calls from a run's lock to the second writing of its attempt's note, which is the last before its first step."""
OTHER_CALLS = 45


@dataclass
class Draw:
    """Everything random, from one seed, limited to the kinds whose names match one of `only`.

    Raises UsageError for one that matches none.
    """

    random: random.Random
    only: tuple[str, ...] = ("*",)
    _sites: dict[tuple[str, str], int] = field(
        default_factory=lambda: dict.fromkeys(
            [("kill", "commit"), ("kill", "checkpoint"), ("kill", "attempt")], 0
        )
    )

    def __post_init__(self) -> None:
        tickets = (ticket.kind for ticket, _ in [*self._for_worker(), *self._for_supervisor()])
        kinds = sorted({*(kind.name for kind in SIGNALS), *LIVE, SECOND, ELSEWHERE, *DAMAGES, *tickets})
        for pattern in self.only:
            if not any(fnmatchcase(kind, pattern) for kind in kinds):
                raise UsageError(
                    f"--kind {pattern!r} fits no kind of fault; there are:\n  " + "\n  ".join(kinds)
                )

    def wants(self, kind: str) -> bool:
        """Whether this kind was asked for."""
        return any(fnmatchcase(kind, pattern) for pattern in self.only)

    def live(self, disk_can_fill: bool) -> Signalled | str | None:
        """What happens next to a running sweep; None if nothing of it was asked for."""
        kinds: list[tuple[Signalled | str, float]] = [
            (kind, kind.weight) for kind in SIGNALS if self.wants(kind.name)
        ]
        kinds += [(kind, weight) for kind, weight in LIVE.items() if self.wants(kind)]
        kinds = [kind for kind in kinds if kind[0] != FULL_DISK or disk_can_fill]
        return _choose(self.random, kinds)

    def damage(self) -> Damage | None:
        """What to do to the files."""
        return _choose(self.random, [(kind, weight) for kind, weight in DAMAGES.items() if self.wants(kind)])

    def ticket(self, role: Role) -> Ticket | None:
        """A fault inside the next process of `role`."""
        kinds = [
            (ticket, weight)
            for ticket, weight in (self._for_worker() if role == "worker" else self._for_supervisor())
            if self.wants(ticket.kind)
        ]
        ticket = _choose(self.random, kinds)
        if ticket and (ticket.action, ticket.part) in self._sites:
            self._sites[ticket.action, ticket.part] += 1
        return ticket

    def _for_worker(self) -> list[tuple[Ticket, float]]:
        part: Literal["commit", "checkpoint"] = self.random.choice(("commit", "checkpoint"))
        nth = self.random.randint(1, 12)
        other = self.random.randint(1, OTHER_CALLS)
        full, window = errno.ENOSPC, self._window()
        return [
            (self._in_turn("commit", COMMIT_CALLS), 34),
            (self._in_turn("checkpoint", CHECKPOINT_CALLS), 24),
            (self._in_turn("attempt", ATTEMPT_CALLS), 16),
            (Ticket("worker", "kill", "other", self._when(), nth=other), 7),
            (Ticket("worker", "tear", "commit", nth=nth), 5),
            (Ticket("worker", "tear", "checkpoint", nth=nth), 5),
            (Ticket("worker", "short", nth=nth), 4),
            (Ticket("worker", "fail", nth=nth, argument=full, window_ms=window), 6),
            (Ticket("worker", "fail", nth=nth, argument=errno.EROFS, window_ms=window), 2),
            (Ticket("worker", "fail", part, nth=nth, argument=errno.EIO), 5),
            (Ticket("worker", "clock", nth=nth, argument=self._jump()), 8),
            (Ticket("worker", "nolock"), 4),
        ]

    def _for_supervisor(self) -> list[tuple[Ticket, float]]:
        nth = self.random.randint(1, 12)
        full, window = errno.ENOSPC, self._window()
        return [
            (Ticket("supervisor", "kill", when=self._when(), nth=nth), 5),
            (Ticket("supervisor", "fail", nth=nth, argument=full, window_ms=window), 2),
            (Ticket("supervisor", "clock", nth=nth, argument=self._jump()), 4),
        ]

    def _in_turn(self, part: Literal["commit", "checkpoint", "attempt"], calls: int) -> Ticket:
        """Before and after each call, one after the other: chance alone would leave some of them out."""
        site = self._sites["kill", part]
        return Ticket("worker", "kill", part, ("before", "after")[site % 2], nth=site // 2 % calls + 1)

    def _when(self) -> Literal["before", "after"]:
        return self.random.choice(("before", "after"))

    def _jump(self) -> int:
        return self.random.choice((-1, 1)) * self.random.choice((60, 3600, 86400 * 400))

    def _window(self) -> int:
        return self.random.randint(50, 1500)


_Choice = TypeVar("_Choice")


def _choose(source: random.Random, weighted: Sequence[tuple[_Choice, float]]) -> _Choice | None:
    if not weighted:
        return None
    kinds, weights = zip(*weighted, strict=True)
    return source.choices(kinds, weights)[0]


class Tally(Counter[str]):
    """The faults that happened, by kind; `wanted` is where to stop."""

    wanted = 0

    @property
    def enough(self) -> bool:
        """Whether no more is wanted."""
        return self.total() >= self.wanted
