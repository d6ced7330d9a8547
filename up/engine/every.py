"""When something is due: every so many epochs or updates, from a start, and always at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Every:
    """Due after update ``step`` when a whole number of periods has passed and ``start`` is reached; always at ``total``."""

    period: int  # updates; 0 = only at the end
    start: int  # updates
    total: int

    def is_due(self, step: int) -> bool:
        """Whether the ``step``-th update (counted from 1) is one of them."""
        return step == self.total or (self.period > 0 and step >= self.start and step % self.period == 0)


@dataclass(frozen=True)
class AnyOf:
    """Due when one of several is."""

    schedules: Sequence[Every]

    def is_due(self, step: int) -> bool:
        """Whether the ``step``-th update (counted from 1) is one of them."""
        return any(every.is_due(step) for every in self.schedules)

    def steps(self, total: int) -> Iterator[int]:
        """All steps up to ``total`` that are due, rising."""
        periods = {total, *(step for every in self.schedules if every.period for step in range(every.period, total, every.period))}
        return (step for step in sorted(periods) if self.is_due(step))
