"""The package as a plain tar: equal members make equal bytes, and what is read is neither trusted nor extracted.

Each header is checked before any content is read. Then the members are encoded again and compared with the file, so that a
changed byte is found even in a header or between two members.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from up.errors import UserError
from up.text import Verbatim

SUMS = "SHA256SUMS"
MODEL = "model.onnx"
MANIFEST = "up_bundle.json"
KESTREL_MEMBERS = (MODEL, "meta.json", "parameters.json", "category_param.json")
OWN_MEMBERS = (MANIFEST, SUMS)
TEST_VECTOR = re.compile(r"testvectors/[a-z0-9_]{1,40}\.(?:png|npy)")

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads files to a multiple of it
MAX_MEMBERS = 64
MAX_MODEL = 1 << 31  # the limit of protobuf
MAX_OTHER = 32 << 20
MAX_OTHERS = 256 << 20  # all members but the model
COPY_AGAIN = "Copy it again, or export again."
_KINDS = {
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK": "a zip archive",
    b"\x08": "an ONNX graph",
}


class PackageError(UserError):
    """A package that is damaged, or has members that a package of ours never has."""


def is_allowed(name: str) -> bool:
    """Whether a package may have a member of this name."""
    return name in KESTREL_MEMBERS or name in OWN_MEMBERS or TEST_VECTOR.fullmatch(name) is not None


def write_archive(members: Mapping[str, bytes], file: BinaryIO, *, mtime: int = 0) -> None:
    """Write ``members`` sorted, the hashes last, owned by 0, with the time ``mtime`` (seconds since 1970)."""
    file.writelines(_encoded(members, mtime))


def _encoded(members: Mapping[str, bytes], mtime: int) -> Iterator[bytes]:
    written = 0
    for name in sorted(members, key=lambda name: (name == SUMS, name)):
        assert is_allowed(name), name
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(members[name]), mtime
        yield from (info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"), members[name], bytes(-info.size % BLOCK))
        written += _length(info)
    yield bytes(_closing(written))


def _length(info: tarfile.TarInfo) -> int:
    """Return the length of a member with its header and padding, in bytes."""
    return BLOCK + info.size + -info.size % BLOCK


def _closing(written: int) -> int:
    """Return the number of zeros that end an archive of ``written`` bytes: two blocks, then up to the end of the record."""
    return 2 * BLOCK + -(written + 2 * BLOCK) % RECORD


def read_archive(path: Path) -> dict[str, bytes]:
    """Read all members by name. Raises ``PackageError`` for the first byte that ``write_archive`` would write otherwise."""
    with opened(path) as file:
        return read_members(file, str(path))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read. Raises ``PackageError`` for anything else: opening a pipe would wait forever."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            got = "a folder" if stat.S_ISDIR(kind) else "not a regular file"
            raise PackageError(file=path, got=Verbatim(got), expected="a package (.tar) or a graph (.onnx)")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise PackageError("no such file", file=path) from None
    except OSError as error:
        raise PackageError(f"cannot be read ({error.strerror or error})", file=path) from error


def read_members(file: BinaryIO, label: str) -> dict[str, bytes]:
    """Read all members of an open file, which errors call ``label``.

    Content is read only when all headers are valid and add up to the length of the file, so that a file of holes costs
    neither time nor memory.
    """
    whole = file.seek(0, os.SEEK_END)
    found: dict[str, tarfile.TarInfo] = {}
    at = 0
    while (info := _header_at(file, at, label)) is not None:
        if (problem := _problem_of(info, found)) is not None:
            raise PackageError(f"member {info.name!r} {problem}", file=label)
        found[info.name] = info
        info.offset_data = at + BLOCK
        at += _length(info)
        if at > whole:
            raise PackageError(f"cut short: {info.name} has {info.size:,} bytes by its header", file=label, fix=COPY_AGAIN)
    if not found or whole != at + _closing(at):
        what = "damaged, or with other bytes than zeros, after its last member" if found else "it has no members"
        raise PackageError(what, file=label, fix=COPY_AGAIN)
    members = {}
    for name, info in found.items():
        file.seek(info.offset_data)
        members[name] = file.read(info.size)
    file.seek(0)
    for piece in _encoded(members, int(next(iter(found.values())).mtime)):
        if file.read(len(piece)) != piece:
            what = f"damaged, or packed again by another program, before byte {file.tell():,}"
            raise PackageError(what, file=label, fix=COPY_AGAIN)
    return members


def _header_at(file: BinaryIO, at: int, label: str) -> tarfile.TarInfo | None:
    """Read the header at byte ``at``; None for the zeros after the last member."""
    file.seek(at)
    block = file.read(BLOCK)
    try:
        if block.strip(b"\0") and block[257:262] != b"ustar":
            raise tarfile.HeaderError("not a header of ustar")
        return tarfile.TarInfo.frombuf(block, "ascii", "replace")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None
    except tarfile.HeaderError:
        if at:
            raise PackageError(f"cut short or damaged at byte {at:,}", file=label, fix=COPY_AGAIN) from None
        kind = next(
            (what for magic, what in _KINDS.items() if block.startswith(magic)), "another format" if block else "an empty file"
        )
        raise PackageError("not a package", got=Verbatim(kind), expected="a plain, uncompressed tar", file=label) from None


def _problem_of(info: tarfile.TarInfo, found: Mapping[str, tarfile.TarInfo]) -> str | None:
    """Say why a package has no such member after those ``found``; None if it may."""
    limit = MAX_MODEL if info.name == MODEL else MAX_OTHER
    others = sum(each.size for each in (*found.values(), info) if each.name != MODEL)
    checks = (
        (info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE), f"is not a regular file (tar type {info.type.decode('latin-1')!r})"),
        (info.name.startswith("/") or ".." in info.name.split("/"), "would lie outside of the package"),
        (not is_allowed(info.name), "has no place in a package"),
        (info.name in found, "is in it twice"),
        (not 0 <= info.size <= limit, f"has {info.size:,} bytes by its header, expected at most {limit:,}"),
        (others > MAX_OTHERS, f"is too large: the members beside {MODEL} have more than {MAX_OTHERS:,} bytes"),
        (not 0 <= info.mtime < 8**11, "has a time that no tar can hold"),
        (len(found) >= MAX_MEMBERS, f"comes after more than {MAX_MEMBERS} members"),
    )
    return next((what for is_wrong, what in checks if is_wrong), None)
