"""Measures how fast runs of a kind train: starts one or several probes at once and reads what they say.

A probe is a command handed in from above (`repro probe`): it trains generated data, says `ready` once it is
warm, waits for a line on its stdin, measures, and answers with one line of JSON. So all copies measure
during the same seconds.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from repro.errors import SetupError
from repro.scheduling.slots import Slot

PATIENCE = 600.0
"""Seconds after which a probe is given up."""


class ProbeFailedError(Exception):
    """A probe ended without an answer: out of memory, most likely; the message is its last line."""


@dataclass(frozen=True)
class ProbeCommand:
    """The command that measures a run of one kind; `seconds` is how long it measures."""

    preset: str
    root: Path
    data: Path
    threads: int
    precision: str | None = None
    seconds: float = 5.0
    program: tuple[str, ...] = (sys.executable, "-m", "repro")

    def argv(self, run: str, slot: Slot) -> tuple[str, ...]:
        """The command for a run like `run` on `slot`."""
        words = ["probe", run, "--preset", self.preset, "--data-dir", str(self.data), "--wait"]
        words += ["--device", slot.device, "--threads", str(self.threads), "--seconds", f"{self.seconds:g}"]
        return (*self.program, *words, *(["--precision", self.precision] if self.precision else []))


@dataclass(frozen=True)
class Answer:
    """What one probe measured: its own images a second and memory."""

    images_per_second: float
    memory_bytes: int


def measure(command: ProbeCommand, run: str, slot: Slot, copies: int = 1) -> list[Answer]:
    """The answers of `copies` probes that trained at the same time on the slot's device.

    Raises ProbeFailedError if one of them ends without an answer; SetupError if none can be started.
    """
    environment = {
        **os.environ,
        **slot.environment,
        "REPRO_ROOT": str(command.root),
        "REPRO_DIE_WITH_PARENT": str(os.getpid()),
    }
    probes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryFile("w+") as said:
        guard = threading.Timer(PATIENCE, lambda: _kill(probes))
        guard.daemon = True
        guard.start()
        try:
            for _ in range(copies):
                probes.append(_start(command.argv(run, slot), environment, said))
            for probe in probes:
                _line(probe, said)
            for probe in probes:
                _tell_to_go(probe, said)
            return [_answer(_line(probe, said)) for probe in probes]
        finally:
            guard.cancel()
            _kill(probes)


def _start(argv: Sequence[str], environment: dict[str, str], said: IO[str]) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(
            argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        )
    except OSError as error:
        raise SetupError(f"cannot start {argv[0]}: {error.strerror or error}") from None


def _line(probe: "subprocess.Popen[str]", said: IO[str]) -> str:
    assert probe.stdout is not None
    line = probe.stdout.readline()
    if not line:
        raise _failure(probe, said)
    return line


def _tell_to_go(probe: "subprocess.Popen[str]", said: IO[str]) -> None:
    assert probe.stdin is not None
    try:
        probe.stdin.write("go\n")
        probe.stdin.flush()
    except BrokenPipeError:
        raise _failure(probe, said) from None


def _failure(probe: "subprocess.Popen[str]", said: IO[str]) -> ProbeFailedError:
    code = probe.wait()
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()]
    return ProbeFailedError(lines[-1] if lines else f"it ended with exit code {code}")


def _answer(line: str) -> Answer:
    content: dict[str, Any] = json.loads(line)
    return Answer(float(content["images_per_second"]), int(content["memory_bytes"]))


def _kill(probes: Sequence["subprocess.Popen[str]"]) -> None:
    """Ends what is still there, and closes the pipes."""
    for probe in probes:
        probe.kill()
    for probe in probes:
        probe.wait()
        for stream in (probe.stdin, probe.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a word that nobody will read any more
                    stream.close()
