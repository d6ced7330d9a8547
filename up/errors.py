"""The ways a run can end other than well, each with its exit code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar


class Ending(Exception):
    """What ends a command before its time."""

    exit_code: ClassVar[int]
    known_to_all = False
    """Whether every rank raises it in the same words, so that one of them says them to the user."""


class NothingToDo(Ending):
    """What the command would do is done already; the message says how to do more."""

    exit_code = 0


class UserError(Ending, ValueError):
    """The user's input cannot be used as it is; the message says what was got, what was expected and how to fix it."""

    exit_code = 2
    has_place: ClassVar[bool] = False
    """Whether the message begins with a file, and a line where there is one; otherwise who knows the place puts it before."""


class NumericalError(Ending, ArithmeticError):
    """The loss or the gradients stopped being finite."""

    exit_code = 3


class StorageError(Ending, OSError):
    """The disk is full, read-only or gone (EX_IOERR)."""

    exit_code = 74


class PeerLost(Ending, RuntimeError):
    """Another rank ended or does not answer; the newest checkpoint stands, run the same command again (EX_TEMPFAIL)."""

    exit_code = 75


class PeerFailed(Ending, RuntimeError):
    """Another rank met a bug of ours; its own traceback says which."""

    exit_code = 1


_BY_CODE: dict[int, type[Ending]] = {
    kind.exit_code: kind for kind in (UserError, NumericalError, StorageError, PeerLost, PeerFailed)
}


def ending_of(exit_code: int, message: str) -> Ending:
    """What another rank met, from its exit code and its message."""
    return _BY_CODE.get(exit_code, PeerFailed)(message)


def place_in(message: str) -> tuple[str | None, int | None]:
    """The file and the line that ``message`` begins with: ``data/train.txt:21: …`` or ``runs/a/ckpt_e3.pth: …``."""
    found = re.match(r"(?P<file>[^\n:]*[^\s:]):(?:(?P<line>\d+):)? ", message)
    if found is None or not (found["line"] or Path(found["file"]).is_file()):
        return None, None
    return found["file"], int(found["line"]) if found["line"] else None
