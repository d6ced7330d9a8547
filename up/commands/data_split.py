"""``up data split``: split images into lists for training, validation and test, or into folds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from up.commands.arguments import natural
from up.commands.inputs import expect_writable
from up.commands.parser import CommandParser
from up.files import title_of
from up.text import count

_MORE = """\
The share of each class is the same in all parts. Near duplicates, and images with the same text in --group-column, stay in one
part. The draw depends on the seed and the names of the files alone: it is the same on every machine.
Written: train.jsonl, val.jsonl and test.jsonl (meta_type custom_cls), classes.txt, and split.json, which explains the draw."""
PARTS = (("train", "train"), ("test", "val"))  # of dataset, and the lists that they read


def main(words: list[str]) -> int:
    """Split a folder or a list, write the lists, and print the lines that read them; returns the exit code."""
    arguments = parsed(words[2:])
    path = Path(arguments.images)
    out = arguments.out or Path("splits") / title_of(path)
    expect_writable(out)
    from up.data_report.splits import Wanted, drawn, write_splits

    wanted = Wanted(arguments.val, arguments.test, arguments.folds or 0, arguments.seed, arguments.group_column)
    splits = drawn(path, wanted, arguments.image_dir)
    written = write_splits(splits, out)
    pairs = zip(splits.folders, splits.splits, strict=True)
    sizes = {folder: {name: len(part) for name, part in split.parts.items()} for folder, split in pairs}
    if arguments.json:
        print(json.dumps({"out": str(out), "written": [*map(str, written)], "images": sizes}, indent=2))
        return 0
    for folder, parts in sizes.items():
        told = ", ".join(f"{name} {number:,}" for name, number in parts.items())
        print(f"{out / folder}: {told} images")
    groups = splits.splits[0].near_duplicates
    if groups:
        print(f"{count(len(groups), 'group')} of near duplicates ({sum(map(len, groups)):,} images), each in one part")
    for warning in splits.warnings():
        print(f"warning: {warning}")
    print("to train with it, write:", *splits.yaml_lines(out), sep="\n")
    for folder in splits.folders[1:]:
        lists = (f"dataset.{part}.dataset.kwargs.meta_file={out / folder / name}.jsonl" for part, name in PARTS)
        print(f"{folder}: -o {' '.join(lists)}")
    return 0


def share(text: str) -> float:
    """Parse a share, such as 20% or 0.2, for argparse."""
    try:
        value = float(text.rstrip("% ")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a share such as 20% or 0.2")
    return value


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up data split``."""
    parser = CommandParser("data", "split", _MORE)
    parser.add_argument("images", metavar="FOLDER | LIST", help="folder of class folders, or a list of images")
    parser.add_argument("--val", type=share, metavar="SHARE", help="share of each class for validation (default: 20%%)")
    parser.add_argument("--test", type=share, metavar="SHARE", help="share of each class for a test part")
    parser.add_argument("--folds", type=natural, metavar="K", help="K folds in place of shares: each validates once")
    parser.add_argument("--group-column", metavar="NAME", help="column of a table, or key of JSON lines, such as the patient")
    parser.add_argument("--image-dir", type=Path, metavar="FOLDER", help="folder that names in a list are relative to")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of the draw")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the lists (default: splits/NAME)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    arguments: argparse.Namespace = parser.read(words)
    if arguments.folds is not None and (arguments.val or arguments.test):
        parser.error("--folds replaces --val and --test")
    if arguments.folds is not None and arguments.folds < 2:
        parser.error(f"--folds {arguments.folds}: expected 2 or more")
    arguments.val, arguments.test = arguments.val or 0.2, arguments.test or 0.0
    if arguments.val + arguments.test >= 1:
        parser.error("--val and --test leave nothing to train on")
    return arguments
