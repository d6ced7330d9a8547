"""``up show``: the effective configuration with source locations, the parts, the JSON Schema of the file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from up.commands.inputs import load_checked
from up.commands.parser import CommandParser
from up.commands.tables import print_tables, table_of
from up.errors import UserError
from up.text import did_you_mean

if TYPE_CHECKING:
    from up.registry import Registry


def main(words: list[str]) -> int:
    """Show the configuration, the parts or the JSON Schema; returns the exit code."""
    parser = CommandParser("show")
    parser.add_argument(
        "what",
        choices=("config", "components", "schema"),
        help="config: every value with its file and line; components: parts that `type:` may name; schema: JSON Schema for editors",
    )
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="FILE.yaml | TABLE",
        help="the YAML file, whose plug-ins count too; components: only these tables (backbone, head, loss, …)",
    )
    parser.add_argument("--task", help="components, schema: task whose parts are listed (default: that of the file, else cls)")
    parser.add_config(required=False, among="tables")
    arguments = parser.read(words[1:])
    expect_used(parser, arguments)
    if arguments.what == "config":
        return show_config(arguments)
    from up.build.experiment import all_tables, find_task
    from up.schema.json_schema import config_schema

    if arguments.config is None:
        task = find_task(arguments.task or "cls")
        tables = all_tables(task, [])
    else:
        experiment = load_checked(arguments.config, arguments.opts)
        task, tables = experiment.task, dict(experiment.tables)
    if arguments.what == "schema":
        print(json.dumps(config_schema(tables, task.net_kinds), indent=2))
        return 0
    print_tables(*(part for name in chosen(arguments.tables, tables) for part in parts_of(name, tables[name])))
    return 0


def expect_used(parser: CommandParser, arguments: argparse.Namespace) -> None:
    """Exit with one line for arguments that would have no effect."""
    what, config = arguments.what, arguments.config
    if arguments.tables and what != "components":
        parser.error(f"{what}: got {arguments.tables[0]!r}, expected {'a YAML file alone' if what == 'config' else 'no table'}")
    if arguments.task and (config or what == "config"):
        parser.error(f"--task has no effect: {config or 'the file'} names its task, runtime.task_names")
    if arguments.opts and config is None:
        parser.error("-o changes a YAML file, and none is given")


def show_config(arguments: argparse.Namespace) -> int:
    """Print the effective configuration with the source location of every value."""
    if arguments.config is None:
        raise UserError("show config", expected="a YAML file", fix="Name one: up show config FILE.yaml")
    experiment = load_checked(arguments.config, arguments.opts)
    from up.schema.show import effective_yaml

    print(effective_yaml(experiment.config, experiment.decoded.origins), end="")
    return 0


def chosen(wanted: Sequence[str], tables: dict[str, Registry]) -> list[str]:
    """Return the named tables, or all. Raises ``UserError`` for an unknown table."""
    for name in wanted:
        if name not in tables:
            near = did_you_mean(name, tables).strip()
            raise UserError("show components", got=name, expected=f"a table: {', '.join(sorted(tables))}", fix=near)
    return list(wanted) or sorted(tables)


def parts_of(name: str, registry: Registry) -> Iterator[RenderableType]:
    """Yield the parts of one table with a line for each argument, and the names that other libraries add."""
    from up.config.signature import signature_of
    from up.config.words import Words, description

    if not [*registry]:
        yield Text(f"{name}\nup has none of its own; modules in runtime.plugins add them\n")
        return
    table = table_of("type", "kwargs", "description", title=name)
    for entry in registry:
        part = registry.get(entry)
        arguments = [Words().argument(parameter) for parameter in signature_of(part).parameters.values()]
        table.add_row(entry, Text("\n".join(arguments)), Text(description(part).replace("``", "`")))
    yield table
    others = registry.other_names()
    if others:
        yield Text(f"and {len(others)} more by name: {', '.join(others)}")
    yield Text()
