"""The model of BOHB: kernel densities of the good and of the bad points, and the point at which their ratio is largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from up.search.space import Point, Space

Floats: TypeAlias = NDArray[np.float64]
_LEAST_BANDWIDTH = 1e-3


@dataclass(frozen=True)
class DensityModel:
    """Settings of the model of Falkner et al. 2018 (BOHB, §3.2), with the published values.

    The best ``good`` of the observed points, at least d + 1 of them, give the density l(x), the others, at least d + 1 of the
    worst, g(x). Of ``candidates`` points drawn from l with its bandwidths times ``spread`` the one with the largest l / g is
    chosen. A share ``random`` of the points is drawn at random instead.
    """

    good: float = 0.15
    candidates: int = 64
    random: float = 1 / 3
    spread: float = 3.0

    def is_enough(self, space: Space, observed: int) -> bool:
        """Check whether there are d + 3 observed points, N_min + 2 of the paper."""
        return observed >= len(space) + 3

    def sizes(self, space: Space, observed: int) -> tuple[int, int]:
        """Return the numbers of good and of bad points; a point may be both where there are few."""
        least = len(space) + 1
        good = max(least, int(self.good * observed))
        return good, max(least, observed - good)

    def sample(self, space: Space, observed: Sequence[tuple[Point, float]], rng: np.random.Generator) -> Point:
        """Draw a point; ``observed`` are points with their losses, enough of them."""
        if rng.random() < self.random:
            return space.sample(rng)
        ranked = [point for point, _ in sorted(observed, key=lambda each: each[1])]
        good, bad = self.sizes(space, len(ranked))
        vectors = _vectors(space, ranked, rng)
        better, worse = _Density(space, vectors[:good]), _Density(space, vectors[-bad:])
        drawn = [better.draw(rng, self.spread) for _ in range(self.candidates)]
        points = [(space.decode(shares), shares) for shares in drawn]
        allowed = np.array([shares for point, shares in points if not space.is_forbidden(point)])
        if not len(allowed):
            return space.sample(rng)
        return space.decode(allowed[int(np.argmax(better.log(allowed) - worse.log(allowed)))])


def bandwidths(vectors: Floats, categories: Sequence[int]) -> Floats:
    """Return the bandwidth of each column of (N, d): Silverman's normal reference, 1.06 σ N^(-1 / (4 + d)).

    Of a column with ``categories`` other than 0 it is the probability of another category, (c - 1) / c N^(-1 / (4 + d)).
    """
    number, columns = vectors.shape
    shrink = number ** (-1 / (4 + columns))
    unordered = [(count - 1) / count * shrink if count else np.nan for count in categories]
    ordered = np.maximum(1.06 * vectors.std(0) * shrink, _LEAST_BANDWIDTH)
    return np.where(np.isnan(unordered), ordered, unordered)


class _Density:
    """A product of Gaussian kernels, and of Aitchison's and Aitken's for lists, around each of (N, d) shares."""

    def __init__(self, space: Space, vectors: Floats) -> None:
        self.vectors = vectors
        self.categories = [len(each.values) if each.values is not None else 0 for each in space.dimensions]
        self.bandwidth = bandwidths(vectors, self.categories)

    def log(self, shares: Floats) -> Floats:
        """Return the logarithm of the density at (C, d) shares."""
        total = np.zeros((len(shares), len(self.vectors)))
        for column, (count, width) in enumerate(zip(self.categories, self.bandwidth, strict=True)):
            own, other = shares[:, None, column], self.vectors[None, :, column]
            if count:
                same = np.floor(own * count) == np.floor(other * count)
                total += np.log(np.where(same, 1 - width, width / max(1, count - 1)) + 1e-300)
            else:
                total += -0.5 * ((own - other) / width) ** 2 - np.log(width)
        top = total.max(1, keepdims=True)
        return np.asarray(np.log(np.exp(total - top).mean(1)) + top[:, 0])

    def draw(self, rng: np.random.Generator, spread: float) -> list[float]:
        """Draw shares around one of the points, the bandwidths of numbers times ``spread``."""
        centre = self.vectors[rng.integers(len(self.vectors))]
        drawn = []
        for share, count, width in zip(centre, self.categories, self.bandwidth, strict=True):
            if count:
                drawn.append(float(share) if rng.random() < 1 - width else float(rng.random()))
                continue
            normal = NormalDist(float(share), float(width * spread))
            low, high = normal.cdf(0.0), normal.cdf(1.0)
            place = min(max(low + rng.random() * (high - low), 1e-12), 1 - 1e-12)
            drawn.append(min(max(normal.inv_cdf(place), 0.0), 1.0))
        return drawn


def _vectors(space: Space, points: Sequence[Point], rng: np.random.Generator) -> Floats:
    """Return the shares (N, d) of points; a key that is not active in a point gets the value of another point, or a random one."""
    columns = np.array([[np.nan if share is None else share for share in space.encode(point)] for point in points])
    for column in columns.T:
        missing = np.isnan(column)
        if missing.any():
            known = column[~missing]
            column[missing] = rng.choice(known, missing.sum()) if len(known) else rng.random(missing.sum())
    return columns
