"""Pareto front of objectives, some of which are maximized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from up.pareto import Floats, fronts
from up.search.algorithm import Direction


def losses(values: Sequence[Sequence[float]], directions: Sequence[Direction]) -> Floats:
    """Return objectives (N, M) as numbers to minimize: those to maximize are negated."""
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    return np.asarray(np.asarray(values, dtype=np.float64).reshape(-1, len(signs)) * signs)


def pareto_front(values: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """Return the positions of the points that no other dominates."""
    sorted_fronts = fronts(losses(values, directions)) if values else [[]]
    return sorted_fronts[0]
