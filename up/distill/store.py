"""Rows of bytes on disk by 64-bit keys: only ever appended to, checked as they are read, one set of files an epoch.

    FOLDER/cache.json                      what the rows are, and of what; written first
    FOLDER/epoch_000012/WRITER.rows        rows of a fixed number of bytes
    FOLDER/epoch_000012/WRITER.keys        for each row its key (8 bytes) and the CRC-32 of the row (4 bytes)

Every process writes files of its own, rows before keys, so that a kill at any moment leaves at most a row without a key. Their
names begin with a digest of the label: two runs that make a cache at the same moment, and differ, never read each other's rows.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from up.distributed.group import rank
from up.errors import StorageError, UserError
from up.files import write_json

Keys = NDArray[np.uint64]
Rows = NDArray[np.uint8]

_LABEL = "cache.json"
_ENTRY = np.dtype([("key", "<u8"), ("crc", "<u4")])
_FORMAT = "2"


class Store:
    """``read`` and ``append`` rows of ``row_bytes`` bytes; ``identity`` says in words what they depend on.

    Raises ``UserError`` for a folder that holds something else, rows of another identity, or damaged files.
    """

    def __init__(self, folder: Path, *, row_bytes: int, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.row_bytes = row_bytes
        self._label = {"format": _FORMAT, **identity, "bytes a row": str(row_bytes)}
        self._digest = sha256(repr(self._label).encode()).hexdigest()[:8]
        self._index: _Index | None = None
        self._writer: _Writer | None = None
        self._require_own()
        for keys in folder.glob(f"epoch_*/{self._digest}-*.keys"):
            _length(keys, row_bytes)

    def read(self, epoch: int, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """The rows (N, row_bytes) of ``keys`` (N,), and which of them are there; the others are not filled."""
        if self._index is None or self._index.epoch != epoch:
            self._index = _Index(epoch, sorted(self._of(epoch).glob(f"{self._digest}-*.keys")), self.row_bytes)
        return self._index.read(keys)

    def append(self, epoch: int, keys: Keys, rows: Rows) -> None:
        """Add rows (N, row_bytes). Raises ``StorageError`` when the disk does not take them, ``UserError`` when another run has
        made the folder its own meanwhile."""
        try:
            if self._writer is None or self._writer.epoch != epoch:
                self._write_label()
                self._writer = _Writer(epoch, self._of(epoch), self._digest)
            self._writer.append(keys, rows)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot be written ({error.strerror or error}). Free some space, or choose another mimic.cache.dir."
            ) from error

    def size(self) -> int:
        """Bytes on disk now."""
        return sum(path.stat().st_size for path in self.folder.glob(f"epoch_*/{self._digest}-*"))

    def _of(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch:06d}"

    def _write_label(self) -> None:
        if not (self.folder / _LABEL).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _LABEL, self._label)
        self._require_own()

    def _require_own(self) -> None:
        path = self.folder / _LABEL
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder}: holds something that is no cache. Choose another mimic.cache.dir.") from None
            return
        except NotADirectoryError:
            raise UserError(f"{self.folder}: lies below a file. Expected a folder: choose another mimic.cache.dir.") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}). Delete {self.folder}, or choose another mimic.cache.dir.") from None
        if not isinstance(found, dict):
            raise UserError(f"{path}: damaged (no table). Delete {self.folder}, or choose another mimic.cache.dir.")
        for field, ours in self._label.items():
            if found.get(field) != ours:
                raise UserError(
                    f"{self.folder}: was made of other things: {field} {found.get(field)}, this run has {ours}. "
                    "Choose another mimic.cache.dir, or delete this one."
                )


class _Index:
    """Where the rows of one epoch are, in whatever files."""

    def __init__(self, epoch: int, paths: Sequence[Path], row_bytes: int) -> None:
        self.epoch = epoch
        self._row_bytes = row_bytes
        self._paths = paths
        entries = [_entries(path, row_bytes) for path in self._paths]
        self._rows = [_mapped(path, len(found), row_bytes) for path, found in zip(self._paths, entries, strict=True)]
        joined = np.concatenate([np.zeros(0, _ENTRY), *entries])
        order = np.argsort(joined["key"], kind="stable")
        self._keys, self._crcs = joined["key"][order], joined["crc"][order]
        lengths = [len(found) for found in entries]
        self._file = np.repeat(np.arange(len(entries)), lengths)[order]
        self._row = np.concatenate([np.zeros(0, np.int64), *(np.arange(length) for length in lengths)])[order]

    def read(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        rows = np.empty((len(keys), self._row_bytes), np.uint8)
        if not len(self._keys):
            return rows, np.zeros(len(keys), np.bool_)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[at] == keys
        for file in np.unique(self._file[at[found]]):
            here = np.flatnonzero(found & (self._file[at] == file))
            rows[here] = self._rows[file][self._row[at[here]]]
            for place in here:
                if zlib.crc32(rows[place]) != self._crcs[at[place]]:
                    path = self._paths[file].with_suffix(".rows")
                    raise UserError(
                        f"{path}: damaged (row {self._row[at[place]]} does not fit its checksum). Delete this file and its .keys; "
                        "the teacher will fill the gap."
                    )
        return rows, found


class _Writer:
    """The files of this process for one epoch; they are open only while something is added."""

    def __init__(self, epoch: int, folder: Path, digest: str) -> None:
        self.epoch = epoch
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{digest}-r{rank()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._rows, self._keys = folder / f"{name}.rows", folder / f"{name}.keys"

    def append(self, keys: Keys, rows: Rows) -> None:
        entries = np.zeros(len(keys), _ENTRY)
        entries["key"] = keys
        entries["crc"] = [zlib.crc32(row) for row in rows]
        for path, added in ((self._rows, rows), (self._keys, entries)):
            with path.open("ab") as file:
                file.write(added.tobytes())


def _length(path: Path, row_bytes: int) -> int:
    """How many keys a file holds, without what a kill cut short. Raises ``UserError`` where rows are missing."""
    rows = path.with_suffix(".rows")
    size = path.stat().st_size // _ENTRY.itemsize
    there = rows.stat().st_size // row_bytes if rows.exists() else 0
    if there < size:
        raise UserError(
            f"{rows}: damaged ({there:,} of {size:,} rows). Delete this file and its .keys; the teacher will fill the gap."
        )
    return size


def _entries(path: Path, row_bytes: int) -> Any:
    """The keys and checksums of a file."""
    return np.fromfile(path, _ENTRY, count=_length(path, row_bytes))


def _mapped(path: Path, length: int, row_bytes: int) -> Any:
    rows = path.with_suffix(".rows")
    return np.memmap(rows, np.uint8, "r", shape=(length, row_bytes)) if length else np.zeros((0, row_bytes), np.uint8)


@dataclass(frozen=True)
class Sizes:
    """How large a store gets."""

    row: int  # bytes, key and checksum included
    rows: int  # an epoch
    epochs: float

    @property
    def total(self) -> float:
        """Bytes at the end."""
        return self.row * self.rows * self.epochs

    def __str__(self) -> str:
        an_epoch = f"{size_text(self.row * self.rows)} an epoch ({self.rows:,} rows of {self.row:,} bytes)"
        return f"{an_epoch}, {size_text(self.total)} for {self.epochs:.3g} epochs"


def sizes(row_bytes: int, rows: int, epochs: float) -> Sizes:
    """The sizes of a store of ``rows`` rows an epoch."""
    return Sizes(row_bytes + _ENTRY.itemsize, rows, epochs)


def size_text(number: float) -> str:
    """``2.58 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
