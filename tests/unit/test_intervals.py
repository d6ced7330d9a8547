"""Confidence intervals against printed tables of Student's t."""

from __future__ import annotations

import pytest

from up.intervals import half_width


@pytest.mark.parametrize(("number", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_the_interval_of_a_mean_is_that_of_student(number: int, quantile: float) -> None:
    values = [float(at) for at in range(number)]
    deviation = (number * (number + 1) / 12) ** 0.5
    assert half_width(values) == pytest.approx(quantile * deviation / number**0.5, rel=1e-3)


def test_other_confidences_and_too_few_values() -> None:
    assert half_width([1.0, 2.0, 3.0], confidence=0.9) == pytest.approx(2.920 / 3**0.5, rel=1e-3)
    assert half_width([1.0]) is None
    assert half_width([]) is None
