"""The number of processors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_OWN_GROUPS, _MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


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
    try:
        lines = own_groups.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = [mounted / controllers, mounted / "cpu"] if controllers else [mounted]
        root = next((each for each in roots if each.is_dir()), mounted)
        own = root / path.strip("/")
        for group in (own, *own.parents):  # one that is not mounted here, as in a container, has no files
            if group.is_relative_to(root):
                with suppress(OSError, ValueError):
                    quota = _quota_of(group, is_second=not controllers)
                    if quota > 0:
                        yield quota


def _quota_of(group: Path, *, is_second: bool) -> float:
    """Read the quota of a group of the second or the first version of control groups; -1 for none."""
    if is_second:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return -1.0 if quota == "max" else int(quota) / int(period)
    quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
    return int(quota) / int(period)
