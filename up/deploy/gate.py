"""The gate of an export: unless graph and net agree on real, random and constant images, nothing is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from up.bundle.answers import Answer, Floats
from up.bundle.parity import Closeness, closeness
from up.deploy.predictor import Forward
from up.errors import NumericalError

BATCHES = (1, 2, 5)
TOLERANCE = 1e-4
FROM_IMAGE = 1e-2
REAL_IMAGES = 64
_OTHERS = 8  # random images, and constant ones: each batch size once
_NOTHING = "Nothing was written."


def check_graph_outputs(reference: Forward, graph: Forward, answer: Answer, real: Floats) -> Closeness:
    """Compare a graph with its net on ``real`` (N, 3, H, W), random and constant images at batches of 1, 2 and 5.

    Raises ``NumericalError`` for an output that is off by more than 1e-4 of the largest, or another best class of a
    real image.
    """
    shape = (_OTHERS, *real.shape[1:])
    random = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    constant = np.broadcast_to(torch.linspace(-2, 2, _OTHERS).view(-1, 1, 1, 1).numpy(), shape)
    worst = Closeness()
    for kind, images in (("real", real), ("random", random), ("constant", constant)):
        for batch in cut(images, BATCHES):
            expected, got = reference(batch), graph(batch)
            where = f"on {kind} images at batch {len(batch)}"
            found = closeness(got, expected)
            require_close(found, TOLERANCE, f"the graph is not the net: it differs {where}")
            if kind == "real":
                changed = (answer.best(got) != answer.best(expected)).reshape(len(batch), -1)
                wrong = int((changed.mean(axis=1) > answer.near_ties).sum()) if changed.size else 0
                if wrong:
                    what = f"the graph is not the net: another best class in {wrong} of {len(batch)} images {where}"
                    raise NumericalError(f"{what}, with outputs that differ by {found.max_abs:.2e}", fix=_NOTHING)
            worst |= found
    return worst


def check_preprocessing(reference: Forward, graph: Forward, pairs: Iterable[tuple[Floats, Callable[[], Floats]]]) -> Closeness:
    """Compare the graph after the package's preprocessing with the net after training's.

    ``pairs``: for each image the input that training prepares, (1, 3, H, W), and a function that prepares the package's.
    Raises ``NumericalError`` above 1e-2 of the largest output.
    """
    worst = Closeness()
    for trained, packaged in pairs:
        found = closeness(graph(packaged()[None]), reference(trained))
        require_close(found, FROM_IMAGE, "the package's preprocessing is not that of training: an output differs")
        worst |= found
    return worst


def require_close(found: Closeness, tolerance: float, what: str) -> None:
    """Raise ``NumericalError`` for a difference above ``tolerance``, also where it is not a number."""
    if not found.is_within(tolerance):
        off = f"{found.max_abs:.2e}, allowed is {found.limit(tolerance):.2e} ({tolerance:g} of the largest, {found.largest:.3g})"
        raise NumericalError(f"{what} by {off}", fix=_NOTHING)


def cut(images: Floats, sizes: Sequence[int]) -> Iterator[Floats]:
    """Cut images into batches of ``sizes`` in turn until each was in one; few images are repeated."""
    at = 0
    for number, size in enumerate(itertools.cycle(sizes)):
        if at >= len(images) and number >= len(sizes):
            return
        yield np.ascontiguousarray(images[np.arange(at, at + size) % len(images)])
        at += size
