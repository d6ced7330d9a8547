"""``up flops``: parameters and operations of a network for one image."""

from __future__ import annotations

from up.commands.arguments import image_size, positive
from up.commands.inputs import load_checked
from up.commands.parser import CommandParser
from up.commands.tables import print_tables, table_of
from up.text import si


def main(words: list[str]) -> int:
    """Print parameters, multiply-adds and activations by module; returns the exit code."""
    parser = CommandParser("flops")
    parser.add_argument(
        "-i", "--input-size", type=image_size, metavar="CxHxW", help="input size (default: what the test transforms produce)"
    )
    parser.add_argument("--depth", type=positive, default=1, metavar="N", help="levels of modules in the table")
    parser.add_config()
    arguments = parser.read(words[1:])
    experiment = load_checked(arguments.config, arguments.opts)
    from up.build.data import channels_of, derived_from_train, input_size_of
    from up.build.network import build_net
    from up.models.complexity import complexity

    size = arguments.input_size or (channels_of(experiment), *input_size_of(experiment))
    counted = complexity(build_net(experiment, derived_from_train(experiment)), size, depth=arguments.depth)
    shape = "x".join(map(str, size))
    table = table_of("module", "parameters", "MACs", "activations", title=f"{arguments.config} at {shape}")
    for row in (*counted.modules, counted.total):
        table.add_row(row.name, si(row.parameters, 3), si(row.macs, 3), si(row.activations, 3))
    print_tables(table)
    return 0
