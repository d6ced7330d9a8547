"""The run folder: where everything of a run lies, and its ``status.json``, the truth about how the run stands."""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from up.distributed.env import attempt, launch_id, rank_in_environment
from up.errors import Problem, UserError
from up.files import write_json, write_text

State = Literal["running", "done", "preempted", "failed"]
EARLIER = "earlier"
LAUNCH = ".launch"
LOCK = ".lock"
CLAIM_S = 10.0
_OF_A_RUN = ("ckpt_*", "train.log", "metrics.jsonl", "status.json", "config.yaml", "bad_images.jsonl", "tensorboard", "results")


@dataclass(frozen=True)
class Status:
    """The content of ``status.json``."""

    state: State
    exit_code: int | None = None
    step: int = 0
    epoch: int = 0
    checkpoint: str | None = None
    reason: str = ""
    file: str | None = None
    line: int | None = None


def open_run_folder(folder: Path) -> None:
    """Create the folder, or say why it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".tmp-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}). Choose another folder.") from error


def claim(folder: Path, owner: object) -> None:
    """Hold the folder as long as ``owner`` lives: two runs in one would spoil each other's checkpoints.

    Waits a little, for a run that is just ending. Raises ``UserError`` where another process keeps it; a file system
    without locks has none.
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
    with suppress(OSError):  # a full disk is found out by what matters
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())


def write_status(folder: Path, status: Status) -> None:
    """Put ``status.json`` in place atomically."""
    write_json(folder / "status.json", asdict(status))


@dataclass(frozen=True)
class StatusFile:
    """``status.json`` of a run folder."""

    folder: Path

    def write(
        self,
        state: State,
        step: int,
        epoch: int,
        checkpoint: Path | str | None,
        *,
        exit_code: int | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        """Report how the run stands after ``step`` steps, with the checkpoint that it would resume from."""
        shown, reason = None if checkpoint is None else str(checkpoint), "\n".join(map(str, problems))
        file, line = (problems[0].file or None, problems[0].line) if problems else (None, None)
        write_status(self.folder, Status(state, exit_code, step, epoch, shown, reason, file, line))


def read_status(folder: Path) -> Status | None:
    """Read ``status.json``; None if there is none that can be read."""
    try:
        return Status(**json.loads((folder / "status.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def code_of_status(folder: Path, since: float) -> int | None:
    """The exit code of the run that has used the folder ``since`` a time (of ``time.time()``); None if it left no word."""
    status = read_status(folder)
    if status is None or (folder / "status.json").stat().st_mtime < since:
        return None
    return status.exit_code


def begin_launch(folder: Path) -> None:
    """Before the first attempt of a launch: what lies in the folder is of none of its attempts, even if the launch is called as
    an earlier one was (torchrun calls them all alike) and this attempt ends before it has left anything."""
    if launch_id() and attempt() == 0 and rank_in_environment() == 0:
        (folder / LAUNCH).unlink(missing_ok=True)


def mark_launch(folder: Path) -> None:
    """Note which launch the files of the folder belong to, for its later attempts."""
    write_text(folder / LAUNCH, launch_id())


def is_later_attempt(folder: Path) -> bool:
    """Whether an elastic launcher has restarted the run that these files are of: it resumes, whatever ``auto_resume`` says."""
    try:
        return attempt() > 0 and (folder / LAUNCH).read_text(encoding="utf-8") == launch_id()
    except OSError:
        return False


def verdict_of_earlier_attempt(folder: Path) -> Status | None:
    """Status of an earlier attempt of this launch, if another would end the same way: bad input, NaN, or a request to stop."""
    status = read_status(folder) if is_later_attempt(folder) else None
    is_final = status is not None and (status.state in ("done", "preempted") or status.exit_code in (2, 3))
    return status if is_final else None


def set_earlier_run_aside(folder: Path) -> Path | None:
    """Move what an earlier run left into ``earlier/N``, so that a fresh start neither mixes with it nor destroys it."""
    left = [path for pattern in _OF_A_RUN for path in folder.glob(pattern)]
    is_run = any(path.name.startswith("ckpt_") or path.name == "metrics.jsonl" for path in left)
    return set_aside(folder, left) if is_run else None


def set_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    """Move ``paths`` into ``earlier/N``; returns that folder, None where there was nothing to move."""
    if not paths:
        return None
    number = 1
    while (folder / EARLIER / str(number)).exists():
        number += 1
    aside = folder / EARLIER / str(number)
    aside.mkdir(parents=True)
    for path in paths:
        path.rename(aside / path.name)
    return aside
