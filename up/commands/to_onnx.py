"""``up to_onnx``: a checkpoint as one ONNX file that explains itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from up.command_line import CommandLine
from up.commands.arguments import image_size
from up.commands.exporting import add_export, experiment_of, exported, parsed
from up.commands.next_steps import next_commands, with_package
from up.commands.parser import CommandParser
from up.errors import UserError

if TYPE_CHECKING:
    from up.tasks.experiment import Experiment


def main(words: list[str]) -> int:
    """Export, compare the graph with torch, write it; returns the exit code."""
    parser = CommandParser("to_onnx")
    parser.add_argument("--save-prefix", type=Path, help="output file without .onnx (default: RUN/NAME_VERSION)")
    parser.add_argument(
        "-i", "--input-size", type=image_size, metavar="CxHxW", help="input size; must be what the test transforms produce"
    )
    add_export(parser)
    arguments = parsed(parser, words)
    experiment = experiment_of(arguments)
    from up.files import make_folder, write_bytes

    if arguments.input_size is not None:
        expect_size(arguments.input_size, experiment)
    settings = experiment.config.to_kestrel
    prefix = arguments.save_prefix or experiment.folder / f"{settings.model_name}_{settings.version}"
    if prefix.is_dir():
        raise UserError(f"--save_prefix: {prefix}: is a folder, expected a file's name without .onnx, such as {prefix / 'x'}.")
    path = prefix if prefix.suffix == ".onnx" else prefix.with_name(f"{prefix.name}.onnx")
    made = exported(experiment, arguments, path.parent)
    make_folder(path.parent)
    write_bytes(path, made.model)
    print(f"written: {path} ({len(made.model):,} bytes)")
    print(*next_commands(CommandLine.typed(words), with_package(path)), sep="\n")
    return 0


def expect_size(given: tuple[int, int, int], experiment: Experiment) -> None:
    """Raise ``UserError`` unless (C, H, W) is the size that the test transforms produce."""
    from up.build.data import input_size_of

    height, width = input_size_of(experiment)
    if given != (3, height, width):
        got = "x".join(map(str, given))
        raise UserError(
            f"--input_size: got {got}, but the test transforms produce 3x{height}x{width}. Leave it out, or change the transforms."
        )
