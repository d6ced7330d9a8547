"""Rows of tensors on disk by keys: what a teacher or a frozen backbone computed once.

    FOLDER/cache.json                      identity of the rows; written first
    FOLDER/epoch_000012/WRITER.rows        rows of a fixed number of bytes, only ever appended to
    FOLDER/epoch_000012/WRITER.keys        for each row its key (8 bytes) and the CRC-32 of the row (4 bytes)

Every process appends to its own files, rows before keys: after a kill at most one row has no key. Their names begin with a digest
of cache.json: two different runs that start a cache at the same moment never read each other's rows.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from shutil import disk_usage

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from up.distributed.group import rank
from up.errors import StorageError, UserError
from up.files import TEMPORARY, write_json
from up.text import size_text

Keys = NDArray[np.uint64]
Rows = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_LABEL = "cache.json"
_FORMAT = "2"
_ENTRY = np.dtype([("key", "<u8"), ("crc", "<u4")])
_INDEX = np.dtype([*_ENTRY.descr, ("file", "<i4"), ("row", "<i8")])
KEY_BYTES = _ENTRY.itemsize
"""Bytes on disk beside each row."""


def pack(parts: Iterable[Tensor]) -> Rows:
    """Join the bytes of tensors (B, …) as rows (B, row_bytes) on the host."""
    rows: Rows = torch.cat([part.reshape(len(part), -1).contiguous().view(torch.uint8) for part in parts], 1).cpu().numpy()
    return rows


def unpack(rows: Tensor, fields: Sequence[tuple[torch.dtype, int]]) -> list[Tensor]:
    """Split rows (B, row_bytes) uint8 into tensors (B, count), one for each ``(dtype, count)``, on the same device."""
    columns = torch.split(rows, [kind.itemsize * many for kind, many in fields], dim=1)
    return [
        column.clone(memory_format=torch.contiguous_format).view(kind) for column, (kind, _) in zip(columns, fields, strict=True)
    ]


class Store:
    """Rows of ``row_bytes`` bytes on disk by 64-bit keys, one set of files per epoch, with checksums.

    ``identity`` describes what the rows depend on, ``setting`` is the key that names the folder, for messages. Raises
    ``UserError`` for a folder with other content, rows of another identity, or damaged files.
    """

    def __init__(self, folder: Path, *, row_bytes: int, identity: Mapping[str, str], setting: str) -> None:
        self.folder = folder
        self._setting = setting
        self.row_bytes = row_bytes
        self._label = {"format": _FORMAT, **identity, "bytes a row": str(row_bytes)}
        self._digest = sha256(repr(self._label).encode()).hexdigest()[:8]
        self._reading: int | None = None  # the epoch of the index
        self._writing: int | None = None
        self._require_own()
        for keys in folder.glob(f"epoch_*/{self._digest}-*.keys"):
            self._length(keys)

    def read(self, epoch: int, keys: Keys) -> tuple[Rows, Mask]:
        """Return rows (N, row_bytes) for ``keys`` (N,), and which of them were found; the others are not filled."""
        at, found = self._places(epoch, keys)
        rows = np.empty((len(keys), self.row_bytes), np.uint8)
        for place in np.flatnonzero(found):
            _, crc, file, row = self._index[at[place]]
            rows[place] = self._files[file][row]
            if zlib.crc32(rows[place]) != crc:
                raise _damaged(self._paths[file], f"row {row} does not fit its checksum")
        return rows, found

    def has(self, epoch: int, keys: Keys) -> Mask:
        """Find the ``keys`` (N,) that have rows, without reading them."""
        return self._places(epoch, keys)[1]

    def refresh(self) -> None:
        """Find rows that were added since the first ``read`` or ``has``, by any process."""
        if self._reading is not None:
            self._open(self._reading)

    def append(self, epoch: int, keys: Keys, rows: Rows) -> None:
        """Add rows (N, row_bytes).

        Raises ``StorageError`` if they cannot be written, ``UserError`` if another run started its own cache in the folder.
        """
        entries = np.zeros(len(keys), _ENTRY)
        entries["key"], entries["crc"] = keys, [zlib.crc32(row) for row in rows]
        try:
            if self._writing != epoch:
                self._write_label()
                folder = self._folder_of(epoch)
                folder.mkdir(exist_ok=True)
                self._writer = folder / f"{self._digest}-r{rank()}-{os.getpid()}-{secrets.token_hex(4)}"
                self._writing = epoch
            for suffix, added in ((".rows", rows), (".keys", entries)):
                with self._writer.with_suffix(suffix).open("ab") as file:
                    file.write(added.tobytes())
        except OSError as error:
            what = f"{self.folder}: cannot be written ({error.strerror or error})"
            raise StorageError(f"{what}. Free some space, or choose another {self._setting}.") from error

    def size(self) -> int:
        """Return the bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.glob(f"epoch_*/{self._digest}-*"))

    def _folder_of(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch:06d}"

    def _places(self, epoch: int, keys: Keys) -> tuple[NDArray[np.intp], Mask]:
        """Find the positions of ``keys`` (N,) in the index, and those that are there."""
        if self._reading != epoch:
            self._open(epoch)
        if not len(self._keys):
            return np.zeros(len(keys), np.intp), np.zeros(len(keys), np.bool_)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return at, self._keys[at] == keys

    def _open(self, epoch: int) -> None:
        """Index the rows of an epoch in all files."""
        self._paths = sorted(self._folder_of(epoch).glob(f"{self._digest}-*.keys"))
        self._files: list[Rows] = []
        tables = [np.zeros(0, _INDEX)]
        for number, path in enumerate(self._paths):
            entries = np.fromfile(path, _ENTRY, count=self._length(path))
            table = np.empty(len(entries), _INDEX)
            table["key"], table["crc"] = entries["key"], entries["crc"]
            table["file"], table["row"] = number, np.arange(len(entries))
            tables.append(table)
            shape = (len(entries), self.row_bytes)
            rows = np.memmap(path.with_suffix(".rows"), np.uint8, "r", shape=shape) if len(entries) else np.zeros(shape, np.uint8)
            self._files.append(np.asarray(rows))
        joined = np.concatenate(tables)
        self._index = joined[np.argsort(joined["key"], kind="stable")]
        self._keys = np.ascontiguousarray(self._index["key"])
        self._reading = epoch

    def _length(self, path: Path) -> int:
        """Count the whole keys in a file. Raises ``UserError`` if rows are missing."""
        rows = path.with_suffix(".rows")
        size = path.stat().st_size // _ENTRY.itemsize
        there = rows.stat().st_size // self.row_bytes if rows.exists() else 0
        if there < size:
            raise _damaged(path, f"{there:,} of {size:,} rows")
        return size

    def _write_label(self) -> None:
        if not (self.folder / _LABEL).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _LABEL, self._label)
        self._require_own()

    def _require_own(self) -> None:
        path = self.folder / _LABEL
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("no table")
        except FileNotFoundError:
            if self.folder.exists() and not all(path.name.startswith(TEMPORARY) for path in self.folder.iterdir()):
                raise UserError(f"{self.folder}: holds something that is not a cache. Choose another {self._setting}.") from None
            return
        except NotADirectoryError:
            raise UserError(f"{self.folder}: lies below a file. Expected a folder: choose another {self._setting}.") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}). Delete {self.folder}, or choose another {self._setting}.") from None
        for field, ours in self._label.items():
            if found.get(field) != ours:
                what = f"{self.folder}: is the cache of another run: {field} {found.get(field)}, this run has {ours}"
                raise UserError(f"{what}. Choose another {self._setting}, or delete this one.")


def _damaged(keys: Path, what: str) -> UserError:
    return UserError(f"{keys.with_suffix('.rows')}: damaged ({what}). Delete this file and its .keys; they are computed again.")


def require_space(folder: Path, needed: float, *, setting: str, without: str) -> None:
    """Raise ``UserError`` or ``StorageError`` unless the folder may grow by ``needed`` bytes. Creates nothing.

    Messages name the ``setting`` of the folder and the way ``without`` a cache.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: {there} is a file. Expected a folder: choose another {setting}.")
    free = disk_usage(there).free
    if needed and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written (no permission for {there}). Choose another {setting}.")
    if needed > free:
        what = f"{folder}: the cache grows by {size_text(needed)}, {size_text(free)} are free"
        raise StorageError(f"{what}. Choose another {setting}, {without}.")
