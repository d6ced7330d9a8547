"""Pareto fronts: non-dominated sorting, the selection of NSGA-III, and pNSGA-III of CARS. All objectives are minimized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = Sequence[Sequence[float]]  # a row for each candidate, a column for each objective
_OFF_AXIS = 1e-6  # weight of the other objectives where the extreme point of an axis is looked for (Deb and Jain 2014, eq. 4)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether ``one`` is nowhere worse than ``other`` and somewhere better."""
    pairs = list(zip(one, other, strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def fronts(values: Values) -> list[list[int]]:
    """Sort candidates into fronts (Deb et al. 2002, NSGA-II, section III.A): the first is dominated by none, and so on.

    Returns indices into ``values``, ascending in each front. Equal candidates are in one front.
    """
    table = np.asarray(values, dtype=np.float64)
    if not len(table):
        return []
    is_no_worse = (table[:, None] <= table[None]).all(axis=2)
    dominated_by = is_no_worse & ~is_no_worse.T
    left = np.ones(len(table), dtype=bool)
    found: list[list[int]] = []
    while left.any():
        front = left & ~(dominated_by & left[:, None]).any(axis=0)
        found.append(np.flatnonzero(front).tolist())
        left &= ~front
    return found


def nsga3(values: Values, keep: int) -> list[int]:
    """Select ``keep`` candidates of two objectives by NSGA-III (Deb and Jain 2014), without its random choices.

    Whole fronts are kept as long as they fit; of the next one those that fill the emptiest directions.
    """
    kept: list[int] = []
    for front in fronts(values):
        if len(kept) + len(front) > keep:
            return sorted([*kept, *_niches(np.asarray(values, dtype=np.float64), kept, front, keep - len(kept))])
        kept += front
    return sorted(kept)


def p_nsga3(accuracy: Sequence[float], size: Sequence[float], keep: int) -> list[int]:
    """Select ``keep`` candidates by pNSGA-III (Yang et al. 2020, CARS, section 3.4), so that large ones are not lost to small ones.

    One selection sorts by (accuracy, size), another by (accuracy, 1 / size); as many of each are merged as are needed. Returns
    indices, ascending.
    """
    small = [(-top, each) for top, each in zip(accuracy, size, strict=True)]
    large = [(-top, 1 / each) for top, each in zip(accuracy, size, strict=True)]
    keep = min(keep, len(small))
    for number in range(-(-keep // 2), keep + 1):
        of_small = nsga3(small, number)
        others = [index for index in nsga3(large, number) if index not in of_small]
        if len(of_small) + len(others) >= keep:
            break
    return sorted([*of_small, *others[: keep - len(of_small)]]) if keep else []


def _niches(values: NDArray[np.float64], kept: Sequence[int], front: Sequence[int], wanted: int) -> list[int]:
    """Choose ``wanted`` of a front, each from the direction with the fewest members so far and nearest to it."""
    members = [*kept, *front]
    directions = _directions(len(kept) + wanted)
    scaled = _normalized(values[members])
    along = scaled @ directions.T
    distance = np.linalg.norm(scaled[:, None] - along[..., None] * directions, axis=2)  # (members, directions)
    nearest = distance.argmin(axis=1)
    counts = np.bincount(nearest[: len(kept)], minlength=len(directions))
    left, chosen = list(range(len(kept), len(members))), []
    for _ in range(wanted):
        at = min(left, key=lambda member: (counts[nearest[member]], nearest[member], distance[member, nearest[member]], member))
        counts[nearest[at]] += 1
        left.remove(at)
        chosen.append(members[at])
    return chosen


def _directions(number: int) -> NDArray[np.float64]:
    """Spread unit vectors over the line from (0, 1) to (1, 0) (Das and Dennis 1998)."""
    share = np.linspace(0, 1, max(2, number))
    points = np.stack([share, 1 - share], axis=1)
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))


def _normalized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shift the best value of each objective to 0, and scale by the intercepts of the line through the extreme points."""
    shifted = values - values.min(axis=0)
    spans = np.where(shifted.max(axis=0) > 0, shifted.max(axis=0), 1.0)
    weights = np.where(np.eye(shifted.shape[1], dtype=bool), 1.0, _OFF_AXIS)
    extreme = [int((shifted / spans / weight).max(axis=1).argmin()) for weight in weights]
    try:
        intercepts = 1 / np.linalg.solve(shifted[extreme], np.ones(len(extreme)))
    except (np.linalg.LinAlgError, ZeroDivisionError):
        intercepts = spans
    usable = np.isfinite(intercepts).all() and (intercepts > 1e-12).all()
    return np.asarray(shifted / (intercepts if usable else spans))
