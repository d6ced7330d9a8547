"""Calibration: whether scores are the shares of correct predictions that they claim to be (Guo et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from up.tasks.cls.evaluate.predictions import Bools, Floats, Ints

BINS = 15
T_MIN, T_MAX = 0.05, 20.0
_TINY = 1e-45  # the smallest positive float32
_TOLERANCE = 1e-10
_FLAT = 1e-12  # slopes and curvatures below are rounding


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


def are_probabilities(scores: Floats) -> bool:
    """Whether the scores (n, C) of each image add up to 1, as those of a softmax do."""
    return bool(np.allclose(scores.sum(axis=1, dtype=np.float64), 1, atol=1e-3))


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


def mean_nll(logits: Floats, labels: Ints, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the labels (n,)."""
    z = logits / temperature
    top = z.max(axis=1)
    return float((np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(z)), labels]).mean())


def fitted_temperature(logits: Floats, labels: Ints) -> float:
    """Return the temperature that minimises the negative log-likelihood, from ``T_MIN`` to ``T_MAX``.

    Newton's method on 1/T, in which the likelihood is convex, kept within a bracket. Where every image is correct and the scores
    could be as sure as they like, the result is ``T_MIN``.
    """
    low, high, inverse = 1 / T_MAX, 1 / T_MIN, 1.0
    of_label = logits[np.arange(len(logits)), labels]
    for _ in range(100):
        p = scaled(logits, 1 / inverse)
        mean = (p * logits).sum(axis=1)
        slope = float((mean - of_label).mean())
        curvature = float((p * (logits - mean[:, None]) ** 2).sum(axis=1).mean())
        low, high = (inverse, high) if slope <= _FLAT else (low, inverse)
        step = inverse - slope / curvature if curvature > _FLAT else np.inf
        if abs(step - inverse) < _TOLERANCE:
            break
        inverse = step if low < step < high else (low + high) / 2
    return 1 / inverse


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


def temperature_scaling(scores: Floats, labels: Ints, seed: int = 0) -> Scaling:
    """Fit temperatures to probabilities (n, C) and labels (n,) of at least two images; the halves are drawn by ``seed``.

    A temperature that is fitted and measured on the same images looks better than it is, so no image is measured with its own.
    """
    logits = logits_of(scores)
    is_first = np.zeros(len(labels), dtype=bool)
    is_first[np.random.default_rng(seed).permutation(len(labels))[: len(labels) // 2]] = True
    changed = np.empty_like(logits)
    nll, halves = 0.0, []
    for half in (is_first, ~is_first):
        temperature = fitted_temperature(logits[half], labels[half])
        halves.append(temperature)
        changed[~half] = scaled(logits[~half], temperature)
        nll += mean_nll(logits[~half], labels[~half], temperature) * int((~half).sum())
    return Scaling(
        temperature=fitted_temperature(logits, labels),
        halves=(halves[0], halves[1]),
        before=_reliability_of(scaled(logits, 1.0), labels),
        after=_reliability_of(changed, labels),
        nll_before=mean_nll(logits, labels),
        nll_after=nll / len(labels),
    )


def _reliability_of(probabilities: Floats, labels: Ints) -> Reliability:
    return reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
