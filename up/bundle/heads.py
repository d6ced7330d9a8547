"""From the output of a graph to the scores of each head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from up.bundle.manifest import Head
from up.bundle.session import Floats


def scores_of(outputs: Floats, heads: Sequence[Head], *, activated: bool) -> list[Floats]:
    """Probabilities (N, C) of each head from the graph's ``outputs`` (N, numbers of all heads)."""
    parts = [outputs[:, head.start : head.end + 1] for head in heads]
    if activated:
        return parts
    return [_ACTIVATIONS[head.activation](part) for head, part in zip(heads, parts, strict=True)]


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: Floats = raised / raised.sum(axis=1, keepdims=True)
    return scores


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # a large negative logit: exp overflows to infinity, and 0 is the right score
        scores: Floats = np.reciprocal(1 + np.exp(-logits))
    return scores


_ACTIVATIONS = {"softmax": _softmax, "sigmoid": _sigmoid}
