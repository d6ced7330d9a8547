"""``up check``: check a configuration in seconds, without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from up.commands.inputs import load_checked
from up.commands.parser import CommandParser
from up.errors import UserError
from up.text import count

T = TypeVar("T")


def main(words: list[str]) -> int:
    """Check names, types, arguments, files, data and the start of training; returns the exit code."""
    parser = CommandParser("check")
    parser.add_argument("--no-files", action="store_true", help="check the YAML file only, without meta files, images and weights")
    parser.add_argument("--images", action="store_true", help="open every image of train and test, and list the unreadable ones")
    parser.add_argument("--estimate", action="store_true", help="measure 20 steps, and estimate time and memory of the whole run")
    parser.add_config()
    arguments = parser.read(words[1:])
    for flag, needs in (("images", "opens the images"), ("estimate", "trains on the images")):
        if getattr(arguments, flag) and arguments.no_files:
            raise UserError(f"--{flag} {needs} that --no-files leaves out", fix="Remove one of them.")
    experiment = load_checked(arguments.config, arguments.opts)
    from up.build.check import check_experiment, is_for_evaluation

    warnings: list[str] = []
    images = with_progress if arguments.images else None
    for line in check_experiment(experiment, warnings.append, files=not arguments.no_files, images=images):
        print(line)
    if arguments.estimate:
        from up.build.trial import estimate

        print(estimate(experiment))
    for warning in warnings:
        print(f"warning: {warning}")
    told = f", {count(len(warnings), 'warning')}" if warnings else ""
    use = " for eval, predict and export; train needs dataset.train" if is_for_evaluation(experiment.config) else ""
    print(f"OK: {arguments.config} is valid{use}{told}")
    return 0


def with_progress(batches: Iterable[T], total: int) -> Iterator[T]:
    """Yield the batches of images that are opened, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(batches, total=total, description="opening images")
