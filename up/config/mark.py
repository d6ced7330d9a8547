"""Source locations of a configuration, and problems at them."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from typing_extensions import Unpack

from up.errors import ConfigError, Problem

OPTS = "--opts"
DEFAULT = "default"


class Fields(TypedDict, total=False):
    """The fields of a ``Problem`` other than its place."""

    key: str
    got: object
    expected: str
    fix: str
    about_key: bool


class Mark(NamedTuple):
    """The place of a value: a file with line and column (both from 1), or ``--opts``, which has no lines."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def problem(self, what: str = "", **fields: Unpack[Fields]) -> Problem:
        """Return a problem at this place."""
        return Problem(what, file=self.file, line=self.line, **fields)

    def error(self, what: str = "", **fields: Unpack[Fields]) -> ConfigError:
        """Return the error of a single problem at this place."""
        return ConfigError([self.problem(what, **fields)])
