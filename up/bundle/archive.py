"""The package as a plain tar: equal members make equal bytes, and what is read is never trusted and never extracted.

The reader checks each header before any content is read, then writes the members again and compares with the file, so that a
byte that was changed anywhere, in a header or between the members, is found without a hash.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from up.errors import UserError
from up.text import Verbatim

SUMS = "SHA256SUMS"
MODEL = "model.onnx"
MANIFEST = "up_bundle.json"
KESTREL_MEMBERS = (MODEL, "meta.json", "parameters.json", "category_param.json")
OWN_MEMBERS = (MANIFEST, SUMS)
TEST_VECTOR = re.compile(r"testvectors/[a-z0-9_]{1,40}\.(?:png|npy)")

BLOCK = 512
RECORD = 20 * BLOCK  # what tar pads its files to
MAX_MEMBERS = 64
MAX_MODEL = 1 << 31  # what a protobuf can hold
MAX_OTHER = 32 << 20
MAX_OTHERS = 256 << 20  # all members but the model together
_KINDS = {
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK": "a zip archive",
    b"\x08": "an ONNX graph",
}


class PackageError(UserError):
    """A package is damaged, or holds what no package of ours does."""


class Writable(Protocol):
    """What an archive is written to."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted, the hashes last."""
    return sorted(names, key=lambda name: (name == SUMS, name))


def write_archive(members: Mapping[str, bytes], file: Writable, *, mtime: int = 0) -> None:
    """Write ``members`` in a fixed order, owned by 0, with the time ``mtime`` (seconds since 1970)."""
    written = 0
    for name in in_order(members):
        assert is_allowed(name), name
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(members[name]), mtime
        for piece in (info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"), members[name], bytes(-info.size % BLOCK)):
            file.write(piece)
            written += len(piece)
    file.write(bytes(_closing(written)))


def is_allowed(name: str) -> bool:
    """Whether a package may have a member of this name."""
    return name in KESTREL_MEMBERS or name in OWN_MEMBERS or TEST_VECTOR.fullmatch(name) is not None


def read_archive(path: Path) -> dict[str, bytes]:
    """All members by name. Raises ``PackageError`` for the first thing that is not as ``write_archive`` writes it."""
    with opened(path) as file:
        return read_members(file, str(path))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file to read from. Raises ``PackageError`` for anything else: opening a pipe would wait forever."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            got = "a folder" if stat.S_ISDIR(kind) else "no regular file"
            raise PackageError(file=path, got=Verbatim(got), expected="a package (.tar) or a graph (.onnx)")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise PackageError("no such file", file=path) from None
    except OSError as error:
        raise PackageError(f"cannot be read ({error.strerror or error})", file=path) from error


def read_members(file: BinaryIO, label: str) -> dict[str, bytes]:
    """As ``read_archive``, from an open file that errors call ``label``.

    Content is read only once all headers are right and the file has the length that they add up to, so that a file of holes
    costs neither time nor memory.
    """
    whole = file.seek(0, os.SEEK_END)
    found: dict[str, tarfile.TarInfo] = {}
    at = 0
    while (info := _header_at(file, at, found, label)) is not None:
        found[info.name] = info
        info.offset_data = at + BLOCK
        at = info.offset_data + info.size + -info.size % BLOCK
        if at > whole:
            raise PackageError(f"cut short: {info.name} has {info.size:,} bytes by its header", file=label)
        if sum(other.size for name, other in found.items() if name != MODEL) > MAX_OTHERS:
            raise PackageError(f"its members beside {MODEL} have more than {MAX_OTHERS:,} bytes", file=label)
    if not found or whole != at + _closing(at):
        what = "damaged, or with other bytes than zeros, after its last member" if found else "it has no members"
        raise PackageError(what, file=label)
    members = {}
    for name, info in found.items():
        file.seek(info.offset_data)
        members[name] = file.read(info.size)
    file.seek(0)
    write_archive(members, _Comparison(file, label), mtime=int(next(iter(found.values())).mtime))
    return members


class _Comparison:
    """Compares what is written to it with a file."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        self._file, self._label = file, label

    def write(self, data: bytes) -> None:
        at = self._file.tell()
        if self._file.read(len(data)) != data:
            raise PackageError(f"damaged, or packed again by another program, after byte {at:,}", file=self._label)


def _header_at(file: BinaryIO, at: int, found: Mapping[str, object], label: str) -> tarfile.TarInfo | None:
    """The header at byte ``at``, if it is that of a member that may be there; None for the zeros after the last one."""
    file.seek(at)
    block = file.read(BLOCK)
    try:
        if block.strip(b"\0") and block[257:262] != b"ustar":
            raise tarfile.HeaderError("no header of the form that is written here")
        info = tarfile.TarInfo.frombuf(block, "ascii", "replace")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None
    except tarfile.HeaderError:
        if at:
            raise PackageError(f"cut short or damaged at byte {at:,}", file=label) from None
        kind = next((what for magic, what in _KINDS.items() if block.startswith(magic)), "no tar" if block else "an empty file")
        raise PackageError("no package", got=Verbatim(kind), expected="a plain, uncompressed tar", file=label) from None
    problem = _problem_of(info, found)
    if problem:
        raise PackageError(f"member {info.name!r} {problem}", file=label)
    return info


def _problem_of(info: tarfile.TarInfo, found: Mapping[str, object]) -> str | None:
    """Why a package has no such member."""
    limit = MAX_MODEL if info.name == MODEL else MAX_OTHER
    checks = (
        (info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE), f"is not a regular file (tar type {info.type.decode('latin-1')!r})"),
        (info.name.startswith("/") or ".." in info.name.split("/"), "would lie outside of the package"),
        (not is_allowed(info.name), "has no place in a package"),
        (info.name in found, "stands in it twice"),
        (not 0 <= info.size <= limit, f"has {info.size:,} bytes by its header, expected at most {limit:,}"),
        (not 0 <= info.mtime < 8**11, "has a time that no tar can hold"),
        (len(found) >= MAX_MEMBERS, f"comes after more than {MAX_MEMBERS} members"),
    )
    return next((what for is_wrong, what in checks if is_wrong), None)


def _closing(written: int) -> int:
    """How many zeros end an archive of ``written`` bytes: two blocks, and up to the end of the record."""
    return 2 * BLOCK + -(written + 2 * BLOCK) % RECORD
