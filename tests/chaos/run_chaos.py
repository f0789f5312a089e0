"""A chaos test: undisturbed runs, then rounds of a sweep until there were enough faults, then the report."""

import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from chaos.audit import Finding, audit
from chaos.damage import Damages
from chaos.faults import Draw, Tally
from chaos.interposer import Event, Interposer
from chaos.report import Report
from chaos.round import Overdue, Round
from chaos.sweep import SmallDisk, Sweep, Workload, tracebacks, train_alone
from repro.errors import UsageError
from repro.records import RunRecord

TWO = ("cross-entropy", "scaled-bn-m1")
FEW = ("cross-entropy", "am-softmax-s7.5-m0.35", "pedcc-s7.5-m0.35", "scaled-bn-m1")
ALL = (
    *FEW,
    "am-softmax-s10-m0.5",
    "pedcc-s10-m0.5",
    "scaled-bn-m0.8",
    "scaled-bn-m0.9",
)
IDLE_ROUNDS = 5
"""Rounds in a row without any fault after which a chaos test gives up."""


@dataclass(frozen=True)
class ChaosOptions:
    """How many faults, from which seed, of which kinds (globs), on what, and how patient.

    A worker has `orphan_seconds` after its supervisor's end, and every process `stop_seconds` after
    `repro stop --now`, its imports included.
    """

    faults: int = 200
    seed: int = 0
    only: tuple[str, ...] = ("*",)
    workload: Workload | None = None
    orphan_seconds: float = 10.0
    stop_seconds: float = 30.0

    def what_is_trained(self) -> Workload:
        """Two runs for a short test, one per kind of loss for a longer one, the whole column for a long one."""
        if self.workload:
            return self.workload
        return Workload(TWO, epochs=12) if self.faults < 50 else Workload(FEW if self.faults < 200 else ALL)


def run_chaos(
    options: ChaosOptions,
    reference: "Reference | None" = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Report:
    """Does it all in a temporary folder, which is kept only if the audit found something.

    Raises SetupError without a compiler, or where the runs cannot be trained even undisturbed.
    """
    home = Path(tempfile.mkdtemp(prefix="repro-chaos-"))
    report = None
    try:
        report = _ChaosTest(options, home, say).run(reference)
    finally:
        if report is None or not report.findings:
            shutil.rmtree(home)
    return report


@dataclass(frozen=True)
class Reference:
    """The records of undisturbed runs, the system calls of their commits and checkpoints, and how many
    checkpoints one of them writes."""

    records: dict[str, RunRecord]
    calls: frozenset[str]
    checkpoints: int


def train_reference(workload: Workload, home: Path) -> Reference:
    """Trains every run alone; `home` is a new folder for everything that is written."""
    interposer = Interposer.build(home / "control")
    records = train_alone(workload, home / "results", interposer, home / "workers.log")
    events = list(interposer.news())
    calls = {event.traced() for event in events if event.name == "call"}
    # A commit makes folders where there are none yet; which ones depends on what was committed before.
    commits_and_saves = {call for call in calls if not call.startswith("other") and "mkdir" not in call}
    saved = sum(event.name == "saved" for event in events)
    return Reference(records, frozenset(commits_and_saves), round(saved / len(records)))


class _ChaosTest:
    def __init__(self, options: ChaosOptions, home: Path, say: Callable[[str], None]) -> None:
        self.options = options
        self.home = home
        self.say = say
        self.workload = options.what_is_trained()
        self.tally = Tally()
        self.tally.wanted = options.faults
        self.draw = Draw(random.Random(options.seed), options.only)
        self.findings: list[Finding] = []
        self.exits: Counter[str] = Counter()
        self.shapes: Counter[str] = Counter()
        self.tracebacks: Counter[str] = Counter()
        self.supervisors = count(1)
        self.small_disk = False
        self.stopped = False
        self.idle_rounds = 0

    def run(self, reference: Reference | None) -> Report:
        began = time.monotonic()
        if reference is None:
            self.say(f"training {len(self.workload.losses)} runs undisturbed, to compare with")
            reference = train_reference(self.workload, self.home / "reference")
        interposer = Interposer.build(self.home / "control")
        rounds = 0
        self.say("now with faults; Ctrl-C ends them and leads to the report")
        with self._stoppable():
            while not self.tally.enough:
                rounds += 1
                self._next_round(rounds, interposer, reference)
        return self._report(interposer.events, reference, rounds, time.monotonic() - began)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """While entered, SIGINT and SIGTERM mean: no more faults, and the round is played to its end."""
        previous = {
            number: signal.signal(number, lambda number, frame: self._stop())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        self.stopped = True
        self.tally.wanted = 0

    def _next_round(self, number: int, interposer: Interposer, reference: Reference) -> None:
        before = self.tally.total()
        found = self._round(number, interposer, reference)
        self.findings += found
        self.say(
            f"round {number}: {self.tally.total() - before} faults, {self.tally.total()} of "
            f"{self.options.faults}; {len(found) or 'nothing'} found"
        )
        for finding in found:
            self.say(f"  {finding.harm}: {finding.what}")
        # A round may end before a rare kind strikes; many such rounds mean that none ever will.
        self.idle_rounds = 0 if self.tally.total() > before else self.idle_rounds + 1
        if self.idle_rounds >= IDLE_ROUNDS and not self.stopped:
            raise UsageError(
                f"{IDLE_ROUNDS} rounds passed without a fault: nothing that --kind asks for can be done here"
            )

    def _round(self, number: int, interposer: Interposer, reference: Reference) -> list[Finding]:
        folder = self.home / f"round-{number}"
        with SmallDisk(folder) as disk:
            self.small_disk = disk.mounted
            sweep = Sweep(self.workload, folder / "results", interposer, self.home / "supervisors.log")
            damages = Damages(sweep, reference.records, self.draw)
            overdue = Overdue(sweep)
            first = len(interposer.events)
            played = Round(
                sweep,
                disk,
                damages,
                self.draw,
                self.tally,
                overdue,
                self.options.orphan_seconds,
                self.options.stop_seconds,
                lambda: next(self.supervisors),
            )
            try:
                played.play()
            finally:
                disk.free()
                sweep.kill(sweep.processes())
            self.exits.update(map(_exit, played.exits))
            self.shapes.update(map(str, played.shapes))
            self.tracebacks.update(tracebacks(sweep.results))
            found = audit(sweep, reference.records, damages, interposer.events[first:], played.locks_deleted)
            found += overdue.found
            found += [Finding("lost", what) for what in played.stuck]
            if found:
                shutil.copytree(sweep.results, self.home / f"found-{number}")
        shutil.rmtree(folder)
        return found

    def _report(self, events: Sequence[Event], reference: Reference, rounds: int, seconds: float) -> Report:
        kills = [(event, call) for event in events if event.name == "fault" and (call := event.call())]
        calls = Counter(f"{call}, {_when(event)}" for event, call in kills if not call.startswith("other"))
        wanted = {f"{call}, {when}" for call in reference.calls for when in ("before", "after")}
        names = Counter(event.name for event in events)
        started = Counter(event.role for event in events if event.name == "start")
        return Report(
            faults=self.tally.total(),
            seed=self.options.seed,
            counts={
                "rounds": rounds,
                "runs": rounds * len(self.workload.losses),
                "supervisors": started["supervisor"],
                "workers": started["worker"],
                "that came to train": len({event.pid for event in events if event.name == "attempt"}),
                "attempts": names["attempt"],
                "checkpoints": names["saved"],
                "checkpoints of an undisturbed run": reference.checkpoints,
                "commits": names["link"] + names["rename"],
                "committed records damaged on purpose": _undone(events),
            },
            tables={
                "faults by kind": dict(sorted(self.tally.items())),
                "kills by system call": dict(sorted(calls.items())),
                "sweeps by what they were given": dict(sorted(self.shapes.items())),
                "exit codes of the supervisors": dict(sorted(self.exits.items())),
                "tracebacks in the logs": dict(self.tracebacks + Counter(tracebacks(self.home))),
            },
            calls_left_out=tuple(sorted(wanted - set(calls))),
            small_disk=self.small_disk,
            findings=tuple(self.findings),
            seconds=seconds,
            kept=str(self.home) if self.findings else None,
        )


def _when(event: Event) -> str:
    return "in the middle" if event.fields[0] == "tear" else event.fields[3]


def _undone(events: Sequence[Event]) -> int:
    """How often the test damaged a record that had been committed."""
    committed: set[Path] = set()
    undone = 0
    for event in events:
        if event.name in ("link", "rename"):
            committed.add(event.path)
        elif event.name == "damage" and event.path in committed:
            committed.remove(event.path)
            undone += 1
    return undone


def _exit(code: int) -> str:
    return str(code) if code >= 0 else f"signal {-code}"
