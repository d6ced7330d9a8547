"""``up to_onnx`` and ``up to_kestrel``: a checkpoint as a graph or a package, compared with torch from pixel to logit."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from up.bundle.images import find_images
from up.command_line import CommandLine
from up.commands.arguments import finite, image_size, natural, positive
from up.commands.inputs import expect_checkpoint, load_checked
from up.commands.next_steps import listed, next_commands, with_package
from up.commands.parser import CommandParser
from up.errors import StorageError, UserError
from up.files import make_folder, unwritable, write_bytes
from up.schema.overrides import override_of

if TYPE_CHECKING:  # torch is imported once the arguments are known to be good
    from up.deploy.exporter import Export
    from up.tasks.experiment import Experiment


def to_onnx(words: list[str]) -> int:
    """Export, compare the graph with torch, write it; returns the exit code."""
    parser = CommandParser("to_onnx")
    parser.add_argument("--save-prefix", type=Path, help="output file without .onnx (default: RUN/NAME_VERSION)")
    parser.add_argument(
        "-i", "--input-size", type=image_size, metavar="CxHxW", help="input size; must be what the test transforms produce"
    )
    arguments, experiment = read(parser, words)
    if arguments.input_size is not None:
        expect_size(arguments.input_size, experiment)
    settings = experiment.config.to_kestrel
    prefix = arguments.save_prefix or experiment.folder / f"{settings.model_name}_{settings.version}"
    if prefix.is_dir():
        raise UserError(f"--save_prefix {prefix}: is a folder, expected a file's name without .onnx, such as {prefix / 'x'}.")
    path = prefix if prefix.suffix == ".onnx" else prefix.with_name(f"{prefix.name}.onnx")
    made = exported(experiment, arguments, path.parent)
    make_folder(path.parent)
    write_bytes(path, made.model)
    return written(path, words)


def to_kestrel(words: list[str]) -> int:
    """Export, compare with torch, verify the package, write it; returns the exit code."""
    parser = CommandParser("to_kestrel")
    parser.add_argument("--save-to", type=Path, help="output folder (default: to_kestrel.save_to, else the run folder)")
    parser.add_argument("--strict-kestrel", action="store_true", help="write only the members that Kestrel reads")
    parser.add_argument("--to", choices=("kestrel", "triton"), default="kestrel", help="a package, or a Triton model repository")
    arguments, experiment = read(parser, words)
    if arguments.to == "triton" and arguments.strict_kestrel:
        raise UserError("--strict-kestrel: leaves out members of a package; --to triton writes none. Leave one of them out.")
    from up.deploy.exporter import write_kestrel
    from up.deploy.kestrel import package_path
    from up.deploy.triton import expect_model_folder, repository_files, write_repository

    settings = experiment.config.to_kestrel
    folder = arguments.save_to or Path(settings.save_to or experiment.folder)
    if arguments.to == "triton":
        expect_model_folder(folder / settings.model_name)
        made = exported(experiment, arguments, folder)
        write_repository(repository_files(made.manifest, made.model), folder / settings.model_name)
        print(f"written: {folder / settings.model_name}")
        print("next:", *listed({"serve": shlex.join(["tritonserver", f"--model-repository={folder}"])}), sep="\n")
        return 0
    path = package_path(folder, settings)
    made = exported(experiment, arguments, folder)
    print(*write_kestrel(made, settings, path, strict=arguments.strict_kestrel), sep="\n")
    return written(path, words)


def read(parser: CommandParser, words: list[str]) -> tuple[argparse.Namespace, Experiment]:
    """Add the arguments of both commands and parse; load the experiment with those that override ``to_kestrel``.

    ``--save-to`` is no override: the package contains its configuration, and would depend on its own path.
    """
    parser.add_argument("-c", "--ckpt", type=Path, help="checkpoint (default: the best of the run, an average included)")
    parser.add_argument("--model-name", help="name of the model (default: to_kestrel.model_name)")
    parser.add_argument("--version", help="version of the model, major.minor.patch (default: to_kestrel.version)")
    parser.add_argument(
        "--add-softmax",
        "--activation",
        action=argparse.BooleanOptionalAction,
        dest="add_softmax",
        help="let the graph return probabilities: softmax, or sigmoid for bce (default: to_kestrel.add_softmax)",
    )
    parser.add_argument("--quantize", choices=("int8",), help="quantize to 8-bit integers if accuracy and speed allow it")
    max_drop = "int8: largest loss of the main metric, in its unit (default: 1 percentage point)"
    parser.add_argument("--max-drop", type=finite, help=max_drop)
    parser.add_argument("--min-speedup", type=finite, default=1.0, help="int8: smallest speed-up on this machine, as a factor")
    parser.add_argument(
        "--calibration-images",
        type=positive,
        default=256,
        help="int8: number of calibration images, at least 128; none of transformers",
    )
    parser.add_argument(
        "--metric-images",
        type=natural,
        metavar="N",
        help="number of test images for the accuracy; 0 means all (default: 2048, for int8 all)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="compare with torch on these images when dataset.test is not on this machine",
    )
    parser.add_config()
    arguments = parser.read(words[1:])
    given = {key: getattr(arguments, key) for key in ("model_name", "version", "add_softmax")}
    overrides = [override_of(f"to_kestrel.{key}", value) for key, value in given.items() if value is not None]
    expect_checkpoint(arguments.ckpt)
    arguments.images = find_images(arguments.images)
    return arguments, load_checked(arguments.config, [*arguments.opts, *overrides], of_run=True)


def expect_size(given: tuple[int, int, int], experiment: Experiment) -> None:
    """Raise ``UserError`` unless (C, H, W) is what the reader and the test transforms produce."""
    from up.build.data import channels_of, input_size_of

    produced = (channels_of(experiment), *input_size_of(experiment))
    if given != produced:
        got, expected = ("x".join(map(str, shape)) for shape in (given, produced))
        raise UserError(
            f"--input-size: got {got}, but the test transforms produce {expected}. Leave it out, or change the transforms."
        )


def exported(experiment: Experiment, arguments: argparse.Namespace, folder: Path) -> Export:
    """Export and check, for a file in ``folder``. Raises before anything is written if a step fails."""
    reason = unwritable(folder)
    if reason is not None:
        raise StorageError(f"{folder}: cannot write there: {reason}. Name another folder.")
    from up.deploy.exporter import ExportOptions, export

    options = ExportOptions(
        precision="int8" if arguments.quantize else "fp32",
        max_drop=arguments.max_drop,
        min_speedup=arguments.min_speedup,
        calibration_images=arguments.calibration_images,
        metric_images=arguments.metric_images,
        images=arguments.images,
        for_kestrel_alone=getattr(arguments, "strict_kestrel", False),
    )
    with experiment.plugin_errors():
        return export(experiment, arguments.ckpt, options, print)


def written(path: Path, words: list[str]) -> int:
    """Print the file written and the next commands; returns the exit code."""
    print(f"written: {path} ({path.stat().st_size:,} bytes)")
    print(*next_commands(CommandLine.typed(words), with_package(path)), sep="\n")
    return 0
