"""The terminal of a command: its width, its bar, and the flags ``--quiet`` and ``--log-format json``. No torch is imported here."""

from __future__ import annotations

import io
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, TextIO, cast

from rich.console import Console

from up.distributed.env import rank_in_environment
from up.errors import Ending
from up.json_text import json_text

OUTPUT = "UP_OUTPUT"  # variable: ranks that this process starts write as it does
QUIET, JSON = "quiet", "json"


class ClosableStderr:
    """``sys.stderr`` that ignores a closed terminal: the run then ends in order, and ``train.log`` has every line."""

    @property
    def _stream(self) -> TextIO:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a bar replaces sys.stderr by itself

    def write(self, text: str) -> int:
        """Write if the terminal is open."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if the terminal is open."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def terminal() -> Console:
    """Return a console on ``sys.stderr`` that survives a terminal that closes. FORCE_COLOR makes no terminal of a pipe."""
    return Console(file=cast(TextIO, ClosableStderr()), force_terminal=sys.stderr.isatty(), highlight=False)


def has_bar(console: Console) -> bool:
    """Whether a bar can be drawn: on a terminal that can move its cursor, unless ``--quiet`` or JSON is asked for."""
    return console.is_terminal and not console.is_dumb_terminal and not output()


def output() -> str:
    """Return ``quiet``, ``json``, or an empty text for lines as people read them."""
    return os.environ.get(OUTPUT, "")


@contextmanager
def output_as(mode: str) -> Iterator[None]:
    """Write as ``mode`` in the block; an error that ends it is a JSON object too."""
    before = os.environ.get(OUTPUT)
    os.environ[OUTPUT] = mode
    try:
        yield
    except Ending as error:
        if mode == JSON and not (error.known_to_all and rank_in_environment() > 0):
            write_json_line("error" if error.exit_code else "info", "end", str(error), exit_code=error.exit_code)
        raise
    finally:
        os.environ.pop(OUTPUT, None)
        if before is not None:
            os.environ[OUTPUT] = before


def write_json_line(level: str, event: str, message: str, **fields: object) -> None:
    """Write a JSON object on a line of standard output: time, level, event, message, and the fields of the event."""
    record = {"time": round(time.time(), 3), "level": level, "event": event, "message": message, **fields}
    with suppress(OSError):
        print_utf8(json_text(record, default=str) + "\n")
        sys.stdout.flush()


def print_utf8(text: str) -> None:
    """Write what programs read to standard output: in UTF-8, which JSON requires, whatever the locale.

    Bytes of file names that are no UTF-8 are escaped, as ``\\udce9``.
    """
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper) and (stdout.encoding.lower(), stdout.errors) != ("utf-8", "backslashreplace"):
        stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    stdout.write(text)


def tell(*lines: str) -> None:
    """Write lines other than results: to standard error, as JSON, or with ``--quiet`` not at all; by one rank of many."""
    if rank_in_environment() > 0:
        return
    for line in lines:
        if output() == JSON:
            write_json_line("info", "log", line)
        elif output() != QUIET:
            sys.stderr.write(f"{line}\n")


EXTRA = 5  # parts of this rank and above are left out before any part is shortened


class LinePart(NamedTuple):
    """A part of a line: its text, a shorter one, and when it is left out of a line that is too long: higher is earlier, 0 never."""

    text: str
    short: str
    leave: int = 0


def fitted(parts: Sequence[LinePart], width: int) -> str:
    """Join parts to one line of at most ``width`` columns: without extras, then of shorter parts, then of the most important."""
    line = "  ".join(part.text for part in parts)
    if len(line) > width:
        line = "  ".join(part.text for part in parts if part.leave < EXTRA)
    least = max((part.leave for part in parts), default=0)
    while len(line) > width and least >= 0:
        line = "  ".join(part.short for part in parts if part.leave <= least and part.short)
        least -= 1
    return line


def wrapped(text: str, width: int) -> str:
    """Wrap the words of each line that is too long, indented; paths and words stay whole. Columns move together first."""
    lines = []
    for line in text.split("\n"):
        if len(line) > width:
            line = re.sub(r"(?<=\S) {3,}", "  ", line)
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        made = textwrap.wrap(
            line, max(20, width), subsequent_indent=indent, drop_whitespace=True, break_long_words=False, break_on_hyphens=False
        )
        lines += made if len(line) > width and made else [line]
    return "\n".join(lines)
