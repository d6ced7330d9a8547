"""Tests of a difference between two models on the same images, and the difference that would be found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from up.intervals import wilson

LEVEL, POWER = 0.05, 0.8
DRAWS = 10_000


@dataclass(frozen=True)
class Paired:
    """Comparison of two models on n images: how many both, only the first, only the second, and neither predict correctly.

    ``difference`` is the accuracy of the second minus that of the first, from ``low`` to ``high`` with 95 % confidence. ``p_exact``
    is McNemar's exact p-value, ``p_mid`` its mid-p version, which decides. ``detectable`` is the smallest difference that this
    number of images would show with a power of .8; None if none would.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    low: float
    high: float
    p_exact: float
    p_mid: float
    detectable: float | None

    @property
    def n(self) -> int:
        """Number of images."""
        return self.both + self.only_first + self.only_second + self.neither


def paired(first: Sequence[bool], second: Sequence[bool], *, seed: int = 0) -> Paired:
    """Compare two models by their correct predictions of the same images, in the same order. Needs at least one image."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    n, only_first, only_second = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    low, high = bootstrap_interval(only_first, only_second, n, seed=seed)
    p_exact, p_mid = mcnemar(only_first, only_second)
    return Paired(
        both=int((a & b).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~a & ~b).sum()),
        difference=(only_second - only_first) / n,
        low=low,
        high=high,
        p_exact=p_exact,
        p_mid=p_mid,
        detectable=detectable(n, only_first + only_second),
    )


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """Return the two-sided exact and mid-p values of McNemar's test (Fagerland, Lydersen and Laake 2013).

    The exact test finds differences less often than its level allows; the mid-p test keeps near to the level.
    """
    m, k = only_first + only_second, min(only_first, only_second)
    if m == 0:
        return 1.0, 1.0
    tail = math.fsum(_binomial(m, k))
    last = next(_binomial(m, k))
    return min(1.0, 2 * tail), min(1.0, 2 * tail - last)


def _binomial(m: int, k: int) -> Iterator[float]:
    """Yield the probabilities of k, k - 1, …, 0 heads of m fair coins."""
    for i in range(k, -1, -1):
        yield math.exp(math.lgamma(m + 1) - math.lgamma(i + 1) - math.lgamma(m - i + 1) - m * math.log(2))


def bootstrap_interval(only_first: int, only_second: int, n: int, *, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the difference over ``DRAWS`` resamples of the images, each with both predictions.

    Without an image on which the models differ there is nothing to resample: the interval then is that of differing images, by
    Wilson's method, on both sides.
    """
    if only_first + only_second == 0:
        limit = wilson(0, n)[1]
        return -limit, limit
    shares = [only_first / n, only_second / n, (n - only_first - only_second) / n]
    drawn = np.random.default_rng(seed).multinomial(n, shares, DRAWS)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / n, [0.025, 0.975])
    return float(low), float(high)


def detectable(n: int, discordant: int) -> float | None:
    """Return the smallest difference that n pairs show with a power of .8 at the level .05, two-sided (Connor 1987).

    The models differ on the share ``discordant / n`` of the images, as in this sample; None where even all of these in favour of
    one model would not do.
    """
    share = discordant / n
    normal = statistics.NormalDist()
    z_level, z_power = normal.inv_cdf(1 - LEVEL / 2), normal.inv_cdf(POWER)
    root = share * z_power**2 * (n - z_level**2 + z_power**2)
    if share == 0 or root < 0:
        return None
    found = (z_level * math.sqrt(n * share) + math.sqrt(root)) / (n + z_power**2)
    return found if found <= share else None


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for as many tests (Holm 1979): each is to be compared with the level itself."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[at]))
        adjusted[at] = largest
    return adjusted
