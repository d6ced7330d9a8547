"""Arguments that several commands share, and their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import TypeVar

from up.distributed.launch import LARGEST_PORT, Launch
from up.text import shortened
from up.tracking.console import JSON, QUIET, output_as

NumberT = TypeVar("NumberT", int, float)
_SIDES = (8, 16_384)
_DIGITS = 18  # of a whole number, which fits into 64 bits


def add_launch(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a launch; ``launch_of`` reads them."""
    group = parser.add_argument_group(
        "distributed", "Without these flags: one process, or the ranks that torchrun, srun or mpirun started."
    )
    group.add_argument(
        "--launch",
        choices=("pytorch", "slurm", "mpi"),
        help="launcher of the ranks: this command (pytorch), srun or mpirun (default: by the environment, else pytorch)",
    )
    group.add_argument(
        "--ng",
        "--num_gpus_per_machine",
        type=threads,
        metavar="N",
        help="processes on this host (default with --launch: one per GPU)",
    )
    group.add_argument(
        "--nm",
        "--num_machines",
        type=at_most(65_536, positive),
        default=1,
        metavar="M",
        help="number of hosts; each runs this command",
    )
    group.add_argument("--node-rank", type=natural, default=0, metavar="R", help="number of this host, from 0")
    group.add_argument("--rdzv", metavar="HOST:PORT", help="rendezvous endpoint: address and port on the first host")
    group.add_argument(
        "--port", type=at_most(LARGEST_PORT, natural), help="rendezvous port when there is one host (default: a free one)"
    )
    group.add_argument("--max-restarts", type=natural, default=0, metavar="K", help="maximum number of restarts after a rank fails")
    group.add_argument(
        "--backend",
        metavar="NAME",
        help="library of collective operations: nccl or gloo (default: by the device); UP's `dist` and `linklink` mean the default",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the output; ``output_of`` reads them."""
    group = parser.add_argument_group("output").add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help="print errors and the final result only")
    group.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="json: a JSON object on each line of standard output, no bar"
    )


def output_of(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """Set the verbosity and the format of the output in the block."""
    return output_as(QUIET if arguments.quiet else JSON if arguments.log_format == "json" else "")


def launch_of(arguments: argparse.Namespace) -> Launch:
    """Return the launch that the arguments describe."""
    return Launch(
        arguments.launch, arguments.ng, arguments.nm, arguments.node_rank, arguments.rdzv, arguments.port, arguments.max_restarts
    )


def backend_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return ``--backend`` as an override; none for UP's names of its own communication library."""
    known = arguments.backend in (None, "dist", "linklink")
    return [] if known else [f"runtime.dist.backend={arguments.backend}"]


def positive(text: str) -> int:
    """Parse a whole number above 0, for argparse."""
    return _at_least(1, text, "a whole number above 0")


def natural(text: str) -> int:
    """Parse a whole number, 0 or more, for argparse."""
    return _at_least(0, text, "a whole number, 0 or more")


def finite(text: str) -> float:
    """Parse a finite number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def amount(text: str) -> float:
    """Parse a finite number, 0 or more, for argparse."""
    value = finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or more")
    return value


def at_most(most: int, parse: Callable[[str], NumberT]) -> Callable[[str], NumberT]:
    """Return ``parse``, one of the parsers above, with an upper limit."""

    @wraps(parse)  # its name is that of the value in the help
    def limited(text: str) -> NumberT:
        value = parse(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"got {text}, expected a number from {1 if parse is positive else 0} to {most}")
        return value

    return limited


threads = at_most(1024, positive)
"""Parse a number of threads or processes of this machine, for argparse."""


def pixels(text: str) -> int:
    """Parse a side of images in pixels, for argparse."""
    value = positive(text)
    if not _SIDES[0] <= value <= _SIDES[1]:
        raise argparse.ArgumentTypeError(f"got {value}, expected {_SIDES[0]} to {_SIDES[1]} pixels")
    return value


def image_size(text: str) -> tuple[int, int, int]:
    """Parse ``3x224x224`` or ``3,224,224`` as (channels, height, width), for argparse."""
    words = text.lower().replace(",", "x").split("x")
    if len(words) != 3 or not all(word.strip().isdecimal() and len(word) < 8 and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"got {shortened(text)!r}, expected CxHxW such as 3x224x224 (or 3,224,224)")
    channels, height, width = (int(word) for word in words)
    return channels, height, width


def _at_least(least: int, text: str, expected: str) -> int:
    if text.isdecimal() and len(text) > _DIGITS:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} has more than {_DIGITS} digits")
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is not {expected}")
    return int(text)
