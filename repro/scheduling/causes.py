"""Why a worker or an attempt ended, by exit code, last words and the kernel, and what may be tried again."""

import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from repro import errors
from repro.errors import ReproError, RunInterruptedError, SetupError, UsageError

_LONGEST = 500
_TAIL = 8192


class Kind(StrEnum):
    """What a cause calls for: ERROR would come again and is not tried again.

    BLAMELESS is an end that an executor vouches for: a lost node, a time limit, preemption.
    """

    ERROR = "error"
    CRASH = "crash"
    INTERRUPTED = "interrupted"
    HUNG = "hung"
    HOST_MEMORY = "out of memory"
    DEVICE_MEMORY = "out of GPU memory"
    DEVICE_LOST = "device lost"
    BLAMELESS = "blameless"


FURTHER_LAUNCHES = {
    Kind.ERROR: 0,
    Kind.CRASH: 2,
    Kind.INTERRUPTED: 5,
    Kind.HUNG: 2,
    Kind.HOST_MEMORY: 2,
    Kind.DEVICE_MEMORY: 2,
    Kind.DEVICE_LOST: 5,
    Kind.BLAMELESS: 10,
}
"""How often a run is launched again for a cause of a kind while it does not get any further."""

MEMORY = (Kind.HOST_MEMORY, Kind.DEVICE_MEMORY)

_HOST_MEMORY = ("MemoryError", "can't allocate memory", "Cannot allocate memory")
_DEVICE_MEMORY = (
    "OutOfMemoryError",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_DEVICE_LOST = (
    "finds no CUDA device",
    "No CUDA GPUs are available",
    "no CUDA-capable device is detected",
    "is/are busy or unavailable",
    "GPU is lost",
    "GPU has fallen off the bus",
    "uncorrectable ECC error",
    "hardware stack error",
    "CUDA error: unknown error",
    "CUDA error: device not ready",
    "CUDA error: invalid device ordinal",
)
"""What torch and CUDA say of a device that has gone or does not answer any more."""

_REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@dataclass(frozen=True)
class Cause:
    """One end of a worker or an attempt: its kind, and a sentence for the user and the attempt's note."""

    kind: Kind
    text: str


def cause_of_failure(text: str, on_gpu: bool) -> Cause:
    """The cause of an attempt that has noted `Type: message`, or of a worker with such last words."""
    for kind, signs in (
        (Kind.DEVICE_MEMORY, _DEVICE_MEMORY if on_gpu else ()),
        (Kind.DEVICE_LOST, _DEVICE_LOST if on_gpu else ()),
        (Kind.HOST_MEMORY, _HOST_MEMORY),
    ):
        if any(sign in text for sign in signs):
            return Cause(kind, text)
    return Cause(Kind.ERROR, text)


def cause_of_end(code: int, log: Path, began_a_run: bool, on_gpu: bool, oom_kills: int = 0) -> Cause:
    """The cause of a worker's end, told by its exit code; `oom_kills` happened on the machine meanwhile."""
    if code == RunInterruptedError.exit_code or code == 130 or -code in _REQUESTS:
        # Dead of a request, it had not even come to listen to one.
        return Cause(Kind.INTERRUPTED, "its worker was interrupted from outside")
    if code == -signal.SIGKILL and oom_kills:
        return Cause(
            Kind.HOST_MEMORY,
            "its worker was killed by SIGKILL when the machine ran out of memory (the kernel's OOM killer)",
        )
    if code < 0:
        return Cause(Kind.CRASH, f"its worker was killed by {_signal_name(-code)}")
    if code == 0:
        return Cause(Kind.CRASH, "its worker ended without training it")
    words = last_line(log)
    said = cause_of_failure(words, on_gpu)
    if said.kind is not Kind.ERROR:
        return said
    if code in (UsageError.exit_code, SetupError.exit_code) or (
        code == ReproError.exit_code and not began_a_run
    ):
        # A wrong call, no data, an error before any run: the same command would end the same way.
        return Cause(Kind.ERROR, words or f"its worker ended with exit code {code}")
    return Cause(Kind.CRASH, f"its worker ended with exit code {code}" + (f": {words}" if words else ""))


def is_setup_error(cause: str) -> bool:
    """Whether a failed attempt's cause, `Type: message`, is a missing environment or data set."""
    kind = getattr(errors, cause.partition(":")[0], None)
    return isinstance(kind, type) and issubclass(kind, SetupError)


def last_line(log: Path) -> str:
    """The last line of a worker's log that is not blank; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("repro: ")[:_LONGEST] if lines else ""


def oom_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel has killed for lack of memory so far; 0 where it does not tell."""
    try:
        for line in counters.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except OSError:
        return 0
    return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
