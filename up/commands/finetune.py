"""``up finetune``: images to a fine-tuned network; the settings are chosen, explained and written as a YAML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from up.commands.arguments import add_launch, add_output, backend_overrides, finite, launch_of, output_of, pixels, positive
from up.commands.parser import CommandParser
from up.commands.train import train_on
from up.schema.finetune import StrategyName

_EXAMPLES = """\
more examples:
  up finetune --train photos/train --val photos/val --out runs/cars
  up finetune --train train.jsonl --val val.jsonl               lists: custom_cls (.jsonl), path label (.txt), .csv
  up finetune --train photos/ --model resnet50 --epochs 10      timm's weights of a backbone, downloaded at the first use
  up finetune --train photos/ --model timm:convnext_tiny.fb_in22k --strategy lp_ft
  up finetune --train photos/ --model resnet50 --weights r50.pth
  up finetune --train photos/ --model resnet18 --teacher runs/cars     distil a small network from a finished run
  up train runs/cars.yaml                                       the same training again, or the rest of a stopped one"""


def main(words: list[str]) -> int:
    """Choose the settings, write them, train; returns the exit code."""
    arguments = parse(words)
    from up.finetune.choose import FinetuneRequest

    request = FinetuneRequest(
        train=arguments.train,
        val=arguments.val,
        model=arguments.model,
        weights=arguments.weights,
        strategy=arguments.strategy,
        teacher=arguments.teacher,
        epochs=arguments.epochs,
        lr=arguments.lr,
        batch_size=arguments.batch_size,
        img_size=arguments.img_size,
        out=arguments.out,
    )
    with output_of(arguments):
        return train_on(request, [*arguments.opts, *backend_overrides(arguments)], launch_of(arguments), words)


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up finetune``."""
    parser = CommandParser("finetune")
    parser.epilog = f"{parser.epilog}\n\n{_EXAMPLES}"
    data = parser.add_argument_group("data")
    data.add_argument(
        "--train",
        type=Path,
        required=True,
        metavar="DIR_OR_LIST",
        help="folder of class folders, folder with train and val, or list of images",
    )
    data.add_argument(
        "--val", type=Path, metavar="DIR_OR_LIST", help="images for validation (default: val beside train, else a split)"
    )
    data.add_argument("--img-size", type=pixels, metavar="PIXELS", help="image size (default: that of the weights or the images)")
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model", metavar="NAME", help="backbone, timm:NAME, FILE.pth or run folder (default: chosen for the machine)"
    )
    network.add_argument("--weights", metavar="FILE", help="weights to start from (default: timm's for the network)")
    network.add_argument(
        "--teacher", metavar="NAME", help="run folder, checkpoint or package of the same classes to distil from (default: none)"
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--strategy",
        metavar="NAME",
        help=f"strategy of docs/finetune.md: {', '.join(get_args(StrategyName))} (default: none; the network decides)",
    )
    training.add_argument("--epochs", type=positive, metavar="N", help="epochs (default: by the number of images)")
    training.add_argument("--lr", type=finite, help="learning rate (default: by the network)")
    training.add_argument("--batch-size", type=positive, metavar="N", help="images per step and process")
    written = parser.add_argument_group("configuration")
    written.add_argument(
        "--out", type=Path, metavar="RUN", help="run folder; RUN.yaml is the configuration (default: runs/NAME of the images)"
    )
    parser.add_overrides(written)
    add_output(parser)
    add_launch(parser)
    return parser.read(words[1:])
