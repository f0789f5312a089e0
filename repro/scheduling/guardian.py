"""Outlives a scheduler for a moment, to end what it has started: run as `python guardian.py TOKEN SECONDS`.

Its standard input is a pipe from the scheduler. The kernel closes it however the scheduler dies, SIGKILL
included. Workers then write their checkpoints by themselves (`repro.commands.stop`); whatever still carries
TOKEN in its environment after SECONDS is killed: a worker that hangs, and children that workers left behind.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from functools import cache
from pathlib import Path

TOKEN = "REPRO_SWEEP"
GRACE = 8.0


@cache
def guarded_environment(scheduler: int) -> dict[str, str]:
    """What a worker's environment needs, so that it does not outlive this process, whose pid is `scheduler`.

    The first call starts the guardian.
    """
    token = f"{scheduler}-{uuid.uuid4().hex}"
    read_end, write_end = os.pipe()
    # In a session of its own Ctrl-C does not reach it.
    guardian = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, token, str(GRACE)],
        stdin=read_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    # It ends after this process, which therefore never waits for it.
    guardian.returncode = 0
    os.close(read_end)
    # The write end stays open, and is inherited by nobody, until this process is gone.
    assert not os.get_inheritable(write_end)
    return {TOKEN: token, "REPRO_DIE_WITH_PARENT": str(scheduler)}


def guard(token: str, grace: float) -> None:
    """Waits for the scheduler's end, then for its workers', and kills what is left."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + grace
    while left := _carriers(f"{TOKEN}={token}".encode()):
        if time.monotonic() >= deadline:
            for pid in left:
                _kill(pid)
        time.sleep(0.2)


def _carriers(entry: bytes) -> list[int]:
    """The processes of this user that have `entry` in the environment with which they were started."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            # Somebody else's, or gone meanwhile.
            continue
        if entry in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        # It has just ended by itself.
        return


if __name__ == "__main__":
    guard(sys.argv[1], float(sys.argv[2]))
