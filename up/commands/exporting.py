"""Arguments and export of ``up to_onnx`` and ``up to_kestrel``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from up.bundle.images import find_images
from up.commands.arguments import finite, natural, positive
from up.commands.inputs import expect_checkpoint, expect_config
from up.commands.parser import CommandParser
from up.errors import StorageError
from up.files import unwritable

if TYPE_CHECKING:  # torch is imported once the arguments are known to be good
    from up.deploy.exporter import Export
    from up.tasks.experiment import Experiment


def add_export(parser: CommandParser) -> None:
    """Add the arguments of an export; they override the section ``to_kestrel`` of the configuration."""
    parser.add_argument("-c", "--ckpt", type=Path, help="checkpoint (default: the run's ckpt_best.pth, else ckpt_latest.pth)")
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
    parser.add_argument("--max-drop", type=finite, default=1.0, help="int8: largest loss of accuracy, in percentage points")
    parser.add_argument("--min-speedup", type=finite, default=1.0, help="int8: smallest speed-up on this machine, as a factor")
    parser.add_argument("--calibration-images", type=positive, default=256, help="int8: number of calibration images, at least 128")
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


def parsed(parser: CommandParser, words: list[str]) -> argparse.Namespace:
    """Parse the arguments, turn flags that set values of ``to_kestrel`` into overrides, and check the named files.

    ``--save-to`` is no override: the package contains its configuration, and would depend on its own path.
    """
    arguments = parser.read(words[1:])
    given = {"model_name": arguments.model_name, "version": arguments.version, "add_softmax": arguments.add_softmax}
    arguments.opts = [
        *arguments.opts,
        *(f"to_kestrel.{key}={json.dumps(value)}" for key, value in given.items() if value is not None),
    ]
    expect_checkpoint(arguments.ckpt)
    expect_config(arguments.config, arguments.opts)
    find_images(arguments.images)
    return arguments


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """Load the experiment of ``--config`` with the overrides."""
    from up.build.experiment import load_experiment

    return load_experiment(arguments.config, arguments.opts)


def exported(experiment: Experiment, arguments: argparse.Namespace, folder: Path) -> Export:
    """Export and check, for a file in ``folder``. Raises before anything is written if a step fails."""
    images = find_images(arguments.images)
    reason = unwritable(folder)
    if reason is not None:
        raise StorageError(f"{folder}: nothing can be written there: {reason}. Name another folder.")
    from up.deploy.exporter import ExportOptions, export

    options = ExportOptions(
        precision="int8" if arguments.quantize else "fp32",
        max_drop=arguments.max_drop,
        min_speedup=arguments.min_speedup,
        calibration_images=arguments.calibration_images,
        metric_images=arguments.metric_images,
        images=images,
    )
    return export(experiment, arguments.ckpt, options, print)
