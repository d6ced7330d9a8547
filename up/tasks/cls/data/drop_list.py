"""Drop lists: names of images whose labels are wrong, left out of a data set."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np

from up.errors import UserError
from up.tasks.cls.data.metas import SampleTable
from up.text import count, some_of

COLUMN = "filename"


def without_dropped(table: SampleTable, path: str) -> SampleTable:
    """Return the samples that the drop list at ``path`` does not name, with a note of how many it names.

    Raises ``UserError`` for a list that cannot be read, that names no image of the data set, or all of them.
    """
    dropped = read_drop_list(path)
    named = {*dropped}
    kept = np.array([index for index, name in enumerate(table.names) if name not in named], np.int64)
    left_out = len(table) - len(kept)
    if named and not left_out:
        what = f"{path} names no image of the data set, such as {some_of(map(repr, dropped), 2)}"
        fix = f"Write names as the meta file does, such as {table.names[0]!r}."
        raise UserError(what, key="drop_list", fix=fix)
    if not len(kept):
        raise UserError(f"{path} names all {count(len(table), 'image')}", key="drop_list", fix="Remove lines from it.")
    unknown = named - {*table.names} if left_out < len(named) else set()
    other = f"; {len(unknown):,} of its names, such as {min(unknown)!r}, are not in the data set" if unknown else ""
    return replace(table.take(kept), notes=(*table.notes, f"{path}: {count(left_out, 'image')} left out{other}."))


def read_drop_list(path: str) -> list[str]:
    """Read the names in the column ``filename`` of a CSV file, or one a line in a file without such a header."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"{path}: cannot be read ({reason})"
        expected = f"a CSV file with a column {COLUMN}, or a text file with one name a line"
        raise UserError(what, expected=expected, key="drop_list") from None
    lines = text.split("\n")  # splitlines() would cut names at further characters
    if COLUMN in next(csv.reader(lines[:1]), []):
        return [row[COLUMN] for row in csv.DictReader(io.StringIO(text, newline="")) if row[COLUMN]]
    return [line.strip() for line in lines if line.strip()]
