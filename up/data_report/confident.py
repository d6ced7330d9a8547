"""Confident learning: label errors from out-of-sample probabilities (Northcutt, Jiang and Chuang 2021, sections 3.1 and 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from up.tasks.cls.evaluate.predictions import UNREADABLE
from up.tasks.cls.evaluate.row_file import blocks_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelIssues:
    """Result of ``label_issues`` for N images and C classes.

    ``thresholds`` (C,) are the mean probabilities of a class over the images labelled so, NaN for a class without images; ``joint``
    (C, C) counts images by given and true class, ``calibrated`` (C, C) the same with as many images a row as have the label.
    ``found`` are the images with a probable error by rising self-confidence, the probability of the given label; ``suggested`` (N,)
    is the most probable class, ``UNREADABLE`` for an image without probabilities.
    """

    thresholds: Floats
    joint: Ints
    calibrated: Ints
    found: Ints
    suggested: Ints
    self_confidence: Floats

    @property
    def noise(self) -> float:
        """Estimated share of wrong labels: that of the images outside of the diagonal."""
        total = int(self.calibrated.sum())
        return 1 - float(np.trace(self.calibrated)) / total if total else 0.0


def label_issues(labels: Ints, probabilities: Floats) -> LabelIssues:
    """Find label errors by ``labels`` (N,) and out-of-sample ``probabilities`` (N, C), which are read in blocks.

    An image counts as of the class j with the largest probability among those with p_j >= t_j, where t_j is the mean of p_j over
    the images labelled j. The counts are scaled to the number of images of each label, and for each pair of classes i, j as many
    images labelled i as counted have an error: those with the largest p_j - p_i (pruning by noise rate). Images whose label is the
    most probable class are never named, as in cleanlab. Rows of zeros, of scores that were not finite, are left out.
    """
    images, classes = probabilities.shape
    own = probabilities[np.arange(images), labels]
    is_read = np.zeros(images, bool)
    for rows in blocks_of(images, classes):
        is_read[rows] = probabilities[rows].any(axis=1)
    counts = np.bincount(labels[is_read], minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    thresholds = np.divide(sums, counts, out=np.full(classes, np.nan), where=counts > 0)
    least = np.where(np.isnan(thresholds), np.inf, thresholds) - 1e-6
    true, suggested, counted = np.zeros(images, np.int64), np.zeros(images, np.int64), np.zeros(images, bool)
    for rows in blocks_of(images, classes):
        block = probabilities[rows]
        confident = block >= least
        true[rows], suggested[rows] = np.where(confident, block, -1.0).argmax(axis=1), block.argmax(axis=1)
        counted[rows] = confident.any(axis=1) & is_read[rows]
    suggested[~is_read] = UNREADABLE
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[counted], true[counted]), 1)
    diagonal = np.arange(classes)
    joint[diagonal, diagonal] = np.maximum(joint[diagonal, diagonal], counts > 0)
    calibrated = _calibrated(joint, counts)
    found = _pruned(np.where(is_read, labels, UNREADABLE), probabilities, calibrated)
    named = np.flatnonzero(found & (suggested != labels))
    order = np.lexsort((named, own[named]))
    return LabelIssues(thresholds, joint, calibrated, named[order], suggested, own)


def _calibrated(joint: Ints, counts: Ints) -> Ints:
    """Scale each row to the number of images with its label, in whole images: the largest remainders are rounded up."""
    scaled = joint * (counts / np.maximum(joint.sum(axis=1), 1))[:, None]
    whole: Ints = np.floor(scaled).astype(np.int64)
    for row, exact, total in zip(whole, scaled, counts.tolist(), strict=True):
        missing = total - int(row.sum())
        row[np.argsort(row - exact, kind="stable")[:missing]] += 1
    return whole


def _pruned(labels: Ints, probabilities: Floats, calibrated: Ints) -> NDArray[np.bool_]:
    found = np.zeros(len(labels), bool)
    for given, true in zip(*np.nonzero(calibrated), strict=True):
        if given == true:
            continue
        of_class = np.flatnonzero(labels == given)
        margin = probabilities[of_class, true] - probabilities[of_class, given]
        found[of_class[np.argsort(-margin, kind="stable")[: calibrated[given, true]]]] = True
    return found
