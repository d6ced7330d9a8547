"""Non-dominated sorting of several objectives, and the selection of a population by NSGA-III and by CARS' pNSGA-III."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, count, zip_longest
from math import comb
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


def fronts(minimized: Floats) -> list[list[int]]:
    """Sort (N, M) objectives, all minimized, into fronts: no point of a front dominates another of the same front.

    A point dominates another if it is worse in no objective and better in one (Deb et al. 2002, NSGA-II, §III.A). Equal points
    share a front. NaN is worse than any number.
    """
    values = np.where(np.isnan(minimized), np.inf, minimized)
    no_worse = np.all(values[:, None] <= values[None], axis=-1)
    dominates = np.asarray(no_worse & np.any(values[:, None] < values[None], axis=-1))
    dominated_by = dominates.sum(0)
    rest, sorted_fronts = set(range(len(values))), []
    while rest:
        front = sorted(at for at in rest if dominated_by[at] == 0)
        sorted_fronts.append(front)
        dominated_by = dominated_by - dominates[front].sum(0)
        rest -= set(front)
    return sorted_fronts


def reference_points(objectives: int, divisions: int) -> Floats:
    """Return the points of the unit simplex whose coordinates are multiples of 1 / ``divisions`` (Das and Dennis 1998).

    (C, objectives) for C = binomial(divisions + objectives - 1, objectives - 1).
    """
    bars = combinations(range(divisions + objectives - 1), objectives - 1)
    edges = np.array([(-1, *bar, divisions + objectives - 1) for bar in bars])
    return (np.diff(edges, axis=1) - 1) / divisions


def nsga3(minimized: Floats, keep: int, levels: Sequence[Sequence[int]] | None = None) -> list[int]:
    """Keep ``keep`` of (N, M) objectives, all minimized: whole fronts, and of the last one the points of the emptiest niches.

    Deb and Jain 2014, NSGA-III, algorithms 1 to 4; where they draw, the point nearest to its reference line is taken, so that the
    result is a function of the points alone. ``levels`` replaces the fronts.
    """
    chosen: list[int] = []
    for level in levels if levels is not None else fronts(minimized):
        room = keep - len(chosen)
        chosen += level if len(level) <= room else _niched(minimized, chosen, level, room)
    return chosen


def pnsga3(accuracy: Sequence[float], size: Sequence[float], keep: int) -> list[int]:
    """Keep ``keep`` individuals by accuracy and size without losing the large ones (Yang et al. 2020, CARS, §3.4).

    The i-th level is the union of the i-th front of (accuracy up, size down) and the i-th of (accuracy up, 1 / size down), so
    that small networks, which learn faster, do not push the large ones out. Within the last level NSGA-III's niches of all three
    numbers decide.
    """
    worse, sizes = -np.asarray(accuracy, dtype=np.float64), np.asarray(size, dtype=np.float64)
    small, large = np.stack([worse, sizes], 1), np.stack([worse, 1 / sizes], 1)
    levels: list[list[int]] = []
    placed: set[int] = set()
    for both in zip_longest(fronts(small), fronts(large), fillvalue=()):
        level = sorted(set().union(*both) - placed)
        placed.update(level)
        levels.append(level)
    return nsga3(np.stack([worse, sizes, 1 / sizes], 1), keep, levels)


def _normalized(values: Floats) -> Floats:
    """Scale objectives (N, M) to the hyperplane through the extreme points (NSGA-III, algorithm 2)."""
    shifted = values - values.min(0)
    objectives = values.shape[1]
    weights = np.where(np.eye(objectives) == 1, 1.0, 1e6)
    extremes = shifted[(shifted[None] * weights[:, None]).max(-1).argmin(1)]
    intercepts = shifted.max(0)
    if np.linalg.matrix_rank(extremes) == objectives:
        plane = np.linalg.solve(extremes, np.ones(objectives))
        if (plane > 0).all():
            intercepts = 1 / plane
    return np.asarray(shifted / np.where(intercepts > 0, intercepts, 1.0))


def _niched(minimized: Floats, chosen: Sequence[int], level: Sequence[int], room: int) -> list[int]:
    """Choose ``room`` points of the last level, each from the niche with the fewest points (NSGA-III, algorithm 4)."""
    if room <= 0:
        return []
    considered = [*chosen, *level]
    values = _normalized(minimized[considered])
    objectives = values.shape[1]
    divisions = next(each for each in count(1) if comb(each + objectives - 1, objectives - 1) >= len(chosen) + room)
    rays = reference_points(objectives, divisions)  # about as many as points are kept
    rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    distance = np.linalg.norm(values[:, None] - (values @ rays.T)[..., None] * rays[None], axis=-1)
    niche, far = distance.argmin(1), distance.min(1)
    members = np.bincount(niche[: len(chosen)], minlength=len(rays))
    left, taken = list(range(len(chosen), len(considered))), list[int]()
    while len(taken) < room:
        emptiest = min(left, key=lambda at: (members[niche[at]], far[at], at))
        left.remove(emptiest)
        members[niche[emptiest]] += 1
        taken.append(considered[emptiest])
    return taken
