"""What the launcher's variables say of this process; known before torch is imported."""

from __future__ import annotations

import os


def rank_in_environment() -> int:
    """The rank that the launcher gave this process, before it has joined any group."""
    return int(os.environ.get("RANK", "0"))


def world_in_environment() -> int:
    """How many processes the launcher started, 1 where there is none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def attempt() -> int:
    """How often an elastic launcher has restarted this run, 0 at first."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str:
    """What an elastic launcher calls this launch, the same in every attempt."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")
