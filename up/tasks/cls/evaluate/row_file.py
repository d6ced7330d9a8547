"""Rows of an array that are in a temporary file once they are many, so that the system can take their memory back."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from up.errors import StorageError

Array: TypeAlias = npt.NDArray[Any]

LIMIT = 1 << 24  # bytes that stay in memory
_BLOCK = 4096  # rows that are put in order at once
_BLOCK_BYTES = 1 << 22  # of rows as float64 that are computed with at once


class RowFile:
    """Rows (n, ...) of an array of any length: in memory up to ``LIMIT`` bytes, then in a temporary file without a name."""

    def __init__(self) -> None:
        self._blocks: list[Array] = []
        self._file: IO[bytes] | None = None
        self._rows = self._bytes = 0

    def append(self, rows: Array) -> None:
        """Append ``rows`` (k, ...). Raises ``StorageError`` where the folder of temporary files cannot hold them."""
        self._blocks.append(rows)
        self._rows += len(rows)
        self._bytes += rows.nbytes
        if self._bytes > LIMIT:
            self._write()

    def array(self) -> Array:
        """Return all rows so far (n, ...); those in a file as a view of it, to be read only."""
        self._blocks = [joined(self._blocks)]
        if self._file is None:
            return self._blocks[0]
        shape = (self._rows, *self._blocks[0].shape[1:])
        mapped: Array = np.memmap(self._file, self._blocks[0].dtype, "r", shape=shape).view(np.ndarray)
        return mapped

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="up-")  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            for block in self._blocks:
                self._file.write(block.tobytes())
            self._file.flush()  # here, where a full disk is named
        except OSError as error:
            if self._file is not None:
                with suppress(OSError):  # of the bytes that are left in its buffer
                    self._file.close()
            what = f"{tempfile.gettempdir()}: the scores of all classes cannot be written ({error.strerror})."
            raise StorageError(f"{what} Set TMPDIR to a folder with more space.") from error
        self._blocks = [self._blocks[-1][:0]]  # of their type and width


def blocks_of(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of ``rows`` rows, each of 4 MB as float64, so that a computation never copies the whole array."""
    size = max(1, _BLOCK_BYTES // (8 * max(1, columns)))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def joined(parts: Sequence[Array]) -> Array:
    """Concatenate arrays; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def rows_at(parts: Sequence[Array], places: Array | slice) -> Array:
    """Return the rows at ``places`` of the concatenated ``parts``, in a file where they are many."""
    if len(parts) == 1 and isinstance(places, slice):
        return parts[0][places]
    ends = np.cumsum([len(part) for part in parts])
    places = np.arange(ends[-1])[places]
    made = RowFile()
    for start in range(0, len(places), _BLOCK):
        chosen = places[start : start + _BLOCK]
        rows = np.empty((len(chosen), *parts[0].shape[1:]), parts[0].dtype)
        owners = np.searchsorted(ends, chosen, side="right")
        for owner in np.unique(owners).tolist():
            is_of = owners == owner
            rows[is_of] = parts[owner][chosen[is_of] - (ends[owner] - len(parts[owner]))]
        made.append(rows)
    return made.array()
