"""All ranks agree what to do with an update before any of them starts it: one mechanism for every way a run can be disturbed."""

from __future__ import annotations

from enum import IntEnum

from up.distributed.group import maxima_over_ranks
from up.distributed.signals import StopRequest


class Vote(IntEnum):
    """What a rank proposes; the largest proposal wins."""

    GO = 0
    STOP = 1  # a signal asked for a save and an end
    INTERRUPT = 3  # the same, by Ctrl-C, which ends with another exit code
    ERROR = 9  # this rank could not get its batch

    @property
    def exit_code(self) -> int:
        """How a process ends whose run ended by this vote: done; preempted, run me again; or Ctrl-C, as a shell expects."""
        return {Vote.GO: 0, Vote.STOP: 75, Vote.INTERRUPT: 130}[self]

    @classmethod
    def for_request(cls, stop: StopRequest) -> Vote:
        """The proposal of a rank whose data are good."""
        if not stop:
            return cls.GO
        return cls.INTERRUPT if stop.is_interrupt else cls.STOP


def agree(proposal: Vote) -> Vote:
    """The ranks' common decision."""
    return agree_on(proposal, False)[0]


def agree_on(proposal: Vote, has_news: bool) -> tuple[Vote, bool]:
    """The ranks' common decision, and whether any of them has something to tell the others, in one operation."""
    verdict, news = maxima_over_ranks([proposal, int(has_news)])
    return Vote(verdict), bool(news)
