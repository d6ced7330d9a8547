"""Medians with their spread, of values and of the ratios of one round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from up.bench.cells import OURS, Row, Target


class Spread(NamedTuple):
    """The median of several rounds, and their least and largest value."""

    median: float
    least: float
    most: float
    rounds: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of ``values``; None if there are none."""
    listed = [value for value in values if math.isfinite(value)]
    return Spread(statistics.median(listed), min(listed), max(listed), len(listed)) if listed else None


@dataclass
class Outcome:
    """The values of a row's cells, round by round: NaN where a cell failed, whose reason is in ``problems``."""

    row: Row
    values: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    """CPUs in use by other processes, cell by cell."""

    def of(self, cell: str) -> Spread | None:
        """Return the spread of a cell."""
        return spread(self.values.get(cell, ()))

    def ratio(self, against: str) -> Spread | None:
        """Return ours / ``against``, of the values of each round."""
        return spread(mine / other for mine, other in self._pairs(against) if other)

    def difference(self, against: str) -> Spread | None:
        """Return ours - ``against``, of the values of each round."""
        return spread(mine - other for mine, other in self._pairs(against))

    def extra(self, cell: str, name: str) -> float | None:
        """Return the median of a further number of a cell."""
        found = spread(each[name] for each in self.extras.get(cell, ()) if name in each)
        return None if found is None else found.median

    def compared(self, target: Target) -> Spread | None:
        """Return what ``target`` limits."""
        if not target.against:
            return self.of(OURS)
        return self.ratio(target.against) if target.of == "ratio" else self.difference(target.against)

    @property
    def peers(self) -> Sequence[str]:
        """Names of the cells that ours is compared with."""
        return [cell.name for cell in self.row.cells if cell.name != OURS]

    def _pairs(self, against: str) -> Iterable[tuple[float, float]]:
        return zip(self.values.get(OURS, ()), self.values.get(against, ()), strict=False)
