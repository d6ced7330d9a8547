"""``up check``: check a configuration in seconds, without training."""

from __future__ import annotations

from up.commands.inputs import expect_config
from up.commands.parser import CommandParser


def main(words: list[str]) -> int:
    """Check names, types, arguments, files, and one batch of noise through net, loss and backward; returns the exit code."""
    parser = CommandParser("check")
    parser.add_argument("--no-files", action="store_true", help="check the YAML file alone, without meta files, images and weights")
    parser.add_config()
    arguments = parser.read(words[1:])
    expect_config(arguments.config, arguments.opts)
    from up.experiment import load_experiment
    from up.proof import prove

    experiment = load_experiment(arguments.config, arguments.opts)
    for line in prove(experiment, files=not arguments.no_files):
        print(line)
    print(f"{arguments.config}: good")
    return 0
