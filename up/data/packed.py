"""A million names and labels as a few arrays: small, quick to pickle, and shared by forked workers.

A list of a million ``str`` objects is copied page by page into every worker, because reading an object writes its
reference count. Arrays have one count for all of their elements.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

Offsets: TypeAlias = NDArray[np.uint32] | NDArray[np.int64]
_SMALL = np.iinfo(np.uint32).max


class PackedStrings(Sequence[str]):
    """An immutable sequence of strings: one buffer of UTF-8 (other bytes are kept, as in file names) and their offsets."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        packer = StringPacker()
        packer.extend(string.encode(errors="surrogateescape") for string in strings)
        self._buffer, self._offsets = packer.packed().arrays

    @classmethod
    def of_arrays(cls, buffer: NDArray[np.uint8], offsets: Offsets) -> PackedStrings:
        """Wrap ``buffer`` (bytes,) and ``offsets`` (N + 1,): string i is ``buffer[offsets[i]:offsets[i + 1]]``."""
        made = cls.__new__(cls)
        made._buffer = buffer
        made._offsets = offsets.astype(np.uint32) if len(buffer) <= _SMALL else offsets
        return made

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> PackedStrings: ...
    def __getitem__(self, index: int | slice) -> str | PackedStrings:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        size = len(self._offsets) - 1
        if not -size <= index < size:
            raise IndexError(f"index {index} is outside of {size} strings")
        at = index % size
        start, end = self._offsets[at : at + 2].tolist()
        return self._buffer[start:end].tobytes().decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: NDArray[np.int64]) -> PackedStrings:
        """Select the strings at ``indices``, in that order."""
        packer = StringPacker()
        starts, ends, whole = self._offsets[:-1], self._offsets[1:], self._buffer
        packer.extend(whole[starts[index] : ends[index]].tobytes() for index in indices)
        return packer.packed()

    @classmethod
    def join(cls, parts: Sequence[PackedStrings]) -> PackedStrings:
        """Concatenate ``parts``."""
        if len(parts) == 1:
            return parts[0]
        ends = [part._offsets[1:].astype(np.int64) for part in parts]
        bases = np.cumsum([0, *(len(part._buffer) for part in parts)])
        offsets = np.concatenate([[0], *(end + base for end, base in zip(ends, bases, strict=False))])
        return cls.of_arrays(np.concatenate([part._buffer for part in parts]), offsets)

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], Offsets]:
        """Buffer and offsets, for hashing."""
        return self._buffer, self._offsets


class StringPacker:
    """Collector of UTF-8 strings for a ``PackedStrings``, without an object for each."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def extend(self, strings: Iterable[bytes]) -> None:
        """Append encoded strings."""
        listed = list(strings)
        base = len(self._buffer)
        self._buffer += b"".join(listed)
        lengths = np.fromiter(map(len, listed), dtype=np.int64, count=len(listed))
        self._ends.frombytes((np.cumsum(lengths) + base).tobytes())

    def extend_packed(self, names: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """Append the strings in ``names``, one after another, with the end of each (N,)."""
        base = len(self._buffer)
        self._buffer += names.data
        self._ends.frombytes((ends + base).tobytes())

    def packed(self) -> PackedStrings:
        """Return the strings collected; no more can be added."""
        buffer = np.frombuffer(self._buffer, dtype=np.uint8)
        return PackedStrings.of_arrays(buffer, np.frombuffer(self._ends, dtype=np.int64))


class PackedLabels:
    """Labels of N samples: one each, the same number each (one a head), or a set of any size each.

    ``values`` is (N,), (N, heads), or flat with ``offsets`` (N + 1,).
    """

    def __init__(self, values: NDArray[np.int64], offsets: NDArray[np.int64] | None = None) -> None:
        assert offsets is None or (values.ndim == 1 and offsets[-1] == len(values))
        self.values = values
        self.offsets = offsets

    @classmethod
    def of_sets(cls, sets: Sequence[Sequence[int]]) -> PackedLabels:
        """Pack a set of labels for every sample."""
        offsets = np.cumsum([0, *(len(labels) for labels in sets)])
        return cls(np.array([label for labels in sets for label in labels], dtype=np.int64), offsets)

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def __getitem__(self, index: int) -> list[int]:
        """Return all labels of sample ``index``."""
        if self.offsets is None:
            return [int(self.values[index])] if self.values.ndim == 1 else self.values[index].tolist()
        return [int(label) for label in self.values[self.offsets[index] : self.offsets[index + 1]]]

    @property
    def heads(self) -> int | None:
        """Number of labels of every sample, or None when that varies."""
        if self.offsets is not None:
            return None
        return 1 if self.values.ndim == 1 else self.values.shape[1]

    def by_head(self, sizes: Sequence[int] | None = None) -> PackedLabels:
        """Return sets of labels in which the classes of all heads have numbers of their own; unchanged without several heads.

        Class c of head h is c + the ``sizes`` of the heads before: by default its largest label + 1. Labels below 0 are left out.
        """
        if self.values.ndim == 1:
            return self
        largest = self.values.max(axis=0, initial=-1)
        widths = [max(int(each) + 1, 0) for each in largest] if sizes is None else [*sizes]
        kept = self.values >= 0
        numbers = self.values + np.cumsum([0, *widths[:-1]])
        return PackedLabels(numbers[kept], np.concatenate([[0], np.cumsum(kept.sum(axis=1))]))

    def owners(self) -> NDArray[np.int64]:
        """Return the sample of every element of ``values.ravel()``."""
        each = np.full(len(self), self.heads) if self.offsets is None else np.diff(self.offsets)
        return np.repeat(np.arange(len(self)), each)

    def take(self, indices: NDArray[np.int64]) -> PackedLabels:
        """Select the labels of the samples at ``indices``, in that order."""
        if self.offsets is None:
            return PackedLabels(self.values[indices])
        starts, sizes = self.offsets[indices], np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        positions = np.repeat(starts - offsets[:-1], sizes) + np.arange(offsets[-1])
        return PackedLabels(self.values[positions], offsets)

    @classmethod
    def join(cls, parts: Sequence[PackedLabels]) -> PackedLabels:
        """Concatenate ``parts``, which are of one form."""
        if len(parts) == 1:
            return parts[0]
        values = np.concatenate([part.values for part in parts])
        if parts[0].offsets is None:
            return cls(values)
        sizes = np.concatenate([np.diff(part.offsets) for part in parts if part.offsets is not None])
        return cls(values, np.concatenate([[0], np.cumsum(sizes)]))


def classes_of_heads(sizes: Sequence[int]) -> list[str]:
    """Name the classes of heads of these ``sizes`` in the order of ``PackedLabels.by_head``."""
    return [f"head{head}: {label}" for head, size in enumerate(sizes) for label in range(size)]
