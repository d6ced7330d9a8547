"""``up models``: networks of timm, and the weights that are published for them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from up.commands.parser import CommandParser
from up.commands.tables import print_tables, table_of
from up.errors import UserError
from up.json_text import json_text
from up.text import count, did_you_mean, si
from up.tracking.console import print_utf8
from up.types import Json

if TYPE_CHECKING:  # it imports torch
    from up.models.pretrained import ModelRow

_MOST_COUNTED = 40  # rows with parameters and multiply-adds: a large network takes a second


def main(words: list[str]) -> int:
    """List networks with their cost, the preprocessing of their weights, and the tags of these; returns the exit code."""
    parser = CommandParser("models")
    parser.add_argument(
        "pattern", nargs="?", default="", metavar="PATTERN", help="part of the name, or a pattern: 'convnext*in22k' (default: all)"
    )
    parser.add_argument("--pretrained", action="store_true", help="a row for each set of weights: NAME of --model timm:NAME")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.read(words[1:])
    from up.models.pretrained import models_like

    rows = models_like(arguments.pattern, arguments.pretrained)
    if not rows:
        known = (row.name for row in models_like("", arguments.pretrained))
        fix = f"{did_you_mean(arguments.pattern, known).strip()} A pattern may have * and ?; up models lists all.".strip()
        raise UserError("PATTERN", got=arguments.pattern, expected="a part of a network's name in timm", fix=fix)
    counted = len(rows) <= _MOST_COUNTED
    listed = [entry_of(row, counted=counted) for row in rows]
    if arguments.json:
        print_utf8(json_text(listed, indent=2) + "\n")
    else:
        print_tables(table_for(listed, counted=counted))
    if not counted:
        note = f"{count(len(rows), 'row')}. Narrow PATTERN to at most {_MOST_COUNTED} rows for parameters and multiply-adds (MACs)."
        print(note, file=sys.stderr)
    return 0


def entry_of(row: ModelRow, *, counted: bool) -> dict[str, Json]:
    """Return plain values; ``counted`` adds parameters and multiply-adds, for which the network is built without memory."""
    cost = {"parameters": row.cost.parameters, "macs": row.cost.macs} if counted else {}
    return {"name": row.name, **cost, **row.preprocessing.as_record(), "tags": list(row.tags)}


def table_for(entries: Sequence[dict[str, Json]], *, counted: bool) -> Table:
    """Build a table of the entries."""
    table = table_of("name", *(("parameters", "MACs") if counted else ()), "input", "mean", "std", "interpolation", "crop", "tags")
    for each in entries:
        cost = [si(each["parameters"], 1), si(each["macs"])] if counted else []
        means = (" ".join(f"{value:.3g}" for value in each[key]) for key in ("mean", "std"))
        size = "x".join(map(str, each["input_size"]))
        table.add_row(each["name"], *cost, size, *means, each["interpolation"], f"{each['crop_pct']:.3g}", ", ".join(each["tags"]))
    return table
