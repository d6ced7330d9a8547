"""Confidence intervals of reported numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_PRIOR = 4  # images


class Interval(NamedTuple):
    """A confidence interval of a metric, in the unit of the metric, and the number of images behind it."""

    low: float
    high: float
    n: int

    @property
    def standard_error(self) -> float:
        """The standard error of the metric: a 95 % interval is 1.96 of them to each side."""
        return (self.high - self.low) / (2 * 1.96)

    def __str__(self) -> str:
        return f"({self.low:.1f}–{self.high:.1f}, n = {self.n:,})"


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of the share of ``correct`` among ``n`` (Wilson 1927), between 0 and 1.

    It keeps its confidence for few images and for shares near 0 and 1 (Brown, Cai and DasGupta 2001), where the normal
    approximation does not. Raises ``ValueError`` for no images, and unless ``correct`` is among them.
    """
    low, high = _score_interval(_share(correct, n), n, confidence)
    return low if correct else 0.0, high if correct < n else 1.0


def mean_of_shares(counts: Sequence[tuple[int, int]], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the plain mean of several shares, each given as ``(correct, n)``, such as of the classes.

    It is Wilson's with the effective number of images: the one with which a single share would have the variance of the mean
    (Franco, Little, Louis and Slud 2019). For that variance each share is drawn towards the mean by ``_PRIOR`` images, because a
    class of few images that are all correct is not without variance. For one share the result is Wilson's. Raises ``ValueError`` as
    ``wilson``.
    """
    if len(counts) == 1:
        return wilson(*counts[0], confidence)
    mean = statistics.fmean(_share(*each) for each in counts)
    if mean in (0.0, 1.0):
        spread = sum(1 / n for _, n in counts)
    else:
        drawn = [((correct + _PRIOR * mean) / (n + _PRIOR), n) for correct, n in counts]
        spread = sum(share * (1 - share) / n for share, n in drawn) / (mean * (1 - mean))
    low, high = _score_interval(mean, len(counts) ** 2 / spread, confidence)
    return low if mean else 0.0, high if mean < 1 else 1.0


def _share(correct: int, n: int) -> float:
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"got {correct} of {n}, expected 0 to n of at least 1")
    return correct / n


def _score_interval(share: float, n: float, confidence: float) -> tuple[float, float]:
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    middle, half = share * n + z * z / 2, z * math.sqrt(n * share * (1 - share) + z * z / 4)
    return (middle - half) / (n + z * z), (middle + half) / (n + z * z)


def percent_interval(counts: Sequence[tuple[int, int]]) -> Interval:
    """Return the 95 % interval in percent of a share ``(correct, n)``, or of the mean of several."""
    low, high = mean_of_shares(counts)
    return Interval(100 * low, 100 * high, sum(n for _, n in counts))


def accuracy_text(correct: int, n: int) -> str:
    """Format an accuracy with its 95 % interval: ``96.10 % (93.6–97.7, n = 359)``; ``no images`` for none."""
    return f"{100 * correct / n:.2f} % {percent_interval([(correct, n)])}" if n else "no images"


def half_width(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """Return half of the confidence interval of the mean by Student's t; None for fewer than two values.

    The values are independent, such as the results of one training with several seeds. Needs SciPy, which the extras ``search`` and
    ``demo`` install.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t  # half a second to import

    quantile = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
