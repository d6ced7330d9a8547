from __future__ import annotations

import numpy as np
import pytest

from up.tasks.cls.evaluate.predictions import HeadPredictions
from up.tasks.cls.evaluate.scoring import (
    ClassCounts,
    average_precisions,
    counts_of,
    mean_class_accuracy,
    precision_recall_f1,
    share,
    top_k,
)

# Class 0: 1 of 2 found; class 1: 1 of 1 found; class 2: never there, predicted once; class 3: neither.
COUNTS = ClassCounts(np.array([2, 1, 0, 0]), np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0]))


def head_of(preds: list[int], gt: list[int]) -> HeadPredictions:
    rank = np.array([0 if pred == true else 1 for pred, true in zip(preds, gt, strict=True)])
    return HeadPredictions(4, np.array(preds)[:, None], np.ones((len(gt), 1)), np.array(gt), rank)


def test_counts_leave_out_predictions_that_are_none() -> None:
    counts = counts_of(head_of([0, 2, 1, -1], [0, 0, 1, 3]))
    assert (counts.images.tolist(), counts.predicted.tolist()) == ([2, 1, 0, 1], [1, 1, 1, 0])
    assert counts.correct.tolist() == [1, 1, 0, 0]


def test_nothing_of_nothing_is_zero() -> None:
    assert share(np.array([1, 0]), np.array([4, 0])).tolist() == [0.25, 0.0]


def test_averages_over_the_classes() -> None:
    assert precision_recall_f1(COUNTS, "macro") == pytest.approx((2 / 3, 1.5 / 3, (2 / 3 + 1) / 3))
    assert precision_recall_f1(COUNTS, "macro", all_classes=True) == pytest.approx((2 / 4, 1.5 / 4, (2 / 3 + 1) / 4))
    assert precision_recall_f1(COUNTS, "weighted") == pytest.approx((1.0, 2 / 3, (2 * 2 / 3 + 1) / 3))
    assert precision_recall_f1(COUNTS, "micro") == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_mean_class_accuracy_is_over_the_classes_with_images() -> None:
    assert mean_class_accuracy(COUNTS) == 0.75


def test_top_k_stops_at_the_number_of_classes() -> None:
    head = head_of([0, 1, 2], [0, 0, 2])
    assert [top_k(head, k) for k in (1, 2, 9)] == pytest.approx([2 / 3, 1.0, 1.0])


def test_equal_scores_are_one_threshold_of_average_precision() -> None:
    scores = np.array([[0.5], [0.5], [0.5], [0.1]])
    gt = np.array([[True], [False], [False], [True]])
    head = HeadPredictions(1, np.zeros((4, 1)), scores, gt, scores=scores)
    assert average_precisions(head).tolist() == pytest.approx([0.5 * 1 / 3 + 0.5 * 2 / 4])
