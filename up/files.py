"""Writing that cannot be half done: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from up.errors import StorageError

BEST, LATEST = "ckpt_best.pth", "ckpt_latest.pth"
TEMPORARY = ".tmp-"  # files so named are leftovers of a killed process and may be swept


def named_checkpoint(name: str | Path) -> Path:
    """The file that a user means: ``runs/a/ckpt_e5`` is ``runs/a/ckpt_e5.pth`` where only that is there."""
    path = Path(name)
    completed = path.with_name(f"{path.name}.pth")
    return completed if completed.is_file() and not path.is_file() else path


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, bring it to the disk, then put it in place.

    Raises ``StorageError`` when the disk is full, read-only or gone; ``path`` is then as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError ("unexpected pos")
        raise StorageError(f"{path}: cannot be written ({_reason(error)}). Free some space, or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder where there is none. Raises ``StorageError``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror or error}). Name another folder.") from error


def unwritable(folder: Path) -> str | None:
    """Why no file can be put into ``folder``, which need not be there yet; None where nothing speaks against it.

    For asking before long work whose result would be lost.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is no folder"
    of_the_kernel = {os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.isdir(path)}
    if os.stat(there).st_dev in of_the_kernel:
        return f"{there} belongs to the kernel"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically as UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` atomically."""
    write_atomically(path, lambda file: _ignore(file.write(data)))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to the disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the disk is full?" if "unexpected pos" in str(error) else str(error).splitlines()[0]


def _ignore(_: object) -> None:
    return None
