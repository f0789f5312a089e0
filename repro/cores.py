"""How many cores and how much memory this process may count on."""

import os
from pathlib import Path


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may keep busy: its affinity mask, cut by the tightest cgroup quota; ≥ 1."""
    cores = float(len(os.sched_getaffinity(0)))
    for quota in _quotas(cgroups, membership):
        cores = min(cores, quota)
    return max(1, int(cores))


def memory_bytes() -> int:
    """The machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
