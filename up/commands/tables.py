"""Tables on terminals and in pipes, without truncation."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from up.tracking.console import wrapped

_UNBOUNDED = 1 << 20  # columns, for pipes
_NARROW = 12  # terminal columns for each column of a table: with fewer, words would be broken


def table_of(*columns: str, title: str | None = None) -> Table:
    """Make a table that folds its cells if the terminal is too narrow."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_tables(*parts: RenderableType) -> None:
    """Print tables and text: at full width in a pipe, folded to a terminal; a table too wide for that as a list of its rows.

    Colours are those of rich: on a terminal only, unless NO_COLOR, FORCE_COLOR or TERM=dumb say otherwise.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    if not sys.stdout.isatty():
        console.width = _UNBOUNDED
    console.print(Group(*(_as_list(part, console) if _is_too_wide(part, console) else part for part in parts)))


def _is_too_wide(part: RenderableType, console: Console) -> bool:
    if not isinstance(part, Table) or len(part.columns) * _NARROW <= console.width:
        return False
    return Measurement.get(console, console.options.update(width=_UNBOUNDED), part).maximum > console.width


def _as_list(part: RenderableType, console: Console) -> Text:
    assert isinstance(part, Table)
    return Text("\n".join(wrapped(line, console.width) for line in _rows_of(part)))


def _rows_of(table: Table) -> Iterator[str]:
    """Yield the title, then of each row its first cell, and ``  column: cell`` for the others that are not empty."""
    yield from [] if table.title is None else [str(table.title)]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        texts = [(str(column.header), str(cell)) for column, cell in zip(table.columns, cells, strict=True)]
        yield texts[0][1]
        yield from (f"  {header}: {text}" for header, text in texts[1:] if text)
