"""One round: a sweep from an empty folder to its last record, with faults as long as they are wanted."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chaos.audit import Finding, Harm
from chaos.damage import Damages
from chaos.faults import (
    DAMAGES,
    DRAIN,
    ELSEWHERE,
    FULL_DISK,
    LOCK_DELETED,
    RESTARTED,
    SECOND,
    STOP_NOW,
    Draw,
    Signalled,
    Tally,
)
from chaos.interposer import Role
from chaos.sweep import SHAPES, Shape, SmallDisk, Sweep, SweepProcess, supervisor_of
from repro.errors import IntegrityError

BETWEEN_FAULTS = (0.4, 0.8, 1.5, 4.0)
"""Mean seconds between what happens to a sweep, one of them drawn for each: under the quickest hardly a run
comes to its commit, and under the slowest most do."""
STUCK_AFTER = 240.0
"""Seconds without a sign of life after which a sweep counts as stuck; its longest silence is an import."""
QUIET_SWEEPS = 8
"""Undisturbed sweeps that a round may need to its end; runs out of attempts start afresh with each."""
POLL = 0.05


@dataclass
class Overdue:
    """Looks for processes that live longer than they may."""

    sweep: Sweep
    found: list[Finding] = field(default_factory=list)
    _until: dict[tuple[int, Harm], tuple[float, str]] = field(default_factory=dict)

    def expect_end(self, supervisor: int, seconds: float, harm: Harm, event: str) -> None:
        """From now on a supervisor and its workers have so many seconds to end after `event`."""
        what = f"{seconds:g} s after {event}"
        self._until.setdefault((supervisor, harm), (time.monotonic() + seconds, what))

    def look(self) -> bool:
        """Notes and ends every process whose time is up; whether some still have time."""
        for (supervisor, harm), (until, what) in list(self._until.items()):
            alive = self.sweep.processes(supervisor)
            if alive and time.monotonic() < until:
                continue
            del self._until[supervisor, harm]
            self.found += [Finding(harm, f"process {process.pid} alive {what}") for process in alive]
            self.sweep.kill(alive)
        return bool(self._until)


@dataclass
class Round:
    """Plays one round; what it leaves is for the audit."""

    sweep: Sweep
    disk: SmallDisk
    damages: Damages
    draw: Draw
    tally: Tally
    overdue: Overdue
    orphan_seconds: float
    stop_seconds: float
    number_of_supervisors: Callable[[], int]
    stuck: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    locks_deleted: set[Path] = field(default_factory=set)
    _started: set[int] = field(default_factory=set)
    _workers: set[int] = field(default_factory=set)
    _training: set[int] = field(default_factory=set)
    _next: Signalled | str | None = None
    _later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    _sign_of_life: float = 0.0

    def play(self) -> None:
        """Until every run has a valid record, or undisturbed sweeps do not get there."""
        quiet = 0
        self._damage()
        while not self._complete():
            quiet += self.tally.enough
            if quiet > QUIET_SWEEPS or self.stuck:
                break
            self._sweep()
            if self.tally.enough or self.draw.random.random() < 0.7:
                self._settle()
                self._damage()
        self._settle()

    def _complete(self) -> bool:
        for run in self.sweep.runs:
            try:
                if self.sweep.record(run) is None:
                    return False
            except IntegrityError:
                return False
            if self.sweep.paths(run).record.read_bytes() in self.damages.superseded:
                return False
        return True

    def _settle(self) -> None:
        """Waits until nothing of the sweep is alive, or has been found to live too long."""
        while self.overdue.look():
            time.sleep(POLL)
        self._read_journal()

    def _damage(self) -> None:
        if any(self.draw.wants(kind) for kind in DAMAGES):
            for _ in range(self.draw.random.randint(0, 5)):
                kind = self.draw.damage()
                # A finished run whose record is taken from it trains again from its first step: that is dear.
                finished = kind is not None and kind.startswith("record") and self.draw.random.random() < 0.3
                if kind and not self.tally.enough and self.damages.do(kind, finished):
                    self.tally[kind] += 1

    def _sweep(self) -> None:
        """One supervisor, at times two, from start to end."""
        self._lay_tickets()
        self._start()
        second = None
        kinds = [kind for kind in (SECOND, ELSEWHERE) if self.draw.wants(kind)]
        share = 0.25 if self.draw.only == ("*",) else 1
        if not self.tally.enough and kinds and self.draw.random.random() < share:
            second = time.monotonic() + self.draw.random.uniform(0, 4)
        mean = self.draw.random.choice(BETWEEN_FAULTS)
        next_fault = time.monotonic() + self.draw.random.expovariate(1 / mean)
        while self._started:
            time.sleep(POLL)
            now = time.monotonic()
            self._read_journal()
            self.overdue.look()
            for due, action in [entry for entry in self._later if entry[0] <= now]:
                self._later.remove((due, action))
                action()
            if not self.tally.enough and now >= next_fault:
                self._strike()
                next_fault = now + self.draw.random.expovariate(1 / mean)
            if second is not None and now >= second:
                second = None
                kind = self.draw.random.choice(kinds)
                self._start("elsewhere" if kind == ELSEWHERE else None)
                self.tally[kind] += 1
            if now - self._sign_of_life > STUCK_AFTER:
                self.stuck.append(
                    f"no sign of life for {STUCK_AFTER:g} s from supervisor {sorted(self._started)}"
                )
                self.sweep.kill(self.sweep.processes())
            alive = {process.supervisor for process in self.sweep.running()}
            for supervisor in self._started - alive:
                self.exits.append(self.sweep.supervisors[supervisor].returncode)
                self.overdue.expect_end(supervisor, self.orphan_seconds, "orphan", "its supervisor's end")
            self._started = alive
        for _, action in self._later:
            action()
        self._later.clear()
        self.sweep.interposer.withdraw()

    def _start(self, host: str | None = None) -> None:
        number, shape = self.number_of_supervisors(), self.draw.random.choice(SHAPES)
        self.sweep.start(number, shape, host)
        self.shapes.append(shape)
        self._started.add(number)
        self._sign_of_life = time.monotonic()

    def _lay_tickets(self) -> None:
        for _ in range(self.draw.random.randint(1, 3)):
            self._lay_ticket("worker")
        if self.draw.random.random() < 0.25:
            self._lay_ticket("supervisor")

    def _lay_ticket(self, role: Role) -> None:
        if not self.tally.enough and (ticket := self.draw.ticket(role)):
            self.sweep.interposer.put(ticket)

    def _read_journal(self) -> None:
        for event in self.sweep.interposer.news():
            self._sign_of_life = time.monotonic()
            if event.name == "start" and event.role == "worker":
                self._workers.add(event.pid)
            elif event.name == "saved":
                # Its first checkpoint is written before its first step; an attempt begins seconds before.
                self._training.add(event.pid)
            elif event.name == "fault":
                self.tally[event.fault()] += 1
            elif event.name == "ticket" and self.draw.random.random() < 0.6:
                self._lay_ticket("worker")

    def _strike(self) -> None:
        """Does what is drawn; while there is nothing to do it to, the same is tried again later.

        Drawing anew would favour supervisors, since a worker spends half of its life before it trains.
        """
        self._next = self._next or self.draw.live(self.disk.mounted)
        if self._next is not None and self._strike_with(self._next):
            self._next = None

    def _strike_with(self, kind: Signalled | str) -> bool:
        if kind == FULL_DISK:
            self.disk.fill()
            self._afterwards(self.draw.random.uniform(0.2, 2.0), self.disk.free)
            self.tally[FULL_DISK] += 1
            return True
        if kind == LOCK_DELETED:
            return self._delete_lock()
        if kind in (STOP_NOW, DRAIN):
            return self._ask_to_stop(now=kind == STOP_NOW)
        if kind == RESTARTED:
            return self._restart()
        assert isinstance(kind, Signalled)
        victim = self._victim(kind)
        if victim is None or not victim.send(kind.signals[0]):
            return False
        self.tally[kind.name] += 1
        if len(kind.signals) > 1:
            self._afterwards(
                self.draw.random.uniform(0.05, 0.6), lambda: self._send_if_same(victim, kind.signals[1])
            )
        return True

    def _send_if_same(self, process: SweepProcess, number: signal.Signals) -> None:
        # The number may be another process's by now.
        if supervisor_of(process.pid) == process.supervisor:
            process.send(number)

    def _victim(self, kind: Signalled) -> SweepProcess | None:
        supervisors = self.sweep.running()
        if kind.role == "supervisor":
            return self.draw.random.choice(supervisors) if supervisors else None
        # Mostly in training: half of a worker's life is its imports, where there is little to break.
        among = self._training if self.draw.random.random() < 0.9 else self._workers
        workers = [process for process in self.sweep.processes() if process.pid in among]
        return self.draw.random.choice(workers) if workers else None

    def _ask_to_stop(self, now: bool) -> bool:
        if not any(process.pid in self._training for process in self.sweep.processes()):
            return False
        asked = self.sweep.ask_to_stop(now)
        for supervisor in asked if now else ():
            self.overdue.expect_end(supervisor, self.stop_seconds, "stop ignored", "repro stop --now")
        if asked:
            self.tally[STOP_NOW if now else DRAIN] += 1
        return bool(asked)

    def _restart(self) -> bool:
        """The new one meets the old one's workers, which have a few seconds for their checkpoints."""
        running = self.sweep.running()
        if not running or not self.draw.random.choice(running).send(signal.SIGKILL):
            return False
        self._start()
        self.tally[RESTARTED] += 1
        return True

    def _delete_lock(self) -> bool:
        held = _locked_inodes()
        locks = [lock for lock in sorted(self.sweep.results.rglob("lock")) if lock.stat().st_ino in held]
        if not locks:
            return False
        lock = self.draw.random.choice(locks)
        lock.unlink()
        self.locks_deleted.add(lock)
        self.tally[LOCK_DELETED] += 1
        return True

    def _afterwards(self, seconds: float, action: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, action))


def _locked_inodes() -> set[int]:
    """The inodes of all files on which a process has a lock."""
    lines = Path("/proc/locks").read_text().splitlines()
    return {int(line.split()[-3].rpartition(":")[2]) for line in lines if "->" not in line}
