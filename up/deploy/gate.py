"""The gate of an export: the graph gives what the net gives, on real, random and constant images, or nothing is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from up.bundle.session import Floats, Session
from up.deploy.onnx import expected_outputs
from up.errors import NumericalError

BATCHES = (1, 2, 5)
TOLERANCE = 1e-4
FROM_IMAGE = 1e-2
REAL_IMAGES = 64
_OTHERS = 8  # random images, and constant ones: each batch size once


@dataclass(frozen=True)
class Closeness:
    """How far outputs are from those expected; ``largest`` is the largest of these."""

    max_abs: float
    largest: float

    def limit(self, tolerance: float = TOLERANCE) -> float:
        """What ``max_abs`` may be: relative to the outputs where they are large."""
        return tolerance * max(1.0, self.largest)


@dataclass(frozen=True)
class Proof:
    """What passed the gate."""

    closeness: Closeness
    images: int
    batches: tuple[int, ...] = BATCHES


class Reference:
    """The net, with the outputs that every head must be right in: ``(first, last)`` of each head's numbers."""

    def __init__(self, module: nn.Module, ranges: Sequence[tuple[int, int]], *, multilabel: bool) -> None:
        self.module = module
        self._ranges = ranges
        self._compares_best = not multilabel

    def __call__(self, batch: Tensor) -> Floats:
        outputs: Floats = expected_outputs(self.module, batch).numpy()
        return outputs

    def best(self, outputs: Floats) -> NDArray[np.int64]:
        """The class of each head, (N, heads); nothing for sets of labels, which have no best."""
        if not self._compares_best:
            return np.zeros((len(outputs), 0), dtype=np.int64)
        return np.stack([outputs[:, first : last + 1].argmax(axis=1) for first, last in self._ranges], axis=1)


def prove(reference: Reference, session: Session, real: Tensor) -> Proof:
    """Compare on ``real`` (N, 3, H, W), random and constant images at batches of 1, 2 and 5.

    Raises ``NumericalError`` for an output that is off by more than 1e-4 of the largest, or another best class of a
    real image.
    """
    draw = torch.Generator().manual_seed(0)
    shape = (_OTHERS, *real.shape[1:])
    levels = torch.linspace(-2, 2, _OTHERS).view(-1, 1, 1, 1)
    worst = Closeness(0.0, 0.0)
    for kind, images in (
        ("real", real),
        ("random", torch.randn(shape, generator=draw)),
        ("constant", levels.expand(shape).contiguous()),
    ):
        found = compare(reference, session, images, kind)
        worst = Closeness(max(worst.max_abs, found.max_abs), max(worst.largest, found.largest))
    return Proof(worst, len(real))


def compare(reference: Reference, session: Session, images: Tensor, kind: str) -> Closeness:
    """How close the graph is on ``images``, which ``kind`` names in errors; raises as ``prove`` does."""
    worst = Closeness(0.0, 0.0)
    for batch in cut(images, BATCHES):
        expected, got = reference(batch), session(batch.numpy())
        found = closeness(got, expected)
        where = f"on {kind} images at batch {len(batch)}"
        if not found.max_abs <= found.limit():  # also when it is not a number
            raise NumericalError(
                f"the graph is not the net: it differs by {found.max_abs:.2e} {where}, allowed are {found.limit():.2e} "
                f"(1e-4 of the largest output, {found.largest:.3g}). Nothing was written."
            )
        wrong = (reference.best(got) != reference.best(expected)).any(axis=1)
        if kind == "real" and wrong.any():
            raise NumericalError(
                f"the graph is not the net: it sees another class in {wrong.sum()} of {len(batch)} images {where}, with "
                f"outputs that differ by {found.max_abs:.2e}. Nothing was written."
            )
        worst = Closeness(max(worst.max_abs, found.max_abs), max(worst.largest, found.largest))
    return worst


def closeness(got: Floats, expected: Floats) -> Closeness:
    """Of outputs of one shape; not a number where one of them is not."""
    if got.shape != expected.shape:
        return Closeness(float("nan"), 0.0)
    return Closeness(float(np.abs(got - expected).max()), float(np.abs(expected).max()))


def cut(images: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """The images in batches of ``sizes`` in turn, so that all of them take part; few images are repeated."""
    at = 0
    for number, size in enumerate(itertools.cycle(sizes)):
        if at >= len(images) and number >= len(sizes):
            return
        indices = torch.arange(at, at + size) % len(images)
        yield images[indices]
        at += size


def prove_from_images(reference: Reference, session: Session, pairs: Sequence[tuple[Tensor, Callable[[], Floats]]]) -> Closeness:
    """How close the graph behind the package's own preprocessing is to the net behind training's.

    ``pairs``: for each image what training's preprocessing makes of it, (1, 3, H, W), and a call of the package's.
    Raises ``NumericalError`` above 1e-2 of the largest output.
    """
    worst = Closeness(0.0, 0.0)
    for trained, packaged in pairs:
        found = closeness(session(packaged()[None]), reference(trained))
        if not found.max_abs <= found.limit(FROM_IMAGE):
            raise NumericalError(
                f"the package's preprocessing is not that of training: an output differs by {found.max_abs:.2e}, allowed "
                f"are {found.limit(FROM_IMAGE):.2e}. Nothing was written."
            )
        worst = Closeness(max(worst.max_abs, found.max_abs), max(worst.largest, found.largest))
    return worst
