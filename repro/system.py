"""The host without torch: usable cores, memory, processor name, the C library's allocator, CPU load."""

import ctypes
import os
import platform
import time
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # parameters of mallopt in glibc's malloc.h


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may keep busy: its affinity mask, cut by the tightest cgroup quota; ≥ 1."""
    cores = float(len(os.sched_getaffinity(0)))
    for quota in _quotas(cgroups, membership):
        cores = min(cores, quota)
    return max(1, int(cores))


def memory_bytes() -> int:
    """The machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor_name() -> str:
    """The processor's model name as the kernel gives it."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory instead of returning it to the kernel; elsewhere does nothing.

    By default every tensor above a few MB is mapped when it is allocated and unmapped when it is freed, so a
    training step on a CPU faults in all its activations again. Call it before torch is imported: what was
    mapped until then stays mapped. It changes where numbers are stored, never the numbers.

    The device is chosen with torch, so it is not known yet when this has to be called: it is set for GPU
    workers too, where it keeps at most the host memory that they used once.
    """
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return
    except (ValueError, OSError):  # another C library does not know the name
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)  # no allocation gets a mapping of its own
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # the heap's end is not given back: the largest int there is
    mallopt(_M_TOP_PAD, 64 * 2**20)  # bytes: the heap grows in few, large pieces


def busy_share(seconds: float = 1.0, stat: Path = Path("/proc/stat")) -> float | None:
    """The share of the machine's CPU time, 0 to 1, that is used while this process sleeps for `seconds`.

    Unlike the load average it forgets at once what has ended. Includes what a hypervisor takes (steal). None
    where the kernel does not count, as in some sandboxes.
    """
    idle_before, total_before = _cpu_ticks(stat)
    time.sleep(seconds)
    idle, total = _cpu_ticks(stat)
    return 1 - (idle - idle_before) / (total - total_before) if total > total_before else None


def _quotas(cgroups: Path, membership: Path) -> list[float]:
    """Every CPU quota, in cores, of this process's cgroups and of those above them; versions 2 and 1."""
    quotas: list[float] = []
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, read = cgroups, _quota_v2
        elif "cpu" in controllers.split(","):
            folder, read = cgroups / "cpu", _quota_v1
        else:
            continue
        below = folder / path.lstrip("/")
        for level in (below, *below.parents):
            if (quota := read(level)) is not None:
                quotas.append(quota)
            if level == folder:
                break
    return quotas


def _quota_v2(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _text(file: Path) -> str:
    """What the file says; nothing where this kernel or container has no such file."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _cpu_ticks(stat: Path) -> tuple[int, int]:
    """Ticks of all cores since the machine started, idle ones and all; zeros where there is no such file."""
    ticks = [int(word) for word in _text(stat).partition("\n")[0].split()[1:9]]
    return sum(ticks[3:5]), sum(ticks)  # idle and iowait
