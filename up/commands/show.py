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
        help="config: the YAML file; components: only these tables (backbone, head, loss, …)",
    )
    parser.add_argument("--task", default="cls", help="components, schema: task whose parts are listed")
    parser.add_config(required=False, among="tables")
    arguments = parser.read(words[1:])
    if arguments.what == "config":
        return show_config(arguments)
    from up.build.experiment import all_tables, find_task
    from up.schema.json_schema import config_schema

    task = find_task(arguments.task)
    tables = all_tables(task, [])
    if arguments.what == "schema":
        print(json.dumps(config_schema(tables, task.net_kinds), indent=2))
        return 0
    print_tables(*(part for name in chosen(arguments.tables, tables) for part in parts_of(name, tables[name])))
    return 0


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
