"""Locks of files: the kernel releases them when their process ends, in whatever way."""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from up.errors import UserError
from up.files import make_folder

WORKERS = "workers"
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.glusterfs", "ceph", "fuse.s3fs", "afs")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file at ``path``; waits for the process that holds it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Held:
    """The lock of the file at ``path``, held until ``release`` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Raises ``BlockingIOError`` if another process holds it."""
        make_folder(path.parent)
        self._path, self._file = path, path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while not self._is_in_place():  # its holder removed it after it was opened here
                self._file.close()
                self._file = path.open("a+")
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock and remove its file."""
        self._path.unlink(missing_ok=True)
        self._file.close()


class Presence(Held):
    """A sign that this process works on the search in ``run``: others see at once that it has ended."""

    def __init__(self, run: Path) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        super().__init__(run / WORKERS / f"{self.name}.lock")


def is_present(run: Path, name: str) -> bool:
    """Check whether the process that called itself ``name`` still runs, on any host that shares the folder."""
    try:
        Held(run / WORKERS / f"{name}.lock").release()
    except BlockingIOError:
        return True
    return False


def holder_of(path: Path) -> str | None:
    """Return the process that holds the lock of ``path``; None if it is free."""
    try:
        Held(path).release()
    except BlockingIOError:
        try:
            return path.read_text(encoding="utf-8") or "another process"
        except FileNotFoundError:  # it was released in this moment
            return None
    return None


def expect_local_disk(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Raise ``UserError`` for a folder on a network file system, which does not keep the appends of two hosts apart."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    there = folder.resolve()
    above = [(words[1].replace("\\040", " "), words[2]) for words in lines if len(words) > 2]
    holding = [(point, kind) for point, kind in above if there.is_relative_to(point)]
    holding.reverse()  # a later mount hides an earlier one at the same point, such as that of an automounter
    point, kind = max(holding, key=lambda pair: len(pair[0]), default=("", ""))
    if kind in _NETWORK:
        what = f"{folder} is on {point}, a network file system ({kind}), where appends of several hosts damage a journal"
        fix = "Use postgresql://… or mysql://…, or a run folder on a local disk."
        raise UserError(what, key="search.storage", fix=fix)
