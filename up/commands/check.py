"""``up check``: check a configuration in seconds, without training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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

    found: list[str] = []
    images = with_progress if arguments.images else None
    with _collected(found):
        for line in check_experiment(experiment, found.append, files=not arguments.no_files, images=images):
            print(line)
        if arguments.estimate:
            from up.build.trial import estimate

            print(estimate(experiment))
    for warning in found:
        print(f"warning: {warning}")
    told = f", {count(len(found), 'warning')}" if found else ""
    use = " for eval, predict and export; train needs dataset.train" if is_for_evaluation(experiment.config) else ""
    print(f"OK: {arguments.config} is valid{use}{told}")
    return 0


@contextmanager
def _collected(found: list[str]) -> Iterator[None]:
    """Append the text of each warning of Python to ``found``, once; an error that ends the block leaves them on standard error."""
    with warnings.catch_warnings():
        shown = warnings.showwarning
        caught: dict[str, Callable[[], object]] = {}

        def collect(message: Warning | str, *place: Any) -> None:
            caught.setdefault(str(message), lambda: shown(message, *place))

        warnings.showwarning = collect  # type: ignore[assignment]
        try:
            yield
        except BaseException:
            for show in caught.values():
                show()
            raise
        found += [text for text in caught if text not in found]


def with_progress(batches: Iterable[T], total: int) -> Iterator[T]:
    """Yield the batches of images that are opened, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(batches, total=total, description="opening images")
