"""The run folder with all files of a run, and ``status.json``, the reliable state of the run under any launcher."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

from up.distributed.env import attempt, launch_id, rank_in_environment
from up.errors import OF_THE_DISK, Problem, StorageError, UserError
from up.files import write_json, write_text
from up.run_files import METRICS, OF_A_RUN, STATUS

State = Literal["running", "done", "preempted", "failed"]
EARLIER = "earlier"
LAUNCH = ".launch"
LOCK = ".lock"
CLAIM_S = 10.0


@dataclass(frozen=True)
class Status:
    """Content of ``status.json``."""

    state: State
    exit_code: int | None = None
    step: int = 0
    epoch: int = 0
    checkpoint: str | None = None
    reason: str = ""
    file: str | None = None
    line: int | None = None
    images_at_once: int | None = None  # most images of a micro-batch, where memory ran out with more

    def because(self, problems: Sequence[Problem]) -> Status:
        """Return the same status with ``problems`` as its reason, and the place of the first."""
        return replace(self, reason="\n".join(map(str, problems)), file=problems[0].file or None, line=problems[0].line)


def open_run_folder(folder: Path) -> None:
    """Create the folder and check that it can be written to.

    Raises ``UserError`` for a folder that cannot be one of runs, and ``StorageError`` where the disk is full or fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / ".tmp-write"
        written.touch()
        written.unlink()
    except OSError as error:
        what = f"{folder} cannot be written to ({error.strerror})"
        if error.errno in OF_THE_DISK:
            raise StorageError(what, fix="Free some space, or choose another folder.") from error
        raise UserError(what, fix="Choose another folder.") from error


def claim(folder: Path, owner: object) -> None:
    """Lock the folder as long as ``owner`` lives: two runs in one folder would overwrite each other's checkpoints.

    Waits ``CLAIM_S`` for a run that is ending. Raises ``UserError`` if another process holds the lock; a file system
    without locks is not locked.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    weakref.finalize(owner, os.close, handle)
    end = time.monotonic() + CLAIM_S
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return
            if time.monotonic() > end:
                holder = os.read(handle, 1000).decode(errors="replace") or "another process"
                raise UserError(f"{folder} is in use: {holder} trains there. Wait for it, or choose another folder.") from error
        time.sleep(0.1)
    with suppress(OSError):  # a full disk is reported by the first checkpoint
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())


def write_status(folder: Path, status: Status) -> None:
    """Write ``status.json`` atomically."""
    write_json(folder / STATUS, asdict(status))


def read_status(folder: Path) -> Status | None:
    """Read ``status.json``; None if it is missing or damaged."""
    try:
        return Status(**json.loads((folder / STATUS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def code_of_status(folder: Path, since: float) -> int | None:
    """Return the exit code of the run that used the folder ``since`` a time (of ``time.time()``); None if it wrote none."""
    status = read_status(folder)
    if status is None or (folder / STATUS).stat().st_mtime < since:
        return None
    return status.exit_code


def begin_launch(folder: Path) -> None:
    """Forget, before the first attempt of a launch, an earlier launch with the same id: torchrun gives all the same."""
    if launch_id() and attempt() == 0 and rank_in_environment() == 0:
        (folder / LAUNCH).unlink(missing_ok=True)


def mark_launch(folder: Path) -> None:
    """Write the id of the launch into the folder, for its later attempts."""
    write_text(folder / LAUNCH, launch_id())


def is_later_attempt(folder: Path) -> bool:
    """Check whether an elastic launcher restarted the run of this folder: it resumes even without ``auto_resume``."""
    try:
        return attempt() > 0 and (folder / LAUNCH).read_text(encoding="utf-8") == launch_id()
    except OSError:
        return False


def final_status_of_earlier_attempt(folder: Path) -> Status | None:
    """Return the status of an earlier attempt of this launch, if another would end the same way: bad input, NaN, a signal."""
    status = read_status(folder) if is_later_attempt(folder) else None
    is_final = status is not None and (status.state in ("done", "preempted") or status.exit_code in (2, 3))
    return status if is_final else None


def set_earlier_run_aside(folder: Path) -> Path | None:
    """Move the files of an earlier run into ``earlier/N``, so that a new run neither mixes with them nor overwrites them."""
    left = [path for pattern in OF_A_RUN for path in folder.glob(pattern)]
    is_run = any(path.name.startswith("ckpt_") or path.name == METRICS for path in left)
    return set_aside(folder, left) if is_run else None


def set_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    """Move ``paths`` into ``earlier/N``; returns that folder, None for no paths."""
    if not paths:
        return None
    aside = next(path for number in count(1) if not (path := folder / EARLIER / str(number)).exists())
    aside.mkdir(parents=True)
    for path in paths:
        path.rename(aside / path.name)
    return aside
