"""Problems with their source locations, and the exceptions that end a command, each with its exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict, TypeVar

from up.text import Verbatim, shown
from up.types import Kwargs

if TYPE_CHECKING:
    from typing import Unpack


@dataclass(frozen=True)
class Problem:
    """A problem to correct: ``FILE:LINE: key.path: what: got X, expected Y. Fix.``, without the fields that are not set.

    ``got`` is stored as shown, so that a problem can be hashed, pickled and written as JSON for any value: text in quotes unless
    it is ``Verbatim``, ``None`` for no value (pass ``Verbatim("null")`` for a null). ``key`` is the dotted path in
    the configuration; a part names its own argument, and the builder puts the part's path before it. ``about_key`` means that the
    key itself is wrong rather than its value: the two may be on different lines. ``rank`` is the rank that reports the problem.
    """

    what: str = ""
    _: KW_ONLY
    got: object = None
    expected: str | None = None
    key: str = ""
    file: str = ""
    line: int | None = None
    fix: str = ""
    about_key: bool = False
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.got is not None:
            object.__setattr__(self, "got", Verbatim(shown(self.got)))
        object.__setattr__(self, "line", self.line or None)

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.place, self.key, self.sentence) if part)
        return text if self.rank is None else f"{text} (rank {self.rank})"

    @property
    def place(self) -> str:
        """``FILE:LINE``, ``FILE``, or an empty text."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def sentence(self) -> str:
        """The problem without its place and key."""
        values = [] if self.got is None else [f"got {self.got}"]
        values += [] if self.expected is None else [f"expected {self.expected}"]
        text = ": ".join(part for part in (self.what, ", ".join(values)) if part)
        if self.fix and text:
            text += " " if text.endswith((".", "?", "!")) else ". "
        return text + self.fix

    def placed(self, file: str, line: int | None) -> Problem:
        """Return the problem with a source location; one that it has is kept."""
        return self if self.file else replace(self, file=file, line=line)

    @classmethod
    def from_json(cls, fields: Kwargs) -> Problem:
        """Restore a problem from its ``fields`` of ``dataclasses.asdict``, through JSON."""
        got = fields["got"]
        return cls(**{**fields, "got": None if got is None else Verbatim(got)})


class Fields(TypedDict, total=False):
    """The fields of a ``Problem`` other than its place."""

    key: str
    got: object
    expected: str | None
    fix: str
    about_key: bool


EndingT = TypeVar("EndingT", bound="Ending")


class Ending(Exception):
    """An exception that ends a command early, with the ``problems`` that it reports, one line each."""

    exit_code: ClassVar[int]
    known_to_all = False
    """Whether every rank raises it in the same words, so that one rank prints them."""

    def __init__(self, what: str = "", *, file: str | Path = "", line: int | None = None, **fields: Unpack[Fields]) -> None:
        super().__init__(what)
        self.problems: tuple[Problem, ...] = (Problem(what, file=str(file), line=line, **fields),)

    @classmethod
    def of(cls: type[EndingT], problems: Iterable[Problem]) -> EndingT:
        """Return an ending that reports ``problems``."""
        return _restored(cls, {"problems": tuple(problems)})

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.__dict__)

    @property
    def file(self) -> str:
        """The file of the first problem, or an empty text."""
        return self.problems[0].file

    @property
    def line(self) -> int | None:
        """The line of the first problem."""
        return self.problems[0].line


def _restored(kind: type[EndingT], state: Kwargs) -> EndingT:
    ending = kind.__new__(kind)
    ending.__dict__.update(state)
    return ending


class NothingToDo(Ending):
    """The command has nothing left to do; the message says how to do more."""

    exit_code = 0


class UserError(Ending, ValueError):
    """The user's input cannot be used as it is; the message says what was got, what was expected and how to fix it."""

    exit_code = 2


class ConfigError(UserError):
    """The configuration cannot be used; the message has one line for each of ``problems``, whose keys are complete."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        super().__init__()
        self.problems = tuple(problems)
        assert self.problems, "a ConfigError without a problem"


class NumericalError(Ending, ArithmeticError):
    """The loss or the gradients stopped being finite."""

    exit_code = 3


class StorageError(Ending, OSError):
    """The disk is full, read-only or gone (EX_IOERR)."""

    exit_code = 74


OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
"""Errors of a disk that is full or fails, not of the path: the same command may succeed later."""


class PeerLost(Ending, RuntimeError):
    """Another rank ended or does not answer; the newest checkpoint is valid, run the same command again (EX_TEMPFAIL)."""

    exit_code = 75


class PeerFailed(Ending, RuntimeError):
    """Another rank failed with a bug, which its own traceback shows."""

    exit_code = 1


_BY_CODE: dict[int, type[Ending]] = {
    kind.exit_code: kind for kind in (UserError, NumericalError, StorageError, PeerLost, PeerFailed)
}


def ending_of(exit_code: int, problems: Iterable[Problem]) -> Ending:
    """Return the ending of another rank, from its exit code and its problems."""
    return _BY_CODE.get(exit_code, PeerFailed).of(problems)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 letters; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> str | None:
    """Return the reason in a few words if ``error`` says that the machine or a GPU has no memory left; else None."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(sign in text for sign in _NO_MEMORY):
        return text.split(". ")[0].splitlines()[0] if text else "the machine has no memory left"
    return None
