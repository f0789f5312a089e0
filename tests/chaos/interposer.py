"""The interposer from Python: built with the system's compiler, told by tickets, read from its journal.

`interposer.c` says what it does. A ticket is meant for one process: the next worker or supervisor that starts
takes it. The journal is one file for the whole test, in the order in which things happened.
"""

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from repro.errors import SetupError

Role = Literal["worker", "supervisor"]
Action = Literal["kill", "tear", "short", "fail", "clock", "nolock"]
Part = Literal["commit", "checkpoint", "attempt", "other", "any"]

PARTS = {
    "commit": "commit",
    "checkpoint": "checkpoint's write",
    "attempt": "run's lock or attempt's note",
    "other": "worker's note, list or log",
}
"""The interposer's classes of calls, in words."""


@dataclass(frozen=True)
class Ticket:
    """A fault for the next process of `role`: `action` at the `nth` call of `part`, counted in that process.

    `kill` takes SIGKILL `before` or `after` the call; `tear` does half a write and then is killed, `short`
    goes on after it; `fail` gives the errno `argument`, for one call or for `window_ms` from it on;
    `clock` moves the wall clock by `argument` seconds; `nolock` makes the process's file locks do nothing.
    """

    role: Role
    action: Action
    part: Part = "any"
    when: Literal["before", "after"] = "before"
    nth: int = 1
    argument: int = 0
    window_ms: int = 0

    @property
    def kind(self) -> str:
        """In words; what the `fault` event of it will say."""
        return _kind(self.role, self.action, self.argument, "other" if self.part == "any" else self.part)

    def line(self) -> str:
        """As the interposer reads it."""
        return f"{self.action} {self.part} {self.when} {self.nth} {self.argument} {self.window_ms}\n"


@dataclass(frozen=True)
class Event:
    """A line of the journal; `fields` depend on `name` and usually end with a path."""

    pid: int
    role: str
    name: str
    fields: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file that it is about."""
        return Path(self.fields[-1])

    def fault(self) -> str:
        """The kind of a `fault` event, in words."""
        return _kind(self.role, self.fields[0], int(self.fields[1]), self.fields[2])

    def call(self) -> str | None:
        """The system call that a kill stood at, without what differs from run to run; None for others."""
        if self.fields[0] not in ("kill", "tear"):
            return None
        return _call(self.fields[2], self.fields[-2], self.path)

    def traced(self) -> str:
        """The same for a `call` event."""
        return _call(self.fields[0], self.fields[-2], self.path)


_IN_PLACE = {
    "short": "a write that took only half of the bytes",
    "clock": "wall clock jumps",
    "nolock": "file locks without effect",
}


def _kind(role: str, action: str, argument: int, part: str) -> str:
    if action == "kill":
        return f"{role} killed at a system call of a {PARTS[part]}"
    if action == "tear":
        return f"{role} killed in the middle of a {PARTS[part]}"
    if action == "fail":
        return f"{role}: {errno.errorcode[argument]}, {os.strerror(argument).lower()}"
    return f"{role}: {_IN_PLACE[action]}"


def _call(part: str, call: str, path: Path) -> str:
    name = re.sub(r"\d+", "N", re.sub(r"\.\d+$", "", path.name))
    if part == "commit" and ".work" not in path.parts:
        name = "the record's name" if path.suffix == ".json" else "its folder"
    return f"{part}: {call} {name}"


@dataclass
class Interposer:
    """The library and its control folder; `environment` puts a process below `folder` under its watch."""

    library: Path
    control: Path
    _read: int = 0
    _rest: bytes = b""
    _tickets: int = 0
    events: list[Event] = field(default_factory=list)

    @classmethod
    def build(cls, control: Path) -> "Interposer":
        """Compiles the library into `control`; SetupError without a working C compiler."""
        for name in ("tickets/worker", "tickets/supervisor", "taken"):
            (control / name).mkdir(parents=True)
        library = control / "interposer.so"
        source = Path(__file__).with_name("interposer.c")
        compiler = os.environ.get("CC", "cc")
        try:
            subprocess.run(
                [compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"],
                check=True,
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            raise SetupError(
                f"the chaos test compiles a small library and found no {compiler}: install a C compiler"
            ) from None
        except subprocess.CalledProcessError as error:
            raise SetupError(f"{compiler} could not compile {source}:\n{error.stderr.strip()}") from None
        return cls(library, control)

    def environment(self, folder: Path, trace: bool = False) -> dict[str, str]:
        """What a process needs to be watched; with `trace` its journal has every call."""
        preload = " ".join(filter(None, [str(self.library), os.environ.get("LD_PRELOAD", "")]))
        return {
            "LD_PRELOAD": preload,
            "REPRO_CHAOS_FOLDER": str(folder),
            "REPRO_CHAOS_CONTROL": str(self.control),
            **({"REPRO_CHAOS_TRACE": "1"} if trace else {}),
        }

    def put(self, ticket: Ticket) -> None:
        """Lays a ticket out; the next process of its role takes it."""
        self._tickets += 1
        name = f"{self._tickets:06d}"
        draft = self.control / name
        draft.write_text(ticket.line())
        draft.rename(self.control / "tickets" / ticket.role / name)

    def withdraw(self) -> None:
        """Takes back every ticket that nobody has taken."""
        for file in self.control.glob("tickets/*/*"):
            file.unlink(missing_ok=True)

    def waiting(self, role: Role) -> int:
        """Tickets that nobody has taken."""
        return len(list((self.control / "tickets" / role).iterdir()))

    def say(self, name: str, *fields: object) -> None:
        """Adds a line of the test's own, in its place among the others."""
        line = "\t".join([str(os.getpid()), "chaos", name, *map(str, fields)]) + "\n"
        with (self.control / "journal").open("a") as journal:
            journal.write(line)

    def news(self) -> Iterator[Event]:
        """The events since the last time, also kept in `events`."""
        try:
            with (self.control / "journal").open("rb") as journal:
                journal.seek(self._read)
                content = journal.read()
        except FileNotFoundError:
            return
        self._read += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            pid, role, name, *fields = line.decode().split("\t")
            event = Event(int(pid), role, name, tuple(fields))
            self.events.append(event)
            yield event
