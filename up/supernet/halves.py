"""Training images in two parts: one trains the weights, on the other the architecture is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypedDict, Unpack

import numpy as np

from up.data.packed import PackedLabels
from up.data.records import SampleKey
from up.data.sampler import EvalBatches, Indices, Order, TrainBatches, Visits, permutation
from up.errors import UserError
from up.seed import key
from up.text import count

_HALVES = 11  # purpose of a draw
_PASS = 1 << 20  # more than the visits of an image in one pass over the data


class Batching(TypedDict):
    """Settings of ``TrainBatches``."""

    batch_size: int
    accumulate: int
    rank: int
    world_size: int
    drop_last: bool


class Halves(NamedTuple):
    """Indices of the images of both parts, ascending."""

    weights: Indices
    held_out: Indices


def halves_of(labels: PackedLabels | None, size: int, share: float, seed: int) -> Halves:
    """Hold out a ``share`` of ``size`` images, of each class as nearly as possible; of images with several labels by the first.

    Raises ``UserError`` for too few images.
    """
    classes = np.zeros(size, dtype=np.int64)
    if labels is not None and len(labels.values):
        owners, first = np.unique(labels.owners(), return_index=True)
        classes[owners] = labels.values.ravel()[first]
    shuffled = permutation(size, key(seed, _HALVES))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    ends = np.floor(np.arange(size + 1) * share + 1e-9)
    is_held = np.diff(ends) > 0  # spread evenly over the classes
    halves = Halves(np.sort(by_class[~is_held]), np.sort(by_class[is_held]))
    if min(map(len, halves)) < 1:
        raise UserError(
            f"leaves one part of {count(size, 'image')} empty", got=share, key="holdout", fix="Choose a share nearer to 0.5."
        )
    return halves


class Reordered:
    """An order of some images in epochs of another ``length``: passes over them follow each other without a gap."""

    def __init__(self, order: Order, indices: Indices, length: int) -> None:
        self._order, self._indices, self._length = order, indices, length

    def __len__(self) -> int:
        return self._length

    def __call__(self, epoch: int) -> Visits:
        """Return the visits of ``epoch``, by their indices in the whole data."""
        first, start = divmod(epoch * self._length, len(self._order))
        passes = [self._order(first + number) for number in range(-(-(start + self._length) // len(self._order)))]
        index = np.concatenate([each.index for each in passes])[start : start + self._length]
        repeat = np.concatenate([each.repeat + number * _PASS for number, each in enumerate(passes)])[start : start + self._length]
        return Visits(self._indices[index], repeat)


class PairedBatches(TrainBatches):
    """Batches of images that train the weights, each followed by as many held-out images."""

    def __init__(self, order: Order, held_out: Order, **settings: Unpack[Batching]) -> None:
        super().__init__(order, **settings)
        self._held_out = TrainBatches(held_out, **settings)

    def keys_of(self, step: int) -> list[list[SampleKey]]:
        """Return this rank's part of a step in micro-batches, of which the first half trains the weights."""
        pairs = zip(super().keys_of(step), self._held_out.keys_of(step), strict=True)
        return [[*own, *others] for own, others in pairs]


class FixedBatches(EvalBatches):
    """Images in batches of nearly one size that do not depend on the number of ranks, which take turns."""

    def __init__(self, size: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        numbers = np.arange(size)
        self._batches = [part.tolist() for part in np.array_split(numbers, -(-size // batch_size))][rank::world_size]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return ([SampleKey(0, index) for index in batch] for batch in self._batches)
