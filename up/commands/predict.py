"""``up predict``: class names and scores for images."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from up.bundle.answers import Answer, Floats, PixelsAnswer
from up.bundle.images import find_images
from up.bundle.predictions import Prediction, drawn, rendered, with_masks
from up.bundle.predictor import Predictor
from up.command_line import CommandLine
from up.commands.arguments import positive, threads
from up.commands.inputs import expect_checkpoint, expect_package, load_checked
from up.commands.next_steps import next_commands, with_checkpoint
from up.commands.parser import CommandParser
from up.commands.tables import print_tables, table_of
from up.errors import UserError
from up.files import make_folder, unwritable, write_atomically
from up.processors import available_processors
from up.text import count
from up.tracking.console import print_utf8

if TYPE_CHECKING:
    from up.data.records import Sample

_IN_MEMORY = 1 << 24  # bytes of predictions; more wait on the disk


def main(words: list[str]) -> int:
    """Predict and print or write; returns 0, or 2 when an image could not be read."""
    arguments = parse(words)
    named = [*arguments.images, *arguments.img_path]
    images = find_images(named)  # a mistake is reported before the network is built
    if not images:
        raise UserError("predict needs images: name files, folders or patterns.")
    expect_writable(arguments, images)
    expect_package(arguments.bundle)
    expect_checkpoint(arguments.ckpt)
    bad: list[Prediction] = []
    with opened(arguments) as predictor:
        images = find_images(named, predictor.suffixes)
        begun = time.perf_counter()
        predictions = with_bad_noted(predictor.predict(images, threads=arguments.threads), bad, strict=arguments.strict)
        if arguments.mask_dir is not None:
            if not isinstance(predictor.answer, PixelsAnswer):
                raise UserError("the model predicts no masks", key="--mask-dir", fix="Leave it out.")
            predictions = with_masks(predictions, arguments.mask_dir)
        if arguments.vis_dir is not None:
            predictions = drawn(predictions, arguments.vis_dir, predictor.image)
        publish(with_progress(predictions, len(images), arguments), predictor.answer, arguments)
    report(len(images), bad, time.perf_counter() - begun, arguments)
    if bad:
        return 2
    if arguments.output is not None or arguments.format == "table":
        print(*next_commands(CommandLine.typed(words), next_steps(arguments)), sep="\n", file=sys.stderr)
    return 0


def report(images: int, bad: Sequence[Prediction], seconds: float, arguments: argparse.Namespace) -> None:
    """Print where the results are, and the images that could not be read."""
    good = images - len(bad)
    if arguments.output is not None:
        print(f"{count(images, 'prediction')} written to {arguments.output}")
    if arguments.mask_dir is not None:
        print(f"{count(good, 'mask')} written to {arguments.mask_dir}", file=sys.stderr)
    if arguments.vis_dir is not None:
        print(f"{count(good, 'image')} drawn into {arguments.vis_dir}", file=sys.stderr)
    if arguments.benchmark:
        print(f"{count(images, 'image')} in {seconds:.2f} s: {images / seconds:.1f} images/s", file=sys.stderr)
    for each in bad:
        print(f"{each.file}: {each.error}", file=sys.stderr)


def next_steps(arguments: argparse.Namespace) -> dict[str, Sequence[object]]:
    """Return the words of the commands that come after a prediction, by their purpose."""
    if arguments.bundle is not None:
        return {"verify": ("verify", arguments.bundle)}
    steps = with_checkpoint({}, arguments.config, arguments.opts, arguments.ckpt)
    return {purpose: words for purpose, words in steps.items() if purpose != "predict"}


def with_bad_noted(predictions: Iterable[Prediction], bad: list[Prediction], *, strict: bool) -> Iterator[Prediction]:
    """Append the predictions that failed to ``bad``, and pass all on; ``strict`` raises the first error."""
    for each in predictions:
        if each.error is not None:
            if strict:
                fix = "Leave out --strict to report it in its row and continue."
                raise UserError(each.error, file=each.file, fix=fix)
            bad.append(each)
        yield each


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Predictor[Floats] | Predictor[Sample]]:
    """Open ``--bundle``, which needs no torch, or ``--config`` with ``--ckpt``, whose plug-in may raise errors in the block."""
    options = {"topk": arguments.topk, "batch_size": arguments.batch_size}
    if arguments.bundle is not None:
        from up.bundle.package import open_package
        from up.bundle.predictor import package_predictor

        yield package_predictor(open_package(arguments.bundle), provider=arguments.provider or "cpu", **options)
        return
    experiment = load_checked(arguments.config, arguments.opts, of_run=True)
    from up.build.trained import load_trained
    from up.deploy.predictor import checkpoint_predictor

    with experiment.plugin_errors():
        experiment.task.check_served()
        trained = load_trained(experiment, arguments.ckpt)
        predictor = checkpoint_predictor(experiment, trained, **options)
        for remark in trained.report.remarks():
            print(remark, file=sys.stderr)
        yield predictor


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up predict`` and of its older name, ``up inference``."""
    parser = CommandParser("predict")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="FILE.yaml | IMAGE",
        help="the configuration, unless --config or --bundle is given; image files, folders (searched recursively), patterns",
    )
    parser.add_argument("-i", "--img-path", action="append", default=[], metavar="IMAGE", help="another IMAGE; repeatable")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="a package (.tar) or graph (.onnx) instead of a configuration")
    parser.add_argument("--provider", help="execution provider of --bundle: cpu, cuda, tensorrt, auto (default: cpu)")
    parser.add_argument("-c", "--ckpt", type=Path, help="checkpoint (default: the best of the run, an average included)")
    parser.add_argument("--topk", type=positive, help="classes per image (default: 5, or the number in the package)")
    parser.add_argument("--batch-size", type=positive, default=32, help="images per forward pass")
    parser.add_argument("--threads", type=threads, default=min(8, available_processors()), help="threads that decode images")
    parser.add_argument("--format", choices=("table", "json", "jsonl", "csv"), default="table", help="format of the predictions")
    parser.add_argument("--output", type=Path, help="write the predictions to this file")
    parser.add_argument("-v", "--vis-dir", type=Path, help="also draw the result on each image, into this folder")
    parser.add_argument("--mask-dir", type=Path, help="segmentation: also write each mask as a PNG of its labels, into this folder")
    parser.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    parser.add_argument("--benchmark", action="store_true", help="also print images per second")
    parser.add_config(required=False, among="images")
    arguments = parser.read(words[1:])
    if (arguments.bundle is None) == (arguments.config is None):
        raise UserError("predict needs either --bundle FILE.tar, or FILE.yaml and optionally --ckpt FILE.")
    if arguments.bundle is not None and (arguments.ckpt is not None or arguments.opts):
        raise UserError("--bundle: a package has its own weights and settings; --ckpt and --opts need --config.")
    if arguments.bundle is None and arguments.provider is not None:
        raise UserError("--provider: runs the graph of --bundle; with --config set runtime.device.")
    return arguments


def expect_writable(arguments: argparse.Namespace, images: Sequence[Path]) -> None:
    """Raise ``UserError`` for outputs that cannot be written: now, not after thousands of images are predicted."""
    output = arguments.output
    reason = None if output is None else _no_file(output) or unwritable(output.parent)
    if reason is not None:
        raise UserError(f"--output {output}: {reason}. Expected a file in a folder that can be written to.")
    taken = {image.parent.resolve(): "the images themselves, which {} could replace" for image in images}
    for flag, folder, what in (("--vis-dir", arguments.vis_dir, "drawings"), ("--mask-dir", arguments.mask_dir, "masks")):
        reason = None if folder is None else unwritable(folder)
        if reason is not None:
            raise UserError(f"{flag} {folder}: {reason}. Expected a folder that can be written to.")
        if folder is not None and folder.resolve() in taken:
            raise UserError(f"{flag} {folder}: holds {taken[folder.resolve()].format(what)}. Name another folder.")
        if folder is not None:
            taken[folder.resolve()] = f"{what}, which {{}} would replace"


def _no_file(path: Path) -> str | None:
    """Say why ``path`` cannot be replaced by a file; None if it can."""
    if path.is_dir():
        return "is a folder"
    # A device or a pipe such as /dev/stdout would become a file.
    return "is not a regular file; without --output the predictions are printed" if path.exists() and not path.is_file() else None


def with_progress(predictions: Iterable[Prediction], images: int, arguments: argparse.Namespace) -> Iterator[Prediction]:
    """Show a progress bar for predictions on a terminal that shows nothing else."""
    console = Console(stderr=True)
    shows_predictions = arguments.output is None and arguments.format != "table" and sys.stdout.isatty()
    bar = Progress(
        console=console,
        transient=True,
        disable=shows_predictions or not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        yield from bar.track(predictions, total=images, description="predicting")


def publish(predictions: Iterable[Prediction], answer: Answer, arguments: argparse.Namespace) -> None:
    """Print the predictions batch by batch (a table once it is whole), or write them to ``--output`` all at once."""
    if arguments.output is None and arguments.format == "table":
        print_tables(table_for(predictions, answer.headings))
        return
    pieces = rendered(predictions, "csv" if arguments.format == "table" else arguments.format, answer.columns)
    if arguments.output is None:
        for piece in pieces:
            print_utf8(piece)
        return
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as whole:
        whole.writelines(piece.encode(errors="backslashreplace") for piece in pieces)
        whole.seek(0)
        make_folder(arguments.output.parent)
        write_atomically(arguments.output, lambda file: shutil.copyfileobj(whole, file))


def table_for(predictions: Iterable[Prediction], headings: Sequence[str]) -> Table:
    """Build a table with the rows of each image's result, or its error."""
    table = table_of("image", *headings)
    for each in predictions:
        if each.result is None:
            table.add_row(Text(each.file), Text(each.error or "", style="red"), "", "")
        for first, second, third in each.result.table_rows() if each.result is not None else ():
            table.add_row(Text(each.file), Text(first), second, Text(third))
    return table
