"""The process of a cell: ``python -m up.bench.child JSON`` pins itself, runs one function and writes its result."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from up.distributed.env import let_idle_threads_sleep


def main(words: list[str]) -> int:
    """Run the cell that ``words`` describes as JSON; returns the exit code."""
    asked = json.loads(words[0])
    os.sched_setaffinity(0, asked["cpus"])  # before torch is imported, which counts the CPUs
    if not asked["is_peer"]:
        let_idle_threads_sleep()
    import torch

    from up.bench.cells import Reading, Settings
    from up.registry import resolve

    settings = Settings(**{**asked["settings"], "folder": Path(asked["settings"]["folder"])})
    torch.set_num_threads(settings.threads)
    measured = resolve(asked["function"])(settings, **asked["kwargs"]) or Reading(0.0)
    Path(asked["result"]).write_text(json.dumps({"value": measured.value, "extra": dict(measured.extra)}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
