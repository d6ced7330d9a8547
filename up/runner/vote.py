"""All ranks agree what to do with an update before any of them starts it: one mechanism for every way a run can be disturbed."""

from __future__ import annotations

from enum import IntEnum

from up.distributed import max_over_ranks


class Vote(IntEnum):
    """What a rank proposes; the largest proposal wins."""

    GO = 0
    STOP = 1  # a signal asked for a save and an end
    ERROR = 9  # this rank could not get its batch


def agree(proposal: Vote) -> Vote:
    """The ranks' common decision."""
    return Vote(max_over_ranks(proposal))
