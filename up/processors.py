"""Processors of this machine."""

from __future__ import annotations

import os


def available_processors() -> int:
    """Count the processors that this process may use; all of the machine where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
