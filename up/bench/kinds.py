"""Kinds of rows, and the choice of rows by the arguments of ``up bench``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from up.bench.cells import OURS, Row
from up.errors import UserError
from up.text import did_you_mean

KINDS = {
    "loader": ("up.bench.loader",),
    "step": ("up.bench.step", "up.bench.distill", "up.bench.ranks"),
    "start": ("up.bench.start",),
    "memory": ("up.bench.memory",),
    "optimizer": ("up.bench.optimizer",),
    "predict": ("up.bench.predict",),
    "serve": ("up.bench.serve",),
    "run": ("up.bench.run", "up.bench.from_files"),
}
ALL = "all"


def rows_of(kind: str) -> list[Row]:
    """Return the rows of a kind, or of all kinds."""
    return [row for name, modules in KINDS.items() if kind in (name, ALL) for each in modules for row in import_module(each).ROWS]


def chosen(rows: Sequence[Row], *, device: str, only: Sequence[str], against: Sequence[str]) -> list[Row]:
    """Return the ``rows`` for a device whose names contain one of ``only``, if there are any of these.

    ``against`` are the peers to compare with, all of them if it is empty. Raises ``UserError`` where nothing is left, and
    for a peer that no row has.
    """
    peers = sorted({cell.name for row in rows for cell in row.cells} - {OURS})
    for name in against:
        if name not in peers:
            raise UserError("--against", got=name, expected=f"one of {', '.join(peers)}", fix=did_you_mean(name, peers).strip())
    found = [row for row in rows if not only or any(part in row.name for part in only)]
    if not found:
        raise UserError("--only", got=", ".join(only), expected=f"a part of one of {', '.join(row.name for row in rows)}")
    fitting = [row.against(against) for row in found if row.device in (None, device)]
    if not fitting:
        raise UserError(f"--only {', '.join(only)}", got=device, expected=f"a row for {device}", fix="Choose another --device.")
    return fitting
