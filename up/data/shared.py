"""A data set for workers that are spawned: its large arrays are in memory once, and each worker maps them."""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Sequence
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from up.data.records import SampleKey

_LARGE = 1 << 14  # bytes; smaller arrays are sent as they are
_ALIGNED = 64
B = TypeVar("B", covariant=True)


class Fetches(Protocol[B]):
    """Fetches a batch by its keys."""

    def __getitem__(self, keys: list[SampleKey]) -> B: ...


class Shared(Generic[B]):
    """A stand-in for ``fetch`` that is quick to pickle, any number of times, as long as this process lives.

    The arrays in it are copied once, to memory without a name (``memfd_create``), which other processes open by way of this one.
    """

    def __init__(self, fetch: Fetches[B]) -> None:
        self._fetch = fetch

    def __getitem__(self, keys: list[SampleKey]) -> B:
        return self._fetch[keys]

    @cached_property
    def _packed(self) -> tuple[bytes, Sequence[tuple[int, int]], _Memory]:
        """The object without its arrays, the start and the end of each array, and the memory that they are in."""
        buffers: list[memoryview] = []

        def separate(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes >= _LARGE:
                buffers.append(raw)
            return raw.nbytes < _LARGE

        pickled = pickle.dumps(self._fetch, protocol=5, buffer_callback=separate)
        spans, end = [], 0
        for buffer in buffers:
            start = -(-end // _ALIGNED) * _ALIGNED
            end = start + buffer.nbytes
            spans.append((start, end))
        memory = _Memory(max(1, end))
        with open(memory.file, "wb", closefd=False) as file:  # unlike os.pwrite, it writes more than the kernel's 2 GiB at once
            for (start, _), buffer in zip(spans, buffers, strict=True):
                file.seek(start)
                file.write(buffer)
        return pickled, spans, memory

    def __reduce__(self) -> tuple[object, ...]:
        if not hasattr(os, "memfd_create"):
            return Shared, (self._fetch,)
        pickled, spans, memory = self._packed
        return _mapped, (pickled, spans, memory.path)


class _Memory:
    """Memory of ``size`` bytes that processes of this user map by ``path``; it ends with this object and their maps."""

    def __init__(self, size: int) -> None:
        self.file = os.memfd_create("up-dataset")
        os.ftruncate(self.file, size)
        self.path = f"/proc/{os.getpid()}/fd/{self.file}"

    def __del__(self) -> None:
        os.close(self.file)


def _mapped(pickled: bytes, spans: Sequence[tuple[int, int]], path: str) -> Shared[object]:
    with open(path, "r+b") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0))
    return Shared(pickle.loads(pickled, buffers=[whole[start:end] for start, end in spans]))
