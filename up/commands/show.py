"""``up show``: the effective configuration with origins, the parts there are, the JSON Schema of the file."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from up.commands.arguments import add_config, command_parser
from up.config.schema import config_schema
from up.config.show import effective_yaml
from up.config.signature import describe
from up.errors import UserError
from up.experiment import ENGINE_FILLED_IN, all_tables, find_task, load_experiment
from up.registry import Registry
from up.text import did_you_mean


def main(words: list[str]) -> int:
    """Show one of three things; returns the exit code."""
    parser = command_parser("show", "Show the effective configuration, the parts that `type:` may name, or the JSON Schema.")
    parser.add_argument("what", choices=("config", "components", "schema"))
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="components: only these tables (backbone, head, loss, …)")
    parser.add_argument("--task", default="cls", help="components, schema: the task whose parts are meant")
    add_config(parser, required=False)
    arguments = parser.parse_args(words[1:])
    if arguments.what == "config":
        if arguments.config is None:
            raise UserError("show config needs --config FILE.")
        experiment = load_experiment(arguments.config, arguments.opts)
        print(effective_yaml(experiment.config, experiment.decoded.origins), end="")
        return 0
    plugin = find_task(arguments.task)
    tables = all_tables(plugin, [])
    if arguments.what == "schema":
        filled_in = {argument for names in (*ENGINE_FILLED_IN.values(), *plugin.filled_in.values()) for argument in names}
        print(json.dumps(config_schema(tables, filled_in=filled_in), indent=2))
        return 0
    for name in chosen(arguments.tables, tables):
        print_table(name, tables[name])
    return 0


def chosen(wanted: Sequence[str], tables: dict[str, Registry]) -> list[str]:
    """The tables asked for, or all. Raises ``UserError`` for one that there is not."""
    for name in wanted:
        if name not in tables:
            raise UserError(f"there is no table {name!r}.{did_you_mean(name, tables)} Tables: {', '.join(sorted(tables))}.")
    return list(wanted) or sorted(tables)


def print_table(name: str, registry: Registry) -> None:
    """The parts of one table: name, arguments with defaults, purpose."""
    table = Table("type", "kwargs", "what it is", title=name, title_justify="left", show_lines=False)
    for entry in registry:
        about = describe(registry.get(entry))
        arguments = ", ".join(
            argument if default == "required" else f"{argument}={default}" for argument, _, default in about.parameters
        )
        table.add_row(entry, Text(arguments), Text(about.summary))
    console = Console()
    console.print(table)
    others = registry.other_names()
    if others:
        console.print(Text(f"and {len(others)} more by name: {', '.join(others)}"))
    console.print()
