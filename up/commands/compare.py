"""``up compare``: runs, or folders of evaluations, on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from up.commands.inputs import expect_run, expect_writable
from up.commands.parser import CommandParser
from up.commands.tables import print_tables, table_of

if TYPE_CHECKING:  # it imports torch
    from up.tasks.report import Block

_MORE = """\
A run is its folder or the YAML file that it was trained from, and is evaluated unless `up report` kept its results; a folder that
`up eval` wrote (--out) is read. McNemar's mid-p test decides at .05, for more than two runs adjusted by Holm's method."""


def main(words: list[str]) -> int:
    """Write compare.html and compare.json, and print the differences; returns the exit code."""
    parser = CommandParser("compare")
    parser.epilog = f"{parser.epilog}\n\n{_MORE}"
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="at least two run folders, YAML files or evaluation folders"
    )
    parser.add_argument("--out", type=Path, default=Path("compare"), help="folder of the page")
    parser.add_argument("--seeds", action="store_true", help="group runs that differ by their seed alone, and compare the groups")
    parser.add_argument(
        "--allow-different-images", action="store_true", help="compare only the images that all have, with the same labels"
    )
    arguments = parser.read(words[1:])
    if len(arguments.runs) < 2:
        parser.error(f"got one run, {arguments.runs[0]}, expected at least two")
    for run in arguments.runs:
        expect_run(run, ())
    expect_writable(arguments.out)
    from up.report.compare import compare_runs

    allowed = arguments.allow_different_images
    found = compare_runs(arguments.runs, arguments.out, seeds=arguments.seeds, allow_different_images=allowed)
    accuracies = table_of("run", "top-1")
    for row in found.accuracies():
        accuracies.add_row(*row)
    print_tables(f"{found.images:,} images: {found.how}.", accuracies, *map(_printed, found.blocks))
    print("written:", *found.files, sep="\n  ")
    return 0


def _printed(block: Block) -> RenderableType:
    """Return a table or a note of the page for the terminal."""
    from up.tasks.report import Note, Table

    if isinstance(block, Table):
        table = table_of(*(label for _, label, _ in block.columns), title=block.caption or None)
        for row in block.rows:
            table.add_row(*(str(row[key]) for key, _, _ in block.columns))
        return table
    return block.text if isinstance(block, Note) else ""
