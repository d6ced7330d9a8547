"""``up check``: prove a configuration in seconds, without training."""

from __future__ import annotations

from up.commands.arguments import add_config, command_parser
from up.experiment import load_experiment
from up.proof import prove


def main(words: list[str]) -> int:
    """Check names, types, arguments, files, and one batch of noise through net, loss and backward; returns the exit code."""
    parser = command_parser(
        "check", "Prove a configuration in seconds: names, types, files, shapes through net, loss and backward."
    )
    parser.add_argument("--no-files", action="store_true", help="do not ask for meta files, images and weights to exist")
    add_config(parser)
    arguments = parser.parse_args(words[1:])
    experiment = load_experiment(arguments.config, arguments.opts)
    for line in prove(experiment, files=not arguments.no_files):
        print(line)
    print(f"{arguments.config}: good")
    return 0
