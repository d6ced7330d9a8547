"""Tables on terminals and in pipes, without truncation."""

from __future__ import annotations

import io
import sys

from rich.console import Console, Group, RenderableType
from rich.table import Table

_UNBOUNDED = 1 << 20  # columns: a pipe has no edge


def table_of(*columns: str, title: str | None = None) -> Table:
    """Make a table that folds its cells if the terminal is too narrow."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_tables(*parts: RenderableType) -> None:
    """Print tables and text, folded to the width of a terminal, at full width elsewhere."""
    any_name_is_printable()
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    console.print(Group(*parts))


def any_name_is_printable() -> None:
    """Escape characters that the terminal's encoding lacks, as ``\\u732b``: names of files and classes may be in any script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
