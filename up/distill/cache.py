"""What a teacher said, kept on disk: a rerun, or a second student, does not ask it again.

An image that is augmented with keyed randomness is the same image whenever its key comes again. Unmixed it is known by its
own seed; mixed it depends on the whole batch, so that it is known by all seeds of the batch and by the draw of the mixing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import log
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from up.distill.store import Keys, Rows, Store
from up.distill.teachers import Teacher

Dtype = Literal["fp16", "bf16", "fp32"]
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Visits:
    """What the images of a batch are: one key each, (B,), and the update that they come in."""

    keys: Keys
    step: int


def visits_of(batch: Mapping[str, Any], step: int, mixing: tuple[int, ...] | None) -> Visits:
    """The visits of a batch; ``mixing`` is what the draw of the mixing hangs on, None where images are not mixed."""
    seeds: Keys = batch["seed"].numpy().astype(np.uint64)
    if mixing is None:
        return Visits(seeds, step)
    whole = blake2b(seeds.tobytes() + repr(mixing).encode(), digest_size=8).digest()
    rows: Keys = np.arange(len(seeds), dtype=np.uint64)
    return Visits(_spread(rows + np.uint64(int.from_bytes(whole, "little"))), step)


def _spread(words: Keys) -> Keys:
    """Mix 64 bits well (the finaliser of SplitMix64, Steele et al. 2014), so that neighbours of different batches stay apart."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True)
class Codec:
    """Vectors (B, C), one a layer, as rows of bytes and back.

    ``dtype`` is how a number is stored; what comes back is float32. With ``topk`` only the k largest of each vector are
    stored, and one float32 for all others: the value at which they have together the probability that they had (T 1).
    """

    widths: Mapping[str, int]  # by layer
    dtype: Dtype = "fp16"
    topk: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(self._size(width) for width in self.widths.values())

    def encode(self, said: Mapping[str, Tensor]) -> Rows:
        """Rows (B, row_bytes) on the host."""
        parts = [part for layer in self.widths for part in self._parts(said[layer].float())]
        rows: Rows = torch.cat([_as_bytes(part) for part in parts], 1).cpu().numpy()
        return rows

    def finite(self, said: Mapping[str, Tensor]) -> NDArray[np.bool_]:
        """(B,): the images whose numbers are finite as they are stored."""
        parts = [torch.isfinite(said[layer].to(_DTYPES[self.dtype])).all(1) for layer in self.widths]
        found: NDArray[np.bool_] = torch.stack(parts).all(0).cpu().numpy()
        return found

    def decode(self, rows: Tensor) -> dict[str, Tensor]:
        """Float32 vectors by layer, where ``rows`` (B, row_bytes) uint8 are."""
        said, at = {}, 0
        for layer, width in self.widths.items():
            said[layer] = self._vector(rows[:, at : at + self._size(width)], width)
            at += self._size(width)
        return said

    def _k(self, width: int) -> int:
        return width if self.topk is None else min(self.topk, width)

    def _size(self, width: int) -> int:
        k = self._k(width)
        number = _DTYPES[self.dtype].itemsize
        return k * number if k == width else k * (number + 4) + 4

    def _parts(self, vector: Tensor) -> list[Tensor]:
        width = vector.shape[1]
        if self._k(width) == width:
            return [vector.to(_DTYPES[self.dtype])]
        largest, where = vector.topk(self._k(width), dim=1)
        others = vector.scatter(1, where, -torch.inf).logsumexp(1, keepdim=True) - log(width - self._k(width))
        return [largest.to(_DTYPES[self.dtype]), where.int(), others]

    def _vector(self, rows: Tensor, width: int) -> Tensor:
        k, number = self._k(width), _DTYPES[self.dtype].itemsize
        largest = rows[:, : k * number].contiguous().view(_DTYPES[self.dtype]).float()
        if k == width:
            return largest
        where = rows[:, k * number : k * (number + 4)].contiguous().view(torch.int32)
        others = rows[:, -4:].contiguous().view(torch.float32)
        return others.repeat(1, width).scatter(1, where.long(), largest)


def _as_bytes(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.uint8)


class CachedTeacher:
    """A teacher that is asked only about images that the store has nothing of.

    What it gives has always been through the codec, the first time too: a warm run equals the cold one bit for bit. Numbers
    that are not finite end the run, and are not kept for the next one.
    """

    def __init__(self, teacher: Teacher, store: Store, codec: Codec, *, updates_per_epoch: int) -> None:
        self.name = teacher.name
        self._teacher = teacher
        self._store = store
        self._codec = codec
        self._updates_per_epoch = updates_per_epoch

    def digest(self) -> str:
        """That of the teacher."""
        return self._teacher.digest()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        visits: Visits | None = batch.get("visits")
        if visits is None:  # a batch of noise, which only shows the way
            return self._teacher(batch)
        epoch = visits.step // self._updates_per_epoch
        rows, found = self._store.read(epoch, visits.keys)
        if not found.all():
            said = self._teacher(batch)
            rows[~found] = self._codec.encode(said)[~found]
            new = ~found & self._codec.finite(said)
            self._store.append(epoch, visits.keys[new], rows[new])
        return self._codec.decode(torch.from_numpy(rows).to(batch["image"].device, non_blocking=True))
