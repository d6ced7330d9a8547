"""Calibration error and temperature against reference values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from up.tasks.cls.evaluate import row_file
from up.tasks.cls.evaluate.calibration import (
    T_MIN,
    are_probabilities,
    fitted_temperature,
    logits_of,
    mean_nll,
    reliability,
    scaled,
    temperature_scaling,
)

DRAW = np.random.default_rng(0)


def draw(n: int, classes: int, sharpness: float, seed: int = 0) -> tuple[Any, Any]:
    """Logits that are ``sharpness`` times those of a calibrated net, and labels."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.standard_normal((n, classes))
    labels = np.array([generator.choice(classes, p=p) for p in scaled(logits, 1.0)])
    return sharpness * logits, labels


def test_the_error_of_torchmetrics_example() -> None:
    """The values of its documentation for MulticlassCalibrationError(num_classes=3, n_bins=3): 0.2000."""
    scores = np.array([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]])
    labels = np.array([0, 1, 2, 0])
    found = reliability(scores.max(axis=1), scores.argmax(axis=1) == labels, bins=3)
    assert found.ece == pytest.approx(0.2, abs=5e-5)
    assert found.images.tolist() == [0, 3, 1]


def test_the_error_by_the_loop_of_the_paper() -> None:
    """As the code of Guo et al.: bins open below, weighted by their share of the images."""
    score, correct = DRAW.uniform(size=1000), DRAW.uniform(size=1000) < 0.6
    edges, expected = np.linspace(0, 1, 16), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (score > low) & (score <= high)
        if inside.any():
            expected += abs(score[inside].mean() - correct[inside].mean()) * inside.mean()
    assert reliability(score, correct).ece == pytest.approx(expected, rel=1e-12)


def test_edges_belong_to_the_bin_below() -> None:
    found = reliability(np.array([0.0, 0.5, 1.0]), np.array([True, False, True]), bins=2)
    assert found.images.tolist() == [2, 1]


def test_perfect_scores_have_no_error_and_sure_wrong_ones_all() -> None:
    assert reliability(np.ones(5), np.ones(5, dtype=bool)).ece == 0
    assert reliability(np.ones(5), np.zeros(5, dtype=bool)).ece == 1


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_is_scipys_minimum(sharpness: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits, labels = draw(400, 6, sharpness)
    expected = optimize.minimize_scalar(
        lambda t: mean_nll(logits, labels, t), bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}
    ).x
    assert fitted_temperature(logits, labels) == pytest.approx(expected, rel=1e-5)


def test_the_temperature_of_a_net_that_is_twice_too_sure_is_2() -> None:
    logits, labels = draw(20_000, 5, 2.0)
    assert fitted_temperature(logits, labels) == pytest.approx(2, abs=0.05)
    found = temperature_scaling(scaled(logits, 1.0).astype(np.float32), labels)
    assert found.temperature == pytest.approx(2, abs=0.05)
    assert found.halves == pytest.approx((2, 2), abs=0.1)
    assert found.after.ece < 0.02 < found.before.ece
    assert found.nll_after < found.nll_before


def test_blocks_of_rows_give_the_numbers_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only some rows of the scores are used."""
    logits, labels = draw(301, 5, 2.0)
    scores = np.concatenate([np.zeros((2, 5), np.float32), scaled(logits, 1.0).astype(np.float32)])
    whole = temperature_scaling(scores[2:], labels)
    monkeypatch.setattr(row_file, "_BLOCK_BYTES", 7 * 8 * 5)
    found = temperature_scaling(scores, labels, rows=np.arange(2, 303))
    assert (found.temperature, *found.halves) == pytest.approx((whole.temperature, *whole.halves), rel=1e-9)
    assert (found.nll_before, found.nll_after) == pytest.approx((whole.nll_before, whole.nll_after), rel=1e-12)
    assert (found.before.ece, found.after.ece) == pytest.approx((whole.before.ece, whole.after.ece), rel=1e-9)
    assert found.after.correct.tolist() == whole.after.correct.tolist()
    assert are_probabilities(scores, np.arange(2, 303))
    assert not are_probabilities(scores)


def test_probabilities_give_back_their_logits() -> None:
    logits, labels = draw(50, 4, 1.0)
    back = logits_of(scaled(logits, 1.0))
    assert (back - logits) == pytest.approx(np.repeat((back - logits)[:, :1], 4, axis=1))
    assert mean_nll(back, labels, 1.7) == pytest.approx(mean_nll(logits, labels, 1.7))


def test_no_image_is_measured_with_the_temperature_fitted_on_it() -> None:
    """Half A is overconfident, half B is not: measured crosswise, scaling helps neither."""
    found = temperature_scaling(np.full((2, 2), 0.5), np.array([0, 1]))
    assert found.nll_after == pytest.approx(np.log(2))


def test_where_all_is_correct_the_temperature_is_at_its_limit() -> None:
    assert fitted_temperature(np.array([[5.0, 0.0], [0.0, 3.0]]), np.array([0, 1])) == pytest.approx(T_MIN, rel=1e-6)


def test_scores_of_sigmoids_are_no_probabilities() -> None:
    assert are_probabilities(np.array([[0.5, 0.5], [0.1, 0.9]]))
    assert not are_probabilities(np.array([[0.9, 0.9]]))
