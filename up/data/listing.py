"""Lists of files: reading them, with all problems reported at once as ``file:line: problem``, and the list itself, packed.

Blank lines, CRLF and a byte order mark do not matter.
"""

from __future__ import annotations

import io
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from up.data.bad_images import Listed
from up.data.packed import PackedStrings, StringPacker
from up.data.plain_lines import BLOCK, PlainLines
from up.data.records import Image
from up.data.roots import ImageRoot
from up.data.sampler import permutation
from up.errors import Problem, UserError
from up.types import Record

T = TypeVar("T")
_LISTED = 10  # problems shown of one file
_FRACTION = 0x66726163  # its own key, not the run's seed: runs that differ in the seed train on the same fraction


class MetaError(UserError):
    """Problems of a meta file, one line for each, with file and line."""


class LineError(ValueError):
    """Problem of one line of a meta file."""


@dataclass(frozen=True)
class Listing:
    """N files: ``names`` (N), and the line of each in its list (``lines`` (N,) from 1, 0 for the files of a folder).

    ``source`` (N,) is the index of its list in ``paths`` and ``roots``.
    """

    names: PackedStrings
    lines: NDArray[np.int32]
    source: NDArray[np.uint16]
    paths: Sequence[str]
    roots: Sequence[ImageRoot]

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """Name a file for messages: ``meta.txt:21: images/x.jpg``, or the path of a file in a folder."""
        return self._named(self.names[index], index)

    def _named(self, name: str, index: int) -> str:
        path, line = self.paths[int(self.source[index])], int(self.lines[index])
        return Listed(name, path, line) if line else os.path.join(path, name)

    def path_of(self, index: int) -> str:
        """Return the path of a file."""
        return self.roots[int(self.source[index])].path_of(self.names[index])

    def read(self, index: int, reader: Callable[[str, str], Image]) -> Image:
        """Read an image by its path with ``reader``, whose errors name it by its line in the list.

        Raises ``BadImage``, and ``MetaError`` where a symbolic link leads out of the folder of the images.
        """
        name, root = self.names[index], self.roots[int(self.source[index])]  # unpacked once: it is two microseconds
        if problem := root.link_problem(name):
            raise MetaError(f"{problem}.", file=self.where(index))
        return reader(root.path_of(name), self._named(name, index))

    def take(self, kept: NDArray[np.int64]) -> Self:
        """Select the files at the indices ``kept``."""
        return replace(self, names=self.names.take(kept), lines=self.lines[kept], source=self.source[kept])

    def fraction(self, share: float) -> Self:
        """Select a share of the files, above 0 and up to 1, the same ones in every run."""
        assert 0 < share <= 1
        return self if share == 1 else self.take(np.sort(permutation(len(self), _FRACTION)[: max(1, round(len(self) * share))]))

    def arrays(self) -> list[NDArray[np.generic] | None]:
        """Return the arrays that identify the list, for hashing."""
        return [*self.names.arrays]


class Rows:
    """Names and problems of a file while it is being read."""

    def __init__(self, path: str, root: ImageRoot) -> None:
        self.path, self.root = path, root
        self._problems: list[tuple[int, str]] = []
        self._uncounted = 0
        self._names = StringPacker()
        self._lines = array("i")

    def extend(self, names: list[bytes], lines: Sequence[int]) -> None:
        """Add names, once they are checked."""
        self._check(names, lines)
        self._names.extend(names)
        self._lines.extend(lines)

    def extend_plain(self, plain: PlainLines, first: int) -> None:
        """Add names that need no check, of the lines from ``first`` on."""
        self._names.extend_packed(plain.names, plain.ends)
        self._lines.frombytes(np.arange(first, first + len(plain.ends), dtype=np.intc).tobytes())

    def problem(self, line: int, text: str) -> None:
        """Add a problem of a line; ``names`` raises them together."""
        if len(self._problems) < 1000:
            self._problems.append((line, text))
        else:
            self._uncounted += 1

    def _check(self, names: list[bytes], lines: Sequence[int]) -> None:
        joined = b"\n".join(names)
        try:
            joined.decode()
        except UnicodeDecodeError:
            pass
        else:  # the usual file: nothing in it needs a closer look
            if not (b"\0" in joined or b".." in joined or joined[:1] == b"/" or b"\n/" in joined):
                return
        for name, line in zip(names, lines, strict=True):
            try:
                problem = self.root.name_problem(name.decode())
            except UnicodeDecodeError:
                problem = f"{name[:60]!r} is not UTF-8: save the file as UTF-8"
            if problem:
                self.problem(line, problem)

    @property
    def lines(self) -> NDArray[np.int32]:
        """Line of each name, from 1."""
        return np.array(self._lines, dtype=np.int32)

    def names(self) -> PackedStrings:
        """Return all names. Raises ``MetaError`` with the first ten problems if there are any, or when there are no names."""
        if self._problems:
            listed = [Problem(text, file=self.path, line=line) for line, text in sorted(self._problems)[:_LISTED]]
            more = len(self._problems) - len(listed) + self._uncounted
            raise MetaError.of([*listed, Problem(f"and {more:,} more", file=self.path)] if more else listed)
        if not len(self._names):
            raise MetaError("it names no image. Expected at least one line.", file=self.path)
        return self._names.packed()

    def listing(self) -> Listing:
        """Return the names as a list. Raises ``MetaError`` as ``names``."""
        names = self.names()
        return Listing(names, self.lines, np.zeros(len(names), np.uint16), [self.path], [self.root])


def blocks(path: str) -> Iterator[tuple[int, bytes]]:
    """Read a file in blocks of whole lines, each with the number of its first line."""
    if os.path.isdir(path):
        raise MetaError("a folder. Expected a meta file; meta_type image_folder reads folders of classes.", file=path)
    try:
        with open(path, "rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            first = 1
            while block := file.read(BLOCK):
                if not block.endswith(b"\n"):
                    block += file.readline()
                yield first, block
                first += block.count(b"\n")
    except FileNotFoundError:
        raise MetaError("no such meta file.", file=path) from None
    except OSError as error:
        raise MetaError(f"cannot be read ({error.strerror}).", file=path) from None


def lines_of(block: bytes) -> list[bytes]:
    """Split a block at its line feeds, which the lines keep."""
    return io.BytesIO(block).readlines()


def chunks(path: str) -> Iterator[tuple[int, list[bytes]]]:
    """Read the lines of a file in chunks, each with the number of its first line."""
    return ((first, lines_of(block)) for first, block in blocks(path))


def shown(raw: bytes) -> str:
    """Shorten a line for a message."""
    text = raw.strip().decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:57] + "…")


def json_rows(rows: Rows, read: Callable[[Record, int], T]) -> Iterator[tuple[list[T], list[int]]]:
    """Apply ``read`` to the JSON object on each line and the line's number, and yield a chunk of results with their lines.

    Lines that are not objects, or for which ``read`` raises ``LineError``, are problems of ``rows``, and left out.
    """
    return (json_chunk(rows, start, chunk, read) for start, chunk in chunks(rows.path))


def json_chunk(rows: Rows, start: int, chunk: list[bytes], read: Callable[[Record, int], T]) -> tuple[list[T], list[int]]:
    """Read the lines of a chunk from line ``start`` on, as ``json_rows`` does."""
    found, lines = [], []
    for line, raw in enumerate(chunk, start):
        if raw.isspace():
            continue
        try:
            found.append(read(_record(raw), line))
        except LineError as wrong:
            rows.problem(line, str(wrong))
        else:
            lines.append(line)
    return found, lines


def _record(raw: bytes) -> Record:
    try:
        record: object = json.loads(raw, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except LineError:
        raise
    except RecursionError:
        raise LineError("JSON nested too deeply") from None
    except UnicodeDecodeError:
        raise LineError(f"{shown(raw)} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error.msg} at column {error.colno}, got {shown(raw)}") from None
    except ValueError:  # Python's limit of 4300 digits
        raise LineError("a number has too many digits") from None
    if not isinstance(record, dict):
        raise LineError(f"expected a JSON object, got {shown(raw)}")
    return record


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise LineError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return record


def _refuse_constant(text: str) -> NoReturn:
    raise LineError(f"{text} is not a number that JSON has")
