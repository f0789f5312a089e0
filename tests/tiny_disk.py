"""A disk of a few MiB for one test, which can be filled up or made read-only: a tmpfs in a mount namespace."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest
from short_project import PROJECT

ROOT = Path(__file__).resolve().parent.parent

# FILL takes what is left of the disk to the last byte, FREE gives it back. READ_ONLY lays a read-only view over it:
# a file system on which anybody keeps a lock open cannot be remounted. WRITABLE takes the view away.
_PREAMBLE = """
set -u
mount -t tmpfs -o size=4m none "$DISK" || exit 99
FILL() { dd if=/dev/zero of="$DISK/fill" bs=4k status=none 2>/dev/null; true; }
FREE() { rm "$DISK/fill"; }
READ_ONLY() { mount --bind "$DISK" "$DISK" && mount -o remount,bind,ro "$DISK"; }
WRITABLE() { umount "$DISK"; }
UNTIL() { local left=1200; until "$@"; do sleep 0.05; ((left--)) || { echo "in vain: $*" >&2; exit 98; }; done; }
SAYS() { grep -q "$1" "$HERE/stderr"; }
"""


@cache
def _possible() -> bool:
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def on_a_tiny_disk(script: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a bash script that finds the disk at $DISK and keeps what outlives it in $HERE, `folder`."""
    if not _possible():
        pytest.skip("this system does not let users mount a file system (unshare -Urm)")
    disk = folder / "disk"
    disk.mkdir()
    return subprocess.run(
        ["unshare", "-Urm", "bash", "-c", _PREAMBLE + script],
        cwd=ROOT,
        env={
            **os.environ,
            "DISK": str(disk),
            "HERE": str(folder),
            "PYTHONPATH": str(ROOT),
            "REPRO_ROOT": str(PROJECT),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
