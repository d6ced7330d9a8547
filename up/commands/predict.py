"""``up predict``: class names and scores for images."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from up.commands.arguments import add_config, command_parser
from up.deploy.answers import Answer, rendered
from up.deploy.images import find_images
from up.errors import UserError
from up.files import write_text
from up.text import count

TOPK = 5


def main(words: list[str]) -> int:
    """Predict and print or write; returns 0, or 2 when an image could not be read."""
    arguments = parse(words)
    images = find_images([*arguments.images, *([arguments.img_path] if arguments.img_path else [])])
    if not images:
        raise UserError("predict needs images: name files, folders or patterns.")
    predictor = open_predictor(arguments)
    console = Console(stderr=True)
    begun = time.perf_counter()
    shown = track(
        predictor.predict(images, threads=arguments.threads), total=len(images), description="predicting", console=console,
        disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    answers = list(stop_at_first(shown) if arguments.strict else shown)
    taken = time.perf_counter() - begun
    publish(answers, arguments)
    if arguments.benchmark:
        print(f"{count(len(answers), 'image')} in {taken:.2f} s: {len(answers) / taken:.1f} images/s", file=sys.stderr)
    if arguments.vis_dir is not None:
        from up.deploy.drawing import draw_answers

        draw_answers(answers, arguments.vis_dir)
    bad = [answer for answer in answers if answer.error is not None]
    for answer in bad:
        print(f"{answer.file}: {answer.error}", file=sys.stderr)
    return 2 if bad else 0


class Predictor(Protocol):
    """What predicts, with a checkpoint or with a package."""

    def predict(self, paths: Sequence[Path], *, threads: int) -> Iterator[Answer]:
        """An answer for each image, in order."""


def open_predictor(arguments: argparse.Namespace) -> Predictor:
    """Of ``--bundle``, which needs no torch, or of ``--config`` and ``--ckpt``."""
    if (arguments.bundle is None) == (arguments.config is None):
        raise UserError("predict needs either --bundle FILE.tar, or --config FILE and maybe --ckpt FILE.")
    if arguments.bundle is not None:
        if arguments.ckpt is not None or arguments.opts:
            raise UserError("--bundle: a package has its own weights and settings; --ckpt and --opts go with --config.")
        from up.deploy.bundle_predictor import BundlePredictor

        return BundlePredictor.open(
            arguments.bundle, provider=arguments.provider, topk=arguments.topk, batch_size=arguments.batch_size
        )
    from up.deploy.predictor import CheckpointPredictor
    from up.experiment import load_experiment

    experiment = load_experiment(arguments.config, arguments.opts)
    return CheckpointPredictor(experiment, arguments.ckpt, topk=arguments.topk or TOPK, batch_size=arguments.batch_size)


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of ``up predict`` and of its older name, ``up inference``."""
    parser = command_parser("predict", "Class names and scores for images, with a checkpoint or with a package.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders (searched through), patterns")
    parser.add_argument("-i", "--img_path", help="the same as an IMAGE")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="a package (.tar) or graph (.onnx) in place of --config")
    parser.add_argument("--provider", default="cpu", help="what runs the graph of --bundle: cpu, cuda, tensorrt")
    parser.add_argument("-c", "--ckpt", type=Path, help="the checkpoint (default: the run's best)")
    parser.add_argument("--topk", type=positive, help=f"classes shown for an image (default: {TOPK}, or what the package says)")
    parser.add_argument("--batch-size", type=positive, default=32, help="images that go through the net together")
    parser.add_argument("--threads", type=positive, default=min(8, os.cpu_count() or 1), help="threads that read images")
    parser.add_argument("--format", choices=("table", "json", "jsonl", "csv"), default="table", help="how answers are written")
    parser.add_argument("--output", type=Path, help="write the answers to this file")
    parser.add_argument("-v", "--vis_dir", type=Path, help="also draw the best class on each image, into this folder")
    parser.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    parser.add_argument("--benchmark", action="store_true", help="also tell how many images a second there were")
    add_config(parser, required=False)
    return parser.parse_args(words[1:])


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def stop_at_first(answers: Iterable[Answer]) -> Iterable[Answer]:
    """The answers until one has an error, which is raised."""
    for answer in answers:
        if answer.error is not None:
            raise UserError(f"{answer.file}: {answer.error}. Leave out --strict to report it in its row and go on.")
        yield answer


def publish(answers: list[Answer], arguments: argparse.Namespace) -> None:
    """Print the answers, or write them to ``--output``."""
    if arguments.format == "table" and arguments.output is None:
        print_table(answers)
        return
    text = rendered(answers, "csv" if arguments.format == "table" else arguments.format)
    if arguments.output is None:
        print(text, end="")
        return
    try:
        write_text(arguments.output, text)
    except OSError as error:
        raise UserError(f"--output {arguments.output}: {error}") from error
    print(f"{count(len(answers), 'answer')} written to {arguments.output}")


def print_table(answers: list[Answer]) -> None:
    """One row an image and head: the best classes with their scores."""
    table = Table("image", "class", "score", "next")
    for answer in answers:
        if answer.error is not None:
            table.add_row(Text(answer.file), Text(answer.error, style="red"), "", "")
        for guesses in answer.heads:
            rest = ", ".join(f"{guess.name} {guess.score:.3f}" for guess in guesses[1:])
            table.add_row(Text(answer.file), Text(guesses[0].name), f"{guesses[0].score:.3f}", Text(rest))
    Console().print(table)
