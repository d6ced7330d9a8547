"""``up flops``: what a network costs for one image."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from up.assembly.data import facts_of_train, input_size_of
from up.assembly.network import build_net
from up.commands.arguments import add_config, command_parser
from up.errors import UserError
from up.experiment import load_experiment
from up.models.complexity import complexity
from up.text import si


def main(words: list[str]) -> int:
    """Print parameters, multiply-adds and activations by module; returns the exit code."""
    parser = command_parser("flops", "Parameters, multiply-adds and activations of a network, for one image.")
    parser.add_argument("-i", "--input_size", metavar="CxHxW", help="size of the input (default: what the test transforms produce)")
    add_config(parser)
    arguments = parser.parse_args(words[1:])
    experiment = load_experiment(arguments.config, arguments.opts)
    channels, height, width = parse_size(arguments.input_size) if arguments.input_size else (3, *input_size_of(experiment))
    counted = complexity(build_net(experiment, facts_of_train(experiment)), (channels, height, width))
    table = Table("module", "parameters", "MACs", "activations", title=f"{arguments.config} at {channels}x{height}x{width}")
    for row in (*counted.modules, counted.total):
        table.add_row(row.name, si(row.parameters, 3), si(row.macs, 3), si(row.activations, 3))
    Console().print(table)
    return 0


def parse_size(text: str) -> tuple[int, int, int]:
    """``3x224x224`` as three numbers. Raises ``UserError`` for anything else."""
    words = text.lower().split("x")
    if len(words) != 3 or not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"--input_size: got {text!r}, expected CxHxW such as 3x224x224.")
    channels, height, width = (int(word) for word in words)
    return channels, height, width
