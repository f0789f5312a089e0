"""What `repro.system` sets on this host and reads from it; malloc's part in processes of its own."""

import ctypes
import json
import os
import subprocess
import sys

import pytest
from smoke_project import PROJECT, ROOT, RUN, record_of, smoke_context

from repro import system

needs_mallinfo2 = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library has no mallinfo2 (glibc has from 2.33)"
)

WATCH = """
import ctypes, json, sys

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
before = []

class BeforeTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and not before:
            before.append(mallinfo2().hblkhd)

sys.meta_path.insert(0, BeforeTorch())
try:
    exec(sys.argv.pop(1))
finally:
    print(json.dumps(mallinfo2().hblkhd - before[0]))
"""
"""Runs code and prints by how many bytes malloc's own mappings (hblkhd) grew since torch was asked for."""

TRAIN = f"""
import repro.cli
repro.cli.main(["train", "{RUN}", "--preset", "smoke", "--device", "cpu", *sys.argv[1:]])
"""
WITHOUT = "import repro.cli.train\nrepro.cli.train.keep_freed_memory = lambda: None\n"


def growth_of_mappings(code: str, *arguments) -> int:
    """Bytes that malloc mapped for single allocations since torch was imported, and has not unmapped."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "REPRO_ROOT": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@needs_mallinfo2
def test_a_worker_keeps_freed_memory_from_before_torch_and_trains_the_same_to_the_bit(tmp_path, monkeypatch):
    """torch's own import maps several MB: a call after it would leave them mapped."""
    assert growth_of_mappings(WITHOUT + TRAIN, "--results", tmp_path / "without") > 0
    assert growth_of_mappings(TRAIN, "--results", tmp_path / "with") <= 0
    kept, mapped = (
        record_of(smoke_context(monkeypatch, tmp_path / name), RUN).comparable()
        for name in ("with", "without")
    )
    assert kept == mapped


@pytest.mark.parametrize("name", [None, "musl 1.2"])
def test_another_c_library_is_left_alone(name, monkeypatch):
    monkeypatch.setattr(os, "confstr", lambda key: name)
    monkeypatch.setattr(ctypes, "CDLL", lambda library: pytest.fail("malloc was set"))
    system.keep_freed_memory()


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ("cpu 10 0 10 70 10 0 0 0 0 0", "cpu 15 5 15 130 20 0 5 10 0 0", 0.3),
        ("cpu 10 0 10 70 10 0 0 0 0 0", "cpu 10 0 10 80 10 0 0 0 0 0", 0.0),
        ("cpu 0 0 0 0 0 0 0 0 0 0", "cpu 0 0 0 0 0 0 0 0 0 0", None),
    ],
)
def test_the_busy_share_is_what_all_cores_did_meanwhile_but_idle(first, second, share, tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text(first + "\ncpu0 1 2 3\n")
    monkeypatch.setattr(system.time, "sleep", lambda seconds: stat.write_text(second + "\n"))
    assert system.busy_share(1.0, stat) == (share if share is None else pytest.approx(share))
    assert system.busy_share(0.0, tmp_path / "no such file") is None


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"cpu.max": "max 100000"}, "0::/\n", None),
        ({"cpu.max": "100000 100000"}, "0::/\n", 1),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, "0::/a/b\n", 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpuset:/\n1:cpu:/\n", None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, "1:cpuacct,cpu:/\n", 1),
        ({}, "", None),
    ],
)
def test_the_tightest_cgroup_quota_limits_the_cores(tmp_path, files, membership, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "membership").write_text(membership)
    assert system.usable_cores(tmp_path, tmp_path / "membership") == (quota or len(os.sched_getaffinity(0)))
