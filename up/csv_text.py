"""CSV that every reader splits into the same rows: on all versions of Python, cells with a carriage return are quoted too."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import TextIO


def write_rows(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write ``rows`` with line feeds at their ends; ``file`` translates none.

    Before Python 3.13, ``csv`` leaves a carriage return without quotes, and then cannot read it.
    """
    plain, quoting = csv.writer(file, lineterminator="\n"), csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (quoting if any(isinstance(cell, str) and "\r" in cell for cell in row) else plain).writerow(row)
