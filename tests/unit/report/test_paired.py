"""Paired tests: reference values, size under the null hypothesis, coverage and power, all simulated with fixed seeds."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from up.report.paired import LEVEL, detectable, holm, mcnemar, paired

DRAWS = 2000
p_values = cache(mcnemar)


def binomial(n: int, share: float) -> list[tuple[int, float]]:
    """The probabilities of 0 to n successes, without those below 1e-9."""
    logs = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1))
    found = [math.exp(log + k * math.log(share) + (n - k) * math.log(1 - share)) for k, log in enumerate(logs)]
    return [(k, weight) for k, weight in enumerate(found) if weight > 1e-9]


def test_the_values_of_fagerland_et_al() -> None:
    """Table 2 of Fagerland, Lydersen and Laake 2013: 1 and 7 discordant pairs, p .070 and mid-p .039."""
    p_exact, p_mid = mcnemar(1, 7)
    assert (round(p_exact, 3), round(p_mid, 3)) == (0.070, 0.039)
    assert mcnemar(7, 1) == (p_exact, p_mid)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (3, 3), (2, 9), (40, 61), (900, 1100)])
def test_the_exact_p_is_that_of_the_binomial_test(b: int, c: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    p_exact, p_mid = mcnemar(b, c)
    if b + c:
        assert p_exact == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
        below, at = stats.binom.cdf(min(b, c), b + c, 0.5), stats.binom.pmf(min(b, c), b + c, 0.5)
        assert p_mid == pytest.approx(min(1.0, 2 * below - at), rel=1e-9)
    else:
        assert (p_exact, p_mid) == (1.0, 1.0)


def pairs(n: int, discordance: float, difference: float, seed: int) -> np.ndarray:
    """Discordant pairs (DRAWS, 2) of models that differ on a share of n images, and by ``difference`` in accuracy."""
    shares = [(discordance - difference) / 2, (discordance + difference) / 2, 1 - discordance]
    return np.random.default_rng(seed).multinomial(n, shares, DRAWS)[:, :2]


@pytest.mark.parametrize(("n", "discordance"), [(359, 0.1), (1000, 0.08)])
def test_the_size_of_the_decision_is_that_of_its_level(n: int, discordance: float) -> None:
    """2,000 pairs of equally good models: the decision is wrong in 5 % of them, within 1 %; the exact test in fewer."""
    found = [p_values(int(b), int(c)) for b, c in pairs(n, discordance, 0.0, seed=3)]
    size_exact, size = (sum(p[at] < LEVEL for p in found) / DRAWS for at in (0, 1))
    assert size == pytest.approx(0.05, abs=0.01)
    assert size_exact < size


@pytest.mark.parametrize(("n", "discordance"), [(200, 0.1), (359, 0.1), (1000, 0.08)])
def test_the_size_of_the_decision_without_the_noise_of_a_simulation(n: int, discordance: float) -> None:
    """The probability of a wrong decision, summed over all numbers of discordant images and all their divisions."""
    size = 0.0
    for m, weight in binomial(n, discordance):
        size += weight * sum(share for k, share in binomial(m, 0.5) if p_values(k, m - k)[1] < LEVEL)
    assert size == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize(("n", "discordance"), [(359, 0.1), (2000, 0.06)])
def test_the_detectable_difference_is_found_with_the_power_stated(n: int, discordance: float) -> None:
    difference = detectable(n, round(n * discordance))
    assert difference is not None
    found = sum(p_values(int(b), int(c))[1] < LEVEL for b, c in pairs(n, discordance, difference, seed=2)) / DRAWS
    assert found == pytest.approx(0.8, abs=0.03)


def test_the_bootstrap_interval_covers_the_difference() -> None:
    covered = 0
    for draw, (b, c) in enumerate(pairs(400, 0.1, 0.02, seed=3)[:200]):
        first = np.r_[np.ones(b), np.zeros(c), np.ones(400 - b - c)].astype(bool)
        second = np.r_[np.zeros(b), np.ones(c), np.ones(400 - b - c)].astype(bool)
        found = paired(first, second, seed=draw)
        covered += found.low <= 0.02 <= found.high
    assert covered / 200 == pytest.approx(0.95, abs=0.03)


def test_counts_and_difference() -> None:
    found = paired([True, True, False, False, True], [True, False, True, False, False])
    assert (found.both, found.only_first, found.only_second, found.neither, found.n) == (1, 2, 1, 1, 5)
    assert found.difference == pytest.approx(-0.2)
    assert paired([True, False], [True, True], seed=1) == paired([True, False], [True, True], seed=1)


def test_models_that_never_differ_have_an_honest_interval() -> None:
    found = paired([True] * 20, [True] * 20)
    assert (found.difference, found.p_mid, found.detectable) == (0, 1, None)
    assert found.high == pytest.approx(0.1611, abs=1e-4)  # as wide as 0 of 20
    assert found.low == -found.high


def test_holm_adjusts_as_its_paper() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
