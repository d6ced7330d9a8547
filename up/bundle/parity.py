"""Comparison of outputs: of a graph with its net, of a package with its test vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from up.bundle.answers import Outputs


@dataclass(frozen=True)
class Closeness:
    """Largest difference of outputs from those expected, and the largest absolute value of the latter."""

    max_abs: float = 0.0
    largest: float = 0.0

    def limit(self, tolerance: float) -> float:
        """Return the limit of ``max_abs``: relative to the outputs if they are larger than 1."""
        return tolerance * max(1.0, self.largest)

    def is_within(self, tolerance: float) -> bool:
        """Whether the difference is allowed; never if an output is not a number."""
        return self.max_abs <= self.limit(tolerance)

    @property
    def relative(self) -> float:
        """``max_abs`` in the unit of a tolerance."""
        return self.max_abs / max(1.0, self.largest)

    def __or__(self, other: Closeness) -> Closeness:
        return Closeness(max(self.max_abs, other.max_abs), max(self.largest, other.largest))


def closeness(got: Outputs, expected: Outputs) -> Closeness:
    """Compare all outputs; ``max_abs`` is not a number if names, shapes or values cannot be compared."""
    if {name: each.shape for name, each in got.items()} != {name: each.shape for name, each in expected.items()}:
        return Closeness(float("nan"))
    off = [np.abs(got[name] - each).max() for name, each in expected.items()]
    return Closeness(float(np.max(off)), float(np.max([np.abs(each).max() for each in expected.values()])))
