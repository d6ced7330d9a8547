"""Source locations of a configuration, and what is worth a line about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from up.errors import ConfigError, Problem

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
class Note:
    """Something that was done, or not done, with what the file says: worth a line on stderr, no reason to stop."""

    path: str
    what: str
    origin: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.path}: {self.what}"


def refuse(mark: Mark, what: str = "", *, got: object = None, expected: str | None = None) -> ConfigError:
    """The error for a fault of the text itself, which has a place but no path yet."""
    return ConfigError([Problem(what, got=got, expected=expected, file=mark.file, line=mark.line)])
