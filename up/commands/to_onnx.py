"""``up to_onnx``: a checkpoint as one ONNX file that explains itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from up.commands.arguments import command_parser
from up.commands.exporting import add_export, experiment_of, exported, parsed
from up.errors import UserError

if TYPE_CHECKING:
    from up.experiment import Experiment


def main(words: list[str]) -> int:
    """Export, prove the graph against torch, write it; returns the exit code."""
    parser = command_parser("to_onnx", "Export a checkpoint as one .onnx file, proved against torch on real images.")
    parser.add_argument("--save-prefix", "--save_prefix", type=Path, help="the file without .onnx (default: RUN/NAME_VERSION)")
    parser.add_argument("--input-size", "--input_size", metavar="CxHxW", help="must be what the test transforms produce")
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
    return 0


def expect_size(text: str, experiment: Experiment) -> None:
    """A ``UserError`` unless ``CxHxW`` is what the test transforms produce: a graph of another size would see other images."""
    from up.assembly.data import input_size_of
    from up.commands.flops import parse_size

    given, size = parse_size(text), input_size_of(experiment)
    if given != (3, *size):
        raise UserError(
            f"--input_size: got {text}, but the test transforms produce 3x{size[0]}x{size[1]}. Leave it out, or change the "
            "transforms."
        )
