"""The arguments of ``up train``, and the values of the configuration that they set."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from up.commands.arguments import add_launch, add_output, backend_overrides, finite, pixels, positive
from up.commands.parser import CommandParser, speaks_for_all
from up.commands.shortcuts import Shortcuts
from up.errors import UserError
from up.tracking.console import tell

if TYPE_CHECKING:
    from up.finetune.choose import FinetuneRequest

OF_FINETUNE = ("--train", "--val", "--model", "--weights", "--teacher", "--strategy", "--out")
"""Flags of ``up finetune`` that ``up train`` has not."""


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up train``."""
    parser = CommandParser("train")
    parser.add_argument("-e", "--evaluate", action="store_true", help="evaluate only, like `up eval`")
    parser.add_argument("--phase", choices=("train", "eval"), default="train", help="eval: the same as --evaluate")
    parser.add_argument("--display", type=positive, metavar="N", help="steps between log lines (default: trainer.log_interval)")
    parser.add_argument("--allow-dead-parameter", action="store_true", help="allow parameters that get no gradient")
    parser.add_argument(
        "--accept-data-change", action="store_true", help="resume even though the training data changed since the checkpoint"
    )
    parser.add_argument("--fork-method", choices=("fork", "spawn"), help="start method of the loader workers (default: fork)")
    group = parser.add_argument_group("values of the configuration")
    group.add_argument("--epochs", type=positive, metavar="N", help="train for N epochs, the learning-rate schedule scaled to them")
    group.add_argument("--lr", type=finite, help="learning rate of the optimizer; those of its groups are scaled with it")
    group.add_argument("--batch-size", type=positive, metavar="N", help="images per step and process")
    group.add_argument("--img-size", type=pixels, metavar="PIXELS", help="image size in pixels; resize and crop keep their ratio")
    add_output(parser)
    add_launch(parser)
    parser.elsewhere = dict.fromkeys(OF_FINETUNE, "up finetune --train PHOTOS")
    parser.add_config(what="YAML file, or a folder with one folder of photos per class, for which a YAML file is written")
    return parser.read(words[1:])


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Return ``-o`` and the overrides of the flags that set a value of the configuration."""
    overrides = [*arguments.opts, *backend_overrides(arguments)]
    if arguments.display is not None:
        overrides.append(f"trainer.log_interval={arguments.display}")
    if arguments.allow_dead_parameter:
        overrides.append("runtime.allow_dead_parameter=true")
    if arguments.accept_data_change:
        overrides.append("saver.accept_data_change=true")
    if arguments.fork_method is not None:
        overrides.append(f"dataset.train.dataloader.kwargs.fork_method={arguments.fork_method}")
    return overrides


def request_of(arguments: argparse.Namespace) -> FinetuneRequest:
    """Return the fine-tuning on a folder of photos, with ``--epochs``, ``--lr``, ``--batch-size`` and ``--img-size``."""
    from up.finetune.choose import FinetuneRequest

    if arguments.evaluate or arguments.phase != "train":
        raise UserError(f"{arguments.config}: got a folder to evaluate on", fix="Name the YAML file of its run: up eval FILE.yaml.")
    return FinetuneRequest(
        arguments.config, epochs=arguments.epochs, lr=arguments.lr, batch_size=arguments.batch_size, img_size=arguments.img_size
    )


def shortcut_overrides(arguments: argparse.Namespace, overrides: list[str]) -> list[str]:
    """Return the overrides that the short flags stand for in this file, and report them."""
    found = Shortcuts(arguments.epochs, arguments.lr, arguments.batch_size, arguments.img_size).overrides(
        arguments.config, overrides
    )
    if speaks_for_all():
        tell(*(f"{flag} sets {', '.join(made)}" for flag, made in found.items()))
    return [override for made in found.values() for override in made]
