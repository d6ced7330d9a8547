"""The command as the user typed it, and commands like it, to be printed as the next step."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PLAIN = ("python", "-m", "up")
_OVERRIDES = ("-o", "--opts")


@dataclass(frozen=True)
class CommandLine:
    """``program`` (``up``, ``python -m up``, ``torchrun … -m up``) and the ``words`` after it, the command's name first."""

    program: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def typed(cls, words: Sequence[str]) -> CommandLine:
        """Return the command of this process, which was called with ``words``; for a rank, that of its launcher."""
        lines = [_line_of(os.getppid())] if "TORCHELASTIC_RUN_ID" in os.environ else []
        for line in (*lines, sys.orig_argv):
            if len(line) > len(words) and line[-len(words) :] == list(words):
                return cls(_readable(line[: -len(words)]), tuple(words))
        return cls(_PLAIN, tuple(words))

    def __str__(self) -> str:
        return shlex.join([*self.program, *self.words])

    def setting(self, values: Mapping[str, object]) -> str:
        """Return the same command with overridden values of the configuration."""
        given = {key: f"{key}={value}" for key, value in values.items()}
        words = [given.get(word.partition("=")[0], word) if "=" in word else word for word in self.words]
        added = [setting for setting in given.values() if setting not in words]
        last = next((word for word in reversed(words) if word.startswith("-") and word != "--"), "")
        opening = ["-o"] if added and last not in _OVERRIDES else []
        end = words.index("--") if "--" in words else len(words)
        words[end:end] = [*opening, *added]
        return shlex.join([*self.program, *words])

    def with_flag(self, flag: str, value: object) -> str:
        """Return the same command with a flag set, in its place or after the command's name.

        A flag may be abbreviated (``--epoch 3``), and of several the last one counts.
        """
        words = list(self.words)
        found = [place for place, word in enumerate(words) if _is_spelled(word.partition("=")[0], flag)]
        if not found:
            words[1:1] = [flag, str(value)]
        elif "=" in words[found[-1]]:
            words[found[-1]] = f"{flag}={value}"
        else:
            words[found[-1] : found[-1] + 2] = [flag, str(value)]
        return shlex.join([*self.program, *words])

    def other(self, *words: object) -> str:
        """Return another command of this program, in one process."""
        program = self.program if Path(self.program[0]).name.startswith(("up", "python")) else _PLAIN
        return shlex.join([*program, *map(_argument, words)])


def _argument(word: object) -> str:
    """Return a word of a command; a path that begins with a dash would be a flag."""
    return f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)


def _is_spelled(word: str, flag: str) -> bool:
    """Whether a word is a flag, or an abbreviation of it of two letters or more, as argparse accepts them."""
    return word.startswith("--") and len(word) >= 4 and flag.startswith(word)


def _line_of(process: int) -> list[str]:
    """Read the command line of another process; empty if it cannot be read."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    return []


def _readable(program: Sequence[str]) -> tuple[str, ...]:
    """Return a program as it was typed: ``up`` for ``/usr/bin/python /usr/bin/up``, as the system runs a script.

    The path of an interpreter (``/venv/bin/python -m up``) was typed, even if it is the first on ``PATH``: it stays.
    """
    if len(program) > 1 and program[1].startswith("-"):
        return tuple(program)
    name, *options = program[1:] or program
    found = shutil.which(Path(name).name)
    is_on_path = found is not None and Path(found).absolute() == Path(name).absolute()
    return (Path(name).name if is_on_path else name, *options)
