"""What is wrong with a configuration: every problem at once, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from up.errors import UserError

OPTS = "--opts"
DEFAULT = "default"


class Mark(NamedTuple):
    """Where a value was written: a file with line and column (both from 1), or ``--opts``, which has no lines."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One thing to correct: the dotted ``path`` of the value, what is wrong with it and, if known, where it was written.

    ``about_key`` says that the key itself is at fault rather than its value: the two may stand on different lines.
    """

    path: str
    what: str
    origin: str = ""
    about_key: bool = False

    def __str__(self) -> str:
        return ": ".join(part for part in (self.origin, self.path, self.what) if part)

    def written_at(self, origin: str) -> Problem:
        """The same problem with its place, unless it already has one."""
        return self if self.origin else replace(self, origin=origin)


@dataclass(frozen=True)
class Note:
    """Something that was done, or not done, with what the file says: worth a line on stderr, no reason to stop."""

    path: str
    what: str
    origin: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.path}: {self.what}"


class ConfigError(UserError):
    """The configuration cannot be used; the message has one line for each of ``problems``."""

    has_place = True

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        assert self.problems, "a ConfigError without a problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))


def refuse(mark: Mark, what: str) -> ConfigError:
    """The error for a fault of the text itself, which has a place but no path yet."""
    return ConfigError([Problem("", what, str(mark))])
