"""Order of the data: a pure function of the seed, the epoch and the data, so that a run can start at any step.

``order(epoch)`` does not depend on ranks and workers. ``TrainBatches`` divides it into steps, and each step among the
ranks; ``EvalBatches`` gives every image to exactly one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from up.config.argument import AtLeast1, Derived, FromProgram, NoEffect
from up.config.checked import checked
from up.config.contract import Contract, Method, PartError, called
from up.data.packed import PackedLabels
from up.data.records import SampleKey
from up.errors import UserError
from up.registry import Registry
from up.seed import key
from up.text import count

Indices = NDArray[np.int64]
Size: TypeAlias = Annotated[int, FromProgram()]
Seed: TypeAlias = Annotated[int, FromProgram()]
Shuffle: TypeAlias = Annotated[bool, Derived("dataloader.kwargs.shuffle")]
Labels: TypeAlias = Annotated[PackedLabels | None, FromProgram()]

SAMPLERS = Registry(
    "sampler",
    {
        "dist": "up.data.sampler:Shuffled",
        "local": "up.data.sampler:Shuffled",
        "dist_test": "up.data.sampler:InOrder",
        "local_test": "up.data.sampler:InOrder",
        "repeat_factor": "up.data.sampler:RepeatFactor",
        "class_balance": "up.data.sampler:ClassBalance",
        "list_balance": "up.data.sampler:ListBalance",
        "repeated_aug": "up.data.sampler:RepeatedAugmentation",
    },
    contract=Contract(
        "docs/add_a_part.md",
        methods=(
            Method("__len__", "def __len__(self) -> int", "the number of samples in an epoch"),
            Method("__call__", "def __call__(self, epoch: int) -> Visits", "the samples of an epoch in their order"),
        ),
    ),
)

_ORDER, _REPEATS = 1, 2  # purposes of draws, mixed into the key
_RARE, _COMMON = 10, 100  # most images of a rare and of a common class (Gupta et al. 2019, LVIS, §3)


@dataclass(frozen=True)
class Visits:
    """Samples of an epoch in their order: ``index`` (N,), and ``repeat`` (N,), the visit number of the sample within the epoch."""

    index: Indices
    repeat: Indices


class Order(Protocol):
    """Order of every epoch; all epochs are ``len(order)`` long."""

    def __len__(self) -> int: ...

    def __call__(self, epoch: int) -> Visits:
        """Return the visits of ``epoch``."""


class _Sized:
    """An order whose epochs are as long as the data."""

    _size: int

    def __len__(self) -> int:
        return self._size


class Shuffled(_Sized):
    """All images once in an epoch, in another random order each time (``fix_seed``: always in the same)."""

    def __init__(self, *, size: Size, seed: Seed = 0, shuffle: Shuffle = True, fix_seed: bool = False) -> None:
        self._size, self._seed, self._shuffle, self._fixed = size, seed, shuffle, fix_seed

    def __call__(self, epoch: int) -> Visits:
        once = np.zeros(self._size, dtype=np.int64)
        if not self._shuffle:
            return Visits(np.arange(self._size), once)
        return Visits(permutation(self._size, key(self._seed, 0 if self._fixed else epoch, _ORDER)), once)


class InOrder(Shuffled):
    """All images once, in the order of the meta file."""

    def __init__(self, *, size: Size) -> None:
        super().__init__(size=size, shuffle=False)


class _Weighted:
    """Each image ⌊w⌋ or ⌈w⌉ times, w on average, shuffled (systematic sampling).

    The weights (N,) are scaled up so little that their sum is a whole number, the length of an epoch. The visits of each of
    the ``groups`` (N,) are the sum of its weights, rounded down or up.
    """

    def __init__(self, weights: NDArray[np.float64], seed: int, groups: Indices | None = None) -> None:
        total = weights.sum()
        self._weights = np.asarray(weights * (np.ceil(total - 1e-6) / total))
        self._length = int(round(self._weights.sum()))
        self._seed, self._groups = seed, groups

    def __len__(self) -> int:
        return self._length

    def __call__(self, epoch: int) -> Visits:
        length, seed = self._length, self._seed
        shuffled = permutation(len(self._weights), key(seed, epoch, _REPEATS))
        if self._groups is not None:
            shuffled = shuffled[np.argsort(self._groups[shuffled], kind="stable")]
        start = (key(seed, epoch, _REPEATS, 0) >> 11) * 2.0**-53
        ends = np.floor(np.cumsum(self._weights[shuffled]) + start).astype(np.int64)
        ends[-1] = length  # corrects the rounding of the sum
        times = np.diff(np.minimum(ends, length), prepend=0)
        index = np.repeat(shuffled, times)
        repeat = np.arange(length) - np.repeat(np.cumsum(times) - times, times)
        order = permutation(length, key(seed, epoch, _ORDER))
        return Visits(index[order], repeat[order])


class RepeatFactor(_Weighted):
    """Images of rare classes more often: max over its classes of max(1, (t / share)^pn) times (Gupta et al. 2019, LVIS, §5.2).

    - ``t``: classes in a smaller share of the images than this are repeated; ``pn``: 0.5 is the paper's square root.
    - ``ri_mode``: ``random_round`` rounds the factors up in some epochs and down in others, so that the factor is the mean
      number of visits; ``floor``, ``round`` and ``ceil`` round them once; ``c_ceil_r_f_floor`` rounds up where
      the rarest class of an image is common (11 to 100 images, as LVIS has it), and down where it is rare or frequent.
    - ``ri_if_empty``: number of visits of an image without labels.

    All epochs are as long as the sum of the factors.
    """

    def __init__(
        self,
        *,
        size: Size,
        labels: Labels = None,
        seed: Seed = 0,
        t: Annotated[float, Field(gt=0)] = 0.001,
        ri_mode: Literal["random_round", "floor", "round", "ceil", "c_ceil_r_f_floor"] = "random_round",
        pn: Annotated[float, Field(ge=0)] = 0.5,
        ri_if_empty: Annotated[int, Field(ge=0)] = 1,
        static_size: Annotated[bool, NoEffect("all epochs have one length, on which the learning rate depends")] = True,
    ) -> None:
        del static_size
        labels = _expect_labels(labels, size, "repeat_factor").by_head()
        owners, values = labels.owners(), labels.values
        counts = np.bincount(values)
        factors = np.zeros(size)
        np.maximum.at(factors, owners, np.maximum(1, (t / (counts[values] / size)) ** pn))
        rarest = np.full(size, size, dtype=np.int64)
        np.minimum.at(rarest, owners, counts[values])
        is_common = (rarest > _RARE) & (rarest <= _COMMON)
        repeats = np.where(factors > 0, _rounded(factors, ri_mode, is_common), ri_if_empty)
        super().__init__(repeats, seed)


def _rounded(factors: NDArray[np.float64], mode: str, is_common: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Round factors as ``ri_mode`` of ``RepeatFactor`` says; whole ones stay whole in spite of the last bit."""
    down, up = np.floor(factors + 1e-9), np.ceil(factors - 1e-9)
    by_frequency = np.where(is_common, up, down)
    modes = {"floor": down, "ceil": up, "round": np.round(factors), "c_ceil_r_f_floor": by_frequency}
    return modes.get(mode, factors)


class ClassBalance(_Weighted):
    """Every class equally often: an epoch is as long as the data, and its images are spread evenly over the classes.

    Images of rare classes come several times, each time augmented anew; some of frequent ones wait for later epochs.
    """

    def __init__(self, *, size: Size, labels: Labels = None, seed: Seed = 0) -> None:
        labels = _expect_labels(labels, size, "class_balance")
        if labels.heads != 1:
            raise UserError("sampler class_balance needs one label for each image; got several. Use repeat_factor.")
        values = labels.values.ravel()
        counts = np.bincount(values)
        super().__init__(size / (np.count_nonzero(counts) * counts[values]), seed)


class ListBalance(_Weighted):
    """A share of the epoch for every meta file: an epoch is as long as the data, and ``ratios`` are the shares.

    ``ratios``: one number for each file of ``meta_file``, in that order; left out, all files get the same share. Images of a
    short file come several times, each time augmented anew; some of a long one wait for later epochs.
    """

    def __init__(
        self,
        *,
        size: Size,
        sources: Annotated[NDArray[np.uint16] | None, FromProgram()] = None,
        seed: Seed = 0,
        ratios: list[Annotated[float, Field(ge=0)]] | None = None,
    ) -> None:
        of_list = np.zeros(size, dtype=np.int64) if sources is None else np.asarray(sources, dtype=np.int64)
        counts = np.bincount(of_list)
        if ratios is not None and len(ratios) != len(counts):
            raise UserError(
                f"got {count(len(ratios), 'number')} for {count(len(counts), 'meta file')}", fix="Give one for each.", key="ratios"
            )
        shares = np.where(counts > 0, 1.0 if ratios is None else np.asarray(ratios), 0.0)
        if not shares.sum() > 0:
            raise UserError("all are 0 for meta files that have images. Expected one above 0.", key="ratios")
        super().__init__(size * (shares / shares.sum() / np.maximum(counts, 1))[of_list], seed, groups=of_list)


class RepeatedAugmentation(_Sized):
    """Each image ``num_repeats`` times in a row, augmented anew each time (Hoffer et al. 2020; Berman et al. 2019).

    An epoch is as long as the data all the same, so it shows one image in ``num_repeats``; ranks take turns, so the
    copies of an image are in the same step.
    """

    @checked
    def __init__(self, *, size: Size, seed: Seed = 0, num_repeats: AtLeast1 = 3) -> None:
        self._size, self._seed, self._repeats = size, seed, num_repeats

    def __call__(self, epoch: int) -> Visits:
        shown = permutation(self._size, key(self._seed, epoch, _ORDER))
        position = np.arange(self._size)
        return Visits(shown[position // self._repeats], position % self._repeats)


def _expect_labels(labels: PackedLabels | None, size: int, sampler: str) -> PackedLabels:
    if labels is None or not len(labels.values):
        raise UserError(f"sampler {sampler} weighs images by their labels, and these have none. Use dist.")
    assert len(labels) == size
    return labels


def permutation(size: int, seed: int) -> Indices:
    """Shuffle ``size`` indices with ``seed``.

    Sorts random words: unlike ``Generator.permutation`` these are the same in every version of numpy.
    """
    return np.argsort(np.random.Philox(key=seed).random_raw(size), kind="stable")


class Share(NamedTuple):
    """Weight of a micro-batch in its step."""

    images: float  # its images · ranks / images of the step: over all micro-batches and ranks they add up to the number of ranks
    row: float  # the same for each of its rows, which are more than its images where one is read twice or only to keep a rank busy


class Cut(NamedTuple):
    """Part of a rank in a step."""

    shares: list[Share]  # of its micro-batches
    images: int  # of all ranks


class TrainBatches:
    """Divides the epochs of ``order`` into steps and gives ``rank`` its part of each, at any step in constant time.

    A step takes ``batch_size * world_size * accumulate`` images. The last one of an epoch is shorter (left out under
    ``drop_last``). Ranks then take different numbers of images, and ``cut`` weighs each micro-batch, so that the mean of
    the ranks' gradients is the mean over the images. Raises ``UserError`` when there are fewer images than one step takes.
    """

    def __init__(
        self, order: Order, *, batch_size: int, accumulate: int = 1, rank: int = 0, world_size: int = 1, drop_last: bool = False
    ) -> None:
        self.global_batch_size = batch_size * world_size * accumulate
        if len(order) < self.global_batch_size:
            raise UserError(
                f"{count(len(order), 'image')} for training, fewer than one step takes: {self.global_batch_size:,} "
                f"(batch_size {batch_size} x {count(world_size, 'rank')} x accumulate {accumulate}). "
                "Expected at least as many: lower batch_size."
            )
        whole, rest = divmod(len(order), self.global_batch_size)
        self.steps_per_epoch = whole + (1 if rest and not drop_last else 0)
        self._order, self._batch_size = order, batch_size
        self._rank, self._world_size = rank, world_size
        self._epochs: dict[int, Visits] = {}

    def micro_batches(self, step: int) -> int:
        """Count the micro-batches of this rank's part of a step, nearly equal ones."""
        return max(1, -(-self._own(step) // self._batch_size))

    def keys_of(self, step: int) -> list[list[SampleKey]]:
        """Return this rank's part of a step (counted over all epochs) in micro-batches.

        A single image is taken twice, for batch normalisation cannot train on one; a rank that gets none of the last
        images takes one with the weight 0.
        """
        epoch, update = divmod(step, self.steps_per_epoch)
        visits = self._visits(epoch)
        start, images = update * self.global_batch_size, self._images(step)
        positions = start + np.arange(self._rank, images, self._world_size)
        if not len(positions):
            positions = np.array([start + self._rank % images])
        keys = [
            SampleKey(epoch, index, repeat)
            for index, repeat in zip(visits.index[positions].tolist(), visits.repeat[positions].tolist(), strict=True)
        ]
        pieces = [keys[first:last] for first, last in self._pieces(len(keys), step)]
        return [piece * 2 if len(piece) == 1 < self._batch_size else piece for piece in pieces]

    def cut(self, step: int) -> Cut:
        """Weigh each of this rank's micro-batches in a step, and count the images of the step on all ranks."""
        images, own = self._images(step), self._own(step)
        counts = [last - first for first, last in self._pieces(own, step)]
        shares = [count * self._world_size / images for count in counts]
        rows = [2 if count < 2 <= self._batch_size else max(count, 1) for count in counts]
        return Cut([Share(share, share / read) for share, read in zip(shares, rows, strict=True)], images)

    def _pieces(self, images: int, step: int) -> list[tuple[int, int]]:
        pieces = self.micro_batches(step)
        return [(images * piece // pieces, images * (piece + 1) // pieces) for piece in range(pieces)]

    def _images(self, step: int) -> int:
        start = step % self.steps_per_epoch * self.global_batch_size
        return min(self.global_batch_size, len(self._order) - start)

    def _own(self, step: int) -> int:
        """Count the images of a step on this rank."""
        return len(range(self._rank, self._images(step), self._world_size))

    def _visits(self, epoch: int) -> Visits:
        if epoch not in self._epochs:
            # Workers prefetch: the end of one epoch and the start of the next are requested in turns.
            self._epochs = {known: self._epochs[known] for known in sorted(self._epochs)[-1:]}
            self._epochs[epoch] = _expect_visits(self._order, self._order(epoch))
        return self._epochs[epoch]


def _expect_visits(order: Order, visits: object) -> Visits:
    if isinstance(visits, Visits) and len(visits.index) == len(visits.repeat) == len(order):
        return visits
    got = f"{len(visits.index)} visits" if isinstance(visits, Visits) else f"a {type(visits).__name__}"
    what = f"returned {got}, expected Visits(index, repeat) of two int64 arrays with len(self) = {len(order)} entries."
    raise PartError(type(order), f"{called(type(order))} {what}")


class EvalBatches:
    """Each of ``size`` images exactly once over all ranks; some ranks may have fewer batches than others.

    ``every``: only each n-th image, for a sample of a list that may be sorted by class.
    """

    def __init__(self, size: int, *, batch_size: int, rank: int = 0, world_size: int = 1, every: int = 1) -> None:
        self._mine = range(rank * every, size, world_size * every)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._mine) // self._batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self._mine), self._batch_size):
            yield [SampleKey(0, index) for index in self._mine[start : start + self._batch_size]]
