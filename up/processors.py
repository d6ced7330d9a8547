"""The number of processors."""

from __future__ import annotations

import os


def available_processors() -> int:
    """Count the processors that this process may use; on macOS, which does not report them, all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
