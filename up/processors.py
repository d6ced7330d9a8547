"""The processors and the memory that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_OWN_GROUPS, _MOUNTED, _MEMORY = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"), Path("/proc/meminfo")


def available_processors() -> int:
    """Count the processors that this process may use: by its affinity (taskset), and by the CPU quota of its container.

    A quota of 1.5 processors counts as 2. All of the machine where the system does not say (macOS). The quota is read once per
    process, the affinity at each call.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, _smallest_quota(_OWN_GROUPS, _MOUNTED))))


@cache
def _smallest_quota(own_groups: Path, mounted: Path) -> int | float:
    return min((math.ceil(quota) for quota in _quotas(own_groups, mounted)), default=math.inf)


def _quotas(own_groups: Path, mounted: Path) -> Iterator[float]:
    """Yield the CPU quotas of the control groups of this process and of the groups above them, in processors."""
    for group, is_second in _groups("cpu", own_groups, mounted):
        with suppress(OSError, ValueError):
            quota = _quota_of(group, is_second=is_second)
            if quota > 0:
                yield quota


def _quota_of(group: Path, *, is_second: bool) -> float:
    """Read the quota of a group of the second or the first version of control groups; -1 for none."""
    if is_second:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return -1.0 if quota == "max" else int(quota) / int(period)
    quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
    return int(quota) / int(period)


def available_memory() -> int:
    """Return the free memory in bytes: of the machine, or what is left to the control groups of its container if that is less.

    The kernel's copies of files count as free, since it drops them as memory is needed. 4 GB where the system does not say (macOS).
    """
    free = 4_000_000_000
    with suppress(OSError):
        free = 1024 * _numbers_in(_MEMORY).get("MemAvailable:", free // 1024)
    for group, is_second in _groups("memory", _OWN_GROUPS, _MOUNTED):
        with suppress(OSError, ValueError):  # a group without a limit
            free = min(free, _left_in(group, is_second=is_second))
    return free


def _left_in(group: Path, *, is_second: bool) -> int:
    names = ("memory.max", "memory.current") if is_second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    limit, used = (int((group / name).read_text(encoding="ascii")) for name in names)
    counted = _numbers_in(group / "memory.stat")
    files = sum(counted.get(f"{'' if is_second else 'total_'}{kind}_file", 0) for kind in ("active", "inactive"))
    return max(0, limit - used + files)


def _numbers_in(path: Path) -> dict[str, int]:
    """Read lines of a name and a number; further words are units."""
    words = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {name: int(number) for name, number, *_ in words}


def _groups(controller: str, own_groups: Path, mounted: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the control groups of this process and those above them, each with whether it is of the second version."""
    try:
        lines = own_groups.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [mounted / controllers, mounted / controller] if controllers else [mounted]
        root = next((each for each in roots if each.is_dir()), mounted)
        own = root / path.strip("/")
        for group in (own, *own.parents):  # one that is not mounted here, as in a container, has no files
            if group.is_relative_to(root):
                yield group, not controllers
