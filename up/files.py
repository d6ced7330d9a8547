"""Atomic writes: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from up.errors import StorageError, UserError
from up.json_text import json_text
from up.run_files import AVERAGES
from up.text import did_you_mean
from up.types import Record

BEST, LATEST, START = "ckpt_best.pth", "ckpt_latest.pth", "ckpt_start.pth"
TEMPORARY = ".tmp-"  # such files are leftovers of a killed process and may be removed


def named_checkpoint(name: str | Path) -> Path:
    """Complete the name of a checkpoint: ``runs/a/ckpt_e5`` is ``runs/a/ckpt_e5.pth`` if only that exists."""
    path = Path(name)
    completed = path.with_name(f"{path.name}.pth")
    return completed if completed.is_file() and not path.is_file() else path


def best_of_run(folder: Path) -> Path | None:
    """Return the best weights of a run: of ``averaging.json``, else the best checkpoint, else the latest; None without any."""
    best = averages_of(folder).get("best")
    found = [folder / best] if isinstance(best, str) else []
    return next((path for path in (*found, folder / BEST, folder / LATEST) if path.is_file()), None)


def averages_of(folder: Path) -> Record:
    """Read ``averaging.json`` of a run folder; empty where it is missing or damaged."""
    try:
        record = json.loads((folder / AVERAGES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def existing_run(path: Path) -> Path:
    """Return ``path``, which names a run by its folder or its YAML file. Raises ``UserError`` if nothing is there."""
    if not path.exists():
        near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"{path}: no such run", expected="the folder of a run, or the YAML file of one", fix=near.strip())
    return path


def title_of(path: Path) -> str:
    """Return the name of a folder, or that of a file without its suffix: ``a.v2`` of ``a.v2/`` and of ``a.v2.csv``."""
    whole = path.resolve()
    return whole.name if whole.is_dir() else whole.stem


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, then rename it to ``path``.

    Raises ``StorageError`` if the disk is full, read-only or gone; ``path`` is then unchanged.
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
        fix = "Free some space, or choose another folder."
        raise StorageError(f"cannot be written ({_reason(error)})", file=path, fix=fix) from error
    finally:
        with suppress(OSError):  # a read-only disk does not delete what is not there either
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder, if it does not exist. Raises ``StorageError``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot be created ({error.strerror or error})", file=folder, fix="Name another folder.") from error


def unwritable(folder: Path) -> str | None:
    """Return why no file can be written to ``folder``, which need not exist yet; None if one can.

    Checked before long work whose result would be lost.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is not a folder"
    of_the_kernel = {os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.isdir(path)}
    if os.stat(there).st_dev in of_the_kernel:
        return f"{there} is a file system of the kernel"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically as UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` atomically."""
    write_atomically(path, lambda file: _ignore(file.write(data)))


def write_json(path: Path, value: object) -> None:
    """Write ``value`` atomically as indented JSON, with null for numbers that are not finite."""
    write_text(path, json_text(value, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder, so that a rename survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def damage(path: Path) -> str:
    """Compare a file with the size and SHA-256 in ``NAME.json`` beside it; returns the difference, empty for none.

    A file without such a record passes. A run may replace both meanwhile: then the new ones are compared.
    """
    while (expected := _recorded(path)) is not None:
        difference = _difference(path, *expected)
        if not difference or _recorded(path) == expected:
            return difference
    return ""


def _recorded(path: Path) -> tuple[int, str] | None:
    try:
        record = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        return int(record["bytes"]), str(record["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _difference(path: Path, size: int, sha256: str) -> str:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{found:,} of {size:,} bytes"
        return "" if sha256_of(path) == sha256 else "sha256 mismatch"
    except FileNotFoundError:
        return "deleted meanwhile"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
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
