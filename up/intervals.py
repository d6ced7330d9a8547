"""Confidence intervals of reported numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


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
