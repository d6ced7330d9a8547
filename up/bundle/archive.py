"""The package as a plain tar: equal members make equal bytes, and what is read is never trusted and never extracted.

The reader takes only what the writer makes (POSIX ustar, regular files, zeros where nothing stands), so that a byte that
was changed anywhere, in a header or between the members, is found without a hash.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from up.errors import UserError

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
_NOT_TAR = {
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK": "a zip archive",
    b"\x08": "an ONNX graph rather than a package",
}
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"L": "a long name",
    b"K": "a long link",
    b"x": "an extended header",
    b"g": "an extended header",
}


class PackageError(UserError):
    """A package is damaged, or holds what no package of ours does."""


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted, the hashes last."""
    return sorted(names, key=lambda name: (name == SUMS, name))


def write_archive(members: Mapping[str, bytes], file: BinaryIO, *, mtime: int = 0) -> None:
    """Write ``members`` in a fixed order, owned by 0, with the time ``mtime`` (seconds since 1970)."""
    written = 0
    for name in in_order(members):
        assert is_allowed(name), name
        padding = -len(members[name]) % BLOCK
        file.write(_header(name, len(members[name]), mtime))
        file.write(members[name])
        file.write(bytes(padding))
        written += BLOCK + len(members[name]) + padding
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
    """A regular file to read from. Raises ``PackageError`` for anything else: opening a pipe would wait for ever."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "no regular file"
            raise PackageError(f"{path}: {what}, expected a package (.tar) or a graph (.onnx).")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise PackageError(f"{path}: no such file.") from None
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror or error}).") from error


def read_members(file: BinaryIO, label: str) -> dict[str, bytes]:
    """As ``read_archive``, from an open file that errors call ``label``; what is read is at most the size of the file.

    All headers are looked at before any content is, so that a file of holes costs neither time nor memory.
    """
    found = _layout(file, label)
    members: dict[str, bytes] = {}
    for name, (at, size) in found.items():
        file.seek(at)
        members[name] = file.read(size)
        if len(members[name]) != size:
            raise PackageError(f"{label}: cut short: {name} has {size:,} bytes by its header.")
    return members


def _layout(file: BinaryIO, label: str) -> dict[str, tuple[int, int]]:
    """Where each member's content begins, and its size; everything around it is as ``write_archive`` writes it."""
    whole = file.seek(0, os.SEEK_END)
    found: dict[str, tuple[int, int]] = {}
    at = 0
    mtime: int | None = None
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise PackageError(f"{label}: {_no_tar(block) if not found else 'cut short after ' + list(found)[-1]}.")
        if not block.strip(b"\0"):
            break
        name, size, own_mtime = _entry(block, list(found), label)
        if name in found:
            raise PackageError(f"{label}: member {name} stands in it twice.")
        found[name] = at + BLOCK, size
        padding = -size % BLOCK
        at += BLOCK + size + padding
        if at > whole:
            raise PackageError(f"{label}: cut short: {name} has {size:,} bytes by its header.")
        mtime = own_mtime if mtime is None else mtime
        file.seek(at - padding)
        if file.read(padding).strip(b"\0") or own_mtime != mtime or block != _header(name, size, own_mtime):
            raise PackageError(f"{label}: damaged, or packed again by another program, at member {name}.")
        if sum(taken for other, (_, taken) in found.items() if other != MODEL) > MAX_OTHERS:
            raise PackageError(f"{label}: its members beside {MODEL} have more than {MAX_OTHERS:,} bytes.")
    _expect_end(file, at, label)
    if list(found) != in_order(found):
        raise PackageError(f"{label}: packed again by another program: the members are not in order.")
    return found


def _entry(block: bytes, before: Sequence[str], label: str) -> tuple[str, int, int]:
    """Name, size and time of a header, if it is that of a member that may be there."""
    if block[257:262] != b"ustar" or _checksum(block) != _octal(block[148:156]):
        raise PackageError(f"{label}: {_no_tar(block) if not before else 'damaged after member ' + before[-1]}.")
    raw = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0]
    name = (prefix + b"/" + raw if prefix else raw).decode("ascii", "replace")
    kind = block[156:157]
    if kind not in (b"0", b"\0"):
        what = _KINDS.get(kind, f"of the unknown type {kind!r}")
        raise PackageError(f"{label}: member {name!r} is {what}; a package holds regular files only.")
    if name.startswith("/") or ".." in name.split("/"):
        raise PackageError(f"{label}: member {name!r} would lie outside of the package.")
    if not is_allowed(name):
        raise PackageError(f"{label}: member {name!r} has no place in a package.")
    if len(before) >= MAX_MEMBERS:
        raise PackageError(f"{label}: more than {MAX_MEMBERS} members.")
    size, mtime = _octal(block[124:136]), _octal(block[136:148])
    limit = MAX_MODEL if name == MODEL else MAX_OTHER
    if size is None or mtime is None or size > limit:
        got = "unreadable" if size is None or mtime is None else f"{size:,} bytes by its header"
        raise PackageError(f"{label}: member {name}: {got}, expected at most {limit:,}.")
    return name, size, mtime


def _expect_end(file: BinaryIO, written: int, label: str) -> None:
    """Zeros up to the record's end, and nothing after them."""
    file.seek(written + BLOCK)
    rest = file.read(RECORD + BLOCK)
    if written == 0 or len(rest) != _closing(written) - BLOCK or rest.strip(b"\0"):
        raise PackageError(f"{label}: {'no members' if written == 0 else 'damaged, or with more bytes, after its last member'}.")


def _closing(written: int) -> int:
    """How many zeros end an archive of ``written`` bytes: two blocks, and up to the end of the record."""
    return 2 * BLOCK + -(written + 2 * BLOCK) % RECORD


def _header(name: str, size: int, mtime: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = size, mtime
    return entry.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _checksum(block: bytes) -> int:
    return sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def _no_tar(block: bytes) -> str:
    kind = next((what for magic, what in _NOT_TAR.items() if block.startswith(magic)), "")
    return f"no package: {kind or ('an empty file' if not block else 'no tar')}; expected a plain, uncompressed tar"
