"""Confident learning: values worked out by the definitions of the paper (Northcutt, Jiang and Chuang 2021)."""

from __future__ import annotations

import numpy as np
import pytest

from up.data_report.confident import label_issues
from up.data_report.issues import issues_of
from up.data_report.out_of_sample import OutOfSample, probabilities_of
from up.tasks.cls.evaluate import row_file


def test_two_classes_by_hand() -> None:
    """Thresholds .6333 and .6667: image 2 is confident in class 1, image 5 in none; row 1 is scaled from 2 to 3 images."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4]])
    found = label_issues(np.array([0, 0, 0, 1, 1, 1]), probabilities)
    assert found.thresholds.tolist() == pytest.approx([1.9 / 3, 2.0 / 3])
    assert found.joint.tolist() == [[2, 1], [0, 2]]
    assert found.calibrated.tolist() == [[2, 1], [0, 3]]
    assert found.found.tolist() == [2]
    assert found.suggested[2] == 1
    assert found.noise == pytest.approx(1 / 6)


def test_three_classes_by_hand() -> None:
    """An image is of the most probable class among those that reach their threshold, which need not be the most probable of all."""
    probabilities = np.array(
        [
            [0.50, 0.45, 0.05],  # of 0: t0 = .625
            [0.75, 0.20, 0.05],
            [0.30, 0.10, 0.60],  # of 1: t1 = .35
            [0.10, 0.60, 0.30],
            [0.05, 0.15, 0.80],  # of 2: t2 = .85
            [0.05, 0.05, 0.90],
        ]
    )
    found = label_issues(np.array([0, 0, 1, 1, 2, 2]), probabilities)
    assert found.thresholds.tolist() == pytest.approx([0.625, 0.35, 0.85])
    assert found.joint.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert found.calibrated.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 2]]
    assert found.found.tolist() == []  # image 0 would be pruned, but its label is the most probable class


def test_blocks_of_images_give_the_numbers_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    probabilities, labels = draw.dirichlet([0.5] * 6, 101), draw.integers(0, 6, 101)
    whole = label_issues(labels, probabilities)
    monkeypatch.setattr(row_file, "_BLOCK_BYTES", 10 * 8 * 6)
    found = label_issues(labels, probabilities_of((3 * probabilities).astype(np.float32)))
    assert found.joint.tolist() == whole.joint.tolist()
    assert found.suggested.tolist() == whole.suggested.tolist()
    assert found.found.tolist() == whole.found.tolist()
    assert found.thresholds == pytest.approx(whole.thresholds, rel=1e-6)


def test_errors_are_ranked_by_self_confidence_and_classes_without_images_have_none() -> None:
    draw = np.random.default_rng(0)
    true = np.repeat([0, 1, 3], 100)
    probabilities = draw.dirichlet([0.3] * 4, 300) * 0.3
    probabilities[np.arange(300), true] += 0.7
    labels = true.copy()
    wrong = draw.permutation(300)[:20]
    labels[wrong] = np.array([1, 3, 0, 0])[labels[wrong]]
    found = label_issues(labels, probabilities)
    assert {*found.found.tolist()} <= {*wrong.tolist()}
    assert len(found.found) >= 14  # errors lower the thresholds of their labels, so that some are not counted
    assert np.isnan(found.thresholds[2])
    assert np.all(np.diff(found.self_confidence[found.found]) >= 0)
    assert found.suggested[found.found].tolist() == true[found.found].tolist()
    assert found.calibrated.sum(axis=1).tolist() == np.bincount(labels, minlength=4).tolist()


def test_images_whose_scores_are_not_finite_are_no_issues_and_not_correct() -> None:
    """Their scores are stored as zeros, of which class 0 is the first largest."""
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.0, 0.0], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4], [0.0, 0.0]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    readable = scores.any(axis=1)
    expected = label_issues(labels[readable], probabilities_of(scores[readable]))
    found = label_issues(labels, probabilities_of(scores))
    assert found.thresholds.tolist() == expected.thresholds.tolist()
    assert found.calibrated.tolist() == expected.calibrated.tolist()
    assert found.found.tolist() == [2]
    names = [f"{index}.png" for index in range(len(labels))]
    report = issues_of(OutOfSample(probabilities_of(scores), labels, names, names, names, ["cat", "dog"], "test"))
    assert report["correct"] == 4
    assert [row["filename"] for row in report["issues"]] == ["2.png"]
