"""Arguments that several commands share, and older flags that no longer mean anything."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

WITHOUT_MEANING = {
    "--nocudnn": (0, "cudnn is chosen by torch"),
    "--no_running_config": (0, "the run folder always gets config.yaml"),
    "--cfg_type": (1, "there is one configuration syntax"),
    "--test_gpu": (0, "the device is chosen by runtime.device"),
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
