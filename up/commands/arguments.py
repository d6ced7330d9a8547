"""Arguments that several commands share, and older flags that no longer mean anything."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from up.launch import Launch

WITHOUT_MEANING = {
    "--nocudnn": (0, "cudnn is chosen by torch"),
    "--no_running_config": (0, "the run folder always gets config.yaml"),
    "--cfg_type": (1, "there is one configuration syntax"),
    "--test_gpu": (0, "the device is chosen by runtime.device"),
    "--backend": (1, "nccl or gloo is chosen by the device, or by runtime.dist.backend"),
}


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for ``up NAME``."""
    return argparse.ArgumentParser(
        prog=f"up {name}", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--config FILE`` and ``--opts``."""
    parser.add_argument("--config", type=Path, required=required, help="the YAML file")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY=VALUE",
        help="override values: trainer.max_epoch=10, net.0.kwargs.frozen_layers=[0,1], +new.key=value; last on the line",
    )  # fmt: skip


def add_launch(parser: argparse.ArgumentParser) -> None:
    """How many ranks there are and who starts them; ``launch_of`` reads it."""
    group = parser.add_argument_group("many ranks", "Without any of these: one process, or what torchrun, srun or mpirun started.")
    group.add_argument("--launch", choices=("pytorch", "slurm", "mpi"), help="who starts the ranks; pytorch: this command does")
    group.add_argument("--ng", "--num_gpus_per_machine", type=int, metavar="N", help="processes on this host (default: one a GPU)")
    group.add_argument("--nm", "--num_machines", type=int, default=1, metavar="M", help="hosts; each runs this command")
    group.add_argument("--node-rank", type=int, default=0, metavar="R", help="which of the hosts this is, from 0")
    group.add_argument("--rdzv", metavar="HOST:PORT", help="where the hosts meet: the first of them, and a free port of it")
    group.add_argument("--port", type=int, help="port on which the ranks of one host meet (default: a free one)")
    group.add_argument("--max-restarts", type=int, default=0, metavar="K", help="start the ranks again after a loss, so often")


def launch_of(arguments: argparse.Namespace) -> Launch:
    """What ``add_launch`` read."""
    return Launch(
        arguments.launch, arguments.ng, arguments.nm, arguments.node_rank, arguments.rdzv, arguments.port, arguments.max_restarts
    )


def without_meaningless(words: list[str]) -> list[str]:
    """Drop older flags that have no meaning here, with a line for each on stderr."""
    kept: list[str] = []
    index = 0
    while index < len(words):
        flag, _, joined = words[index].partition("=")
        if flag == "--opts":
            return kept + words[index:]
        if flag in WITHOUT_MEANING:
            values, reason = WITHOUT_MEANING[flag]
            print(f"{flag} is accepted and ignored: {reason}.", file=sys.stderr)
            index += 0 if joined else values
        else:
            kept.append(words[index])
        index += 1
    return kept


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    return _at_least(1, text, "a whole number above 0")


def natural(text: str) -> int:
    """A whole number, 0 or more, for argparse."""
    return _at_least(0, text, "a whole number, 0 or more")


def finite(text: str) -> float:
    """A number that is neither infinite nor none, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _at_least(least: int, text: str, expected: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return int(text)
