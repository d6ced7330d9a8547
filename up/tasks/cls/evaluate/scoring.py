"""Metrics of predictions, as plain functions of arrays; shares lie between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from up.tasks.cls.evaluate.predictions import Bools, Floats, HeadPredictions, Ints
from up.tasks.cls.evaluate.row_file import Array

Average = Literal["macro", "micro", "weighted"]


@dataclass(frozen=True)
class ClassCounts:
    """For each of C classes the number of images with that label, of those predicted as it, and of correct ones."""

    images: Ints
    predicted: Ints
    correct: Ints

    def of_classes(self, wanted: Sequence[int]) -> ClassCounts:
        """Select the counts of these classes."""
        chosen = list(wanted)
        return ClassCounts(self.images[chosen], self.predicted[chosen], self.correct[chosen])

    def pairs(self, wanted: Bools) -> list[tuple[int, int]]:
        """List correct images and images of the classes of a mask (C,)."""
        return [*zip(self.correct[wanted].tolist(), self.images[wanted].tolist(), strict=True)]

    @property
    def precision(self) -> Floats:
        """Share of correct images among those predicted (C,); 0 for a class that was never predicted."""
        return share(self.correct, self.predicted)

    @property
    def recall(self) -> Floats:
        """Share of correct images among those with the label (C,); 0 for a class without images."""
        return share(self.correct, self.images)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall (C,)."""
        return share(2 * self.correct, self.images + self.predicted)


def share(part: Array, whole: Array) -> Floats:
    """Divide ``part`` by ``whole``, 0 where ``whole`` is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part), dtype=np.float64), where=whole > 0)


def counts_of(head: HeadPredictions) -> ClassCounts:
    """Count the classes of a head with labels: one an image, or sets of labels (predicted where the score is above .5)."""
    labels = head.labels
    if labels.ndim == 2:
        return ClassCounts(labels.sum(axis=0), head.sets.sum(axis=0), (labels & head.sets).sum(axis=0))
    groups = (labels, head.preds[head.preds >= 0], labels[head.preds == labels])
    return ClassCounts(*(np.bincount(group, minlength=head.classes) for group in groups))


def among_top(head: HeadPredictions, k: int) -> int:
    """Count the images whose label is among the first ``k`` classes; a ``k`` above C means all of them."""
    assert head.rank is not None, "a head without labels has no ranks"
    return int((head.rank < min(k, head.classes)).sum())


def top_k(head: HeadPredictions, k: int) -> float:
    """Compute the share of images whose label is among the first ``k`` classes."""
    return among_top(head, k) / len(head.labels)


def mean_loss(head: HeadPredictions) -> float:
    """Compute the criterion over all images as one batch: the sum of the shares over that of the weights."""
    assert head.loss is not None
    assert head.loss_weight is not None
    whole = float(head.loss_weight.sum(dtype=np.float64))
    return float(head.loss.sum(dtype=np.float64)) / whole if whole else float("nan")


def mean_class_accuracy(counts: ClassCounts) -> float:
    """Average the recall over the classes that have images."""
    return float(counts.recall[counts.images > 0].mean()) if counts.images.any() else 0.0


def precision_recall_f1(counts: ClassCounts, average: Average, *, all_classes: bool = False) -> tuple[float, float, float]:
    """Average precision, recall and F1 over the classes: plain mean, pooled, or weighted by images.

    Classes that neither have images nor were predicted do not count, unless ``all_classes``.
    """
    if average == "micro":
        pooled = ClassCounts(*(np.asarray([part.sum()]) for part in (counts.images, counts.predicted, counts.correct)))
        return float(pooled.precision[0]), float(pooled.recall[0]), float(pooled.f1[0])
    if average == "weighted":
        weights = counts.images.astype(np.float64)
    elif all_classes:
        weights = np.ones(len(counts.images))
    else:
        weights = ((counts.images > 0) | (counts.predicted > 0)).astype(np.float64)
    total = max(float(weights.sum()), 1e-12)
    precision, recall, f1 = (float(each @ weights) / total for each in (counts.precision, counts.recall, counts.f1))
    return precision, recall, f1


def average_precisions(head: HeadPredictions) -> Floats:
    """Compute the area (C,) under the precision-recall steps of each class, NaN for a class without positives."""
    assert head.scores is not None
    return np.array([average_precision(head.scores[:, c], head.labels[:, c]) for c in range(head.classes)])


def average_precision(scores: Array, positive: Array) -> float:
    """Compute Σ (R_i - R_i-1) P_i over the distinct scores, falling; equal scores are one threshold."""
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(positive[order])[last_of_equals]
    precision = found / (np.flatnonzero(last_of_equals) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])
