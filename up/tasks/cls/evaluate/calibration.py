"""Calibration: whether scores are the shares of correct predictions that they claim to be (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from up.tasks.cls.evaluate.predictions import Bools, Floats, Ints
from up.tasks.cls.evaluate.row_file import blocks_of

BINS = 15
T_MIN, T_MAX = 0.05, 20.0
_TINY = 1e-45  # the smallest positive float32
_TOLERANCE = 1e-10
_FLAT = 1e-12  # slopes and curvatures below are rounding


@dataclass(frozen=True)
class LogitsOfScores:
    """Logits of the probabilities ``scores`` (N, C) in ``rows`` (n,), computed when they are read."""

    scores: Floats
    rows: Ints

    @property
    def shape(self) -> tuple[int, int]:
        """(n, C)."""
        return len(self.rows), self.scores.shape[1]

    def __getitem__(self, rows: slice, /) -> Floats:
        return logits_of(self.scores[self.rows[rows]])


Logits: TypeAlias = Floats | LogitsOfScores  # (n, C), read in blocks of rows
OfRows: TypeAlias = Callable[[Floats, Ints], Floats]  # from the logits (k, C) and labels (k,) of a block of rows


@dataclass(frozen=True)
class Reliability:
    """Images (B,), correct images (B,) and mean score (B,; NaN for none) of bins of equal width, and their calibration error."""

    images: Ints
    correct: Ints
    score: Floats
    ece: float


def reliability(score: Floats, correct: Bools, bins: int = BINS) -> Reliability:
    """Sort n predictions by their ``score`` (0 to 1) into bins, each open below: (0, 1/B], (1/B, 2/B], ….

    The expected calibration error is the mean over the images of |accuracy - mean score| of their bin (equation 3 of the paper).
    With few images it is above 0 even for perfect scores.
    """
    place = np.clip(np.ceil(score * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    right = np.bincount(place, weights=correct, minlength=bins)
    total = np.bincount(place, weights=score, minlength=bins)
    ece = float(abs(right - total).sum() / max(1, len(score)))
    return Reliability(images, right.astype(np.int64), np.divide(total, images, out=np.full(bins, np.nan), where=images > 0), ece)


def are_probabilities(scores: Floats, rows: Ints | None = None) -> bool:
    """Whether the scores (n, C) of each image, or of those in ``rows``, add up to 1, as those of a softmax do."""
    sums = scores.sum(axis=1, dtype=np.float64)
    return bool(np.allclose(sums if rows is None else sums[rows], 1, atol=1e-3))


def logits_of(scores: Floats) -> Floats:
    """Return the logits (n, C) of probabilities, up to a constant for each image, which no softmax sees."""
    logits: Floats = np.log(np.maximum(scores.astype(np.float64), _TINY))
    return logits


def scaled(logits: Floats, temperature: float) -> Floats:
    """Return the probabilities (n, C) of logits divided by a temperature."""
    z = logits / temperature
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def mean_nll(logits: Logits, labels: Ints, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the labels (n,)."""

    def of(block: Floats, own: Ints) -> Floats:
        z = block / temperature
        top = z.max(axis=1)
        nll: Floats = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(z)), own]
        return nll

    return float(_by_rows(logits, labels, of).mean())


def fitted_temperature(logits: Logits, labels: Ints) -> float:
    """Return the temperature that minimises the negative log-likelihood, from ``T_MIN`` to ``T_MAX``.

    Newton's method on 1/T, in which the likelihood is convex, kept within a bracket. Where every image is correct and the scores
    could be as sure as they like, the result is ``T_MIN``.
    """
    low, high, inverse = 1 / T_MAX, 1 / T_MIN, 1.0
    for _ in range(100):
        slope, curvature = _slope_and_curvature(logits, labels, 1 / inverse)
        low, high = (inverse, high) if slope <= _FLAT else (low, inverse)
        step = inverse - slope / curvature if curvature > _FLAT else np.inf
        if abs(step - inverse) < _TOLERANCE:
            break
        inverse = step if low < step < high else (low + high) / 2
    return 1 / inverse


def _slope_and_curvature(logits: Logits, labels: Ints, temperature: float) -> tuple[float, float]:
    """Return the derivatives of the mean negative log-likelihood by 1/T."""

    def of(block: Floats, own: Ints) -> Floats:
        p = scaled(block, temperature)
        mean = (p * block).sum(axis=1)
        curvature = (p * (block - mean[:, None]) ** 2).sum(axis=1)
        return np.stack([mean - block[np.arange(len(block)), own], curvature], axis=1)

    slope, curvature = _by_rows(logits, labels, of).mean(axis=0).tolist()
    return slope, curvature


def _by_rows(logits: Logits, labels: Ints, compute: OfRows) -> Floats:
    """Compute a value for each row, block by block."""
    parts = [compute(logits[rows], labels[rows]) for rows in blocks_of(*logits.shape)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Scaling:
    """Temperature scaling, fitted on one half of the images and measured on the other, both ways.

    ``before`` and ``after`` are the calibration errors, ``nll_before`` and ``nll_after`` the losses, of all images, each with the
    temperature of the half that it is not in. ``temperature`` is that of all images: the one to use.
    """

    temperature: float
    halves: tuple[float, float]
    before: Reliability
    after: Reliability
    nll_before: float
    nll_after: float


def temperature_scaling(scores: Floats, labels: Ints, *, rows: Ints | None = None) -> Scaling:
    """Fit temperatures to probabilities (n, C) and labels (n,) of at least two images; the halves are drawn at random.

    A temperature that is fitted and measured on the same images looks better than it is, so no image is measured with its own.
    ``rows`` (n,) are those of ``scores`` to use, by default all. Scores in a file are read in blocks, several times.
    """
    logits = LogitsOfScores(scores, np.arange(len(scores)) if rows is None else rows)
    is_first = np.zeros(len(labels), dtype=bool)
    is_first[np.random.default_rng(0).permutation(len(labels))[: len(labels) // 2]] = True
    after = np.empty((len(labels), 2))
    nll, halves = 0.0, []
    for half in (is_first, ~is_first):
        fitted, measured = (replace(logits, rows=logits.rows[chosen]) for chosen in (half, ~half))
        temperature = fitted_temperature(fitted, labels[half])
        halves.append(temperature)
        after[~half] = _tops(measured, labels[~half], temperature)
        nll += mean_nll(measured, labels[~half], temperature) * int((~half).sum())
    return Scaling(
        temperature=fitted_temperature(logits, labels),
        halves=(halves[0], halves[1]),
        before=_reliability_of(_tops(logits, labels, 1.0)),
        after=_reliability_of(after),
        nll_before=mean_nll(logits, labels),
        nll_after=nll / len(labels),
    )


def _tops(logits: Logits, labels: Ints, temperature: float) -> Floats:
    """Return the largest probability of each image, and whether it is that of the label (n, 2)."""

    def of(block: Floats, own: Ints) -> Floats:
        probabilities = scaled(block, temperature)
        return np.stack([probabilities.max(axis=1), probabilities.argmax(axis=1) == own], axis=1)

    return _by_rows(logits, labels, of)


def _reliability_of(tops: Floats) -> Reliability:
    return reliability(tops[:, 0], tops[:, 1] > 0)
