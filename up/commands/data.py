"""``up data``: subcommands for the images of a data set."""

from __future__ import annotations

from importlib import import_module

from up.commands.catalog import OF_DATA
from up.commands.parser import CommandParser


def main(words: list[str]) -> int:
    """Run a subcommand of ``up data``; returns the exit code."""
    if words[1:2] and words[1] in OF_DATA:
        module, _, function = OF_DATA[words[1]].target.partition(":")
        code: int = getattr(import_module(module), function)(words)
        return code
    width = max(map(len, OF_DATA)) + 2
    lines = [f"  up data {name:<{width}}{command.summary}" for name, command in OF_DATA.items()]
    group = CommandParser(
        "data", more="\n".join(["subcommands:", *lines, "", "up data SUBCOMMAND --help lists the arguments of one"])
    )
    group.add_argument("subcommand", choices=OF_DATA, help="the subcommand")
    group.read(words[1:])
    return 2
