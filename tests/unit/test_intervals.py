"""Confidence intervals against printed tables and SciPy."""

from __future__ import annotations

import numpy as np
import pytest

from up.intervals import accuracy_text, half_width, mean_of_shares, wilson

NEWCOMBE = [  # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("number", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_the_interval_of_a_mean_is_that_of_student(number: int, quantile: float) -> None:
    values = [float(at) for at in range(number)]
    deviation = (number * (number + 1) / 12) ** 0.5
    assert half_width(values) == pytest.approx(quantile * deviation / number**0.5, rel=1e-3)


def test_other_confidences_and_too_few_values() -> None:
    assert half_width([1.0, 2.0, 3.0], confidence=0.9) == pytest.approx(2.920 / 3**0.5, rel=1e-3)
    assert half_width([1.0]) is None
    assert half_width([]) is None


@pytest.mark.parametrize(("correct", "n", "low", "high"), NEWCOMBE)
def test_wilson_has_the_printed_limits(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (345, 359), (359, 359), (38_065, 50_000)])
def test_wilson_agrees_with_scipy(correct: int, n: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    assert wilson(correct, n, confidence) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_needs_images(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} of {n}"):
        wilson(correct, n)


@pytest.mark.parametrize(
    ("mean", "images"), [(0.88, [36] * 10), (0.97, [10] * 100), (0.97, [4, 6, 10, 16, 27, 43, 70, 114, 184, 300]), (0.7, [36] * 10)]
)
def test_the_interval_of_a_mean_over_classes_covers_it(mean: float, images: list[int]) -> None:
    """1,000 evaluations of classes of several accuracies: the interval holds the truth in 95 % of them, within 2.5 %."""
    draw, n = np.random.default_rng(0), np.array(images)
    truth = np.clip(draw.normal(mean, 0.6 * (1 - mean), len(n)), 0, 1)
    covered = 0
    for correct in draw.binomial(n, truth, (1000, len(n))).tolist():
        low, high = mean_of_shares(list(zip(correct, images, strict=True)))
        covered += low <= truth.mean() <= high
    assert covered / 1000 == pytest.approx(0.95, abs=0.025)


def test_equal_classes_are_as_good_as_one_of_all_images() -> None:
    assert mean_of_shares([(30, 36)] * 10) == pytest.approx(wilson(300, 360))
    assert mean_of_shares([(36, 36)] * 10) == pytest.approx(wilson(360, 360))
    assert mean_of_shares([(0, 36)] * 10) == pytest.approx(wilson(0, 360))


def test_the_mean_of_one_share_is_wilsons() -> None:
    assert mean_of_shares([(345, 359)]) == pytest.approx(wilson(345, 359))


def test_an_accuracy_is_printed_with_its_interval_and_images() -> None:
    assert accuracy_text(345, 359) == "96.10 % (93.6–97.7, n = 359)"
    assert accuracy_text(38_065, 50_000) == "76.13 % (75.8–76.5, n = 50,000)"
    assert accuracy_text(0, 3) == "0.00 % (0.0–56.1, n = 3)"
    assert accuracy_text(0, 0) == "no images"
