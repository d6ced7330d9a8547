"""``up data issues``: find probable label errors by the out-of-sample probabilities of a run."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.text import Text

from up.commands.arguments import natural
from up.commands.inputs import expect_checkpoint, expect_config, expect_test_images, expect_writable
from up.commands.parser import CommandParser
from up.commands.tables import print_tables
from up.errors import UserError
from up.files import title_of
from up.intervals import accuracy_text
from up.json_text import json_text
from up.run_files import CONFIG
from up.text import count, yaml_text
from up.tracking.console import print_utf8

_SHOWN = 10
_MORE = """\
Without --folds, the validation images are checked, or those of --test: the run was not trained on them. With --folds K, the
training images are checked: K trainings, one after another, in --out, each predict the K-th part that it is not trained on. A rerun
continues after an interruption.

Confident learning (Northcutt, Jiang and Chuang 2021). Written: issues.html, issues.json, and issues.csv, which
`on_bad_label: drop-list` with `drop_list: issues.csv` leaves out of training."""


def main(words: list[str]) -> int:
    """Find label errors, write the report, and return the exit code."""
    arguments = parsed(words[2:])
    expect_checkpoint(arguments.ckpt)
    expect_test_images(arguments.test)
    from up.schema.decode import config_of_run, load_config

    config, overrides = config_of_run(arguments.run, arguments.opts)
    if config.is_dir():
        what, fix = f"{config}: contains no {CONFIG}", "Train first, or name the YAML file."
        raise UserError(what, expected="the folder of a run, or a YAML file", fix=fix)
    expect_config(config, overrides)
    run = load_config(config, overrides).config.saver.folder(config)
    test: Path | None = arguments.test
    out = arguments.out or (run / "issues" if test is None else run / f"issues_{title_of(test)}")
    expect_writable(out)
    from up.data_report.issues import issues_of, write_issues
    from up.data_report.out_of_sample import of_folds, of_images

    tell = partial(print, file=sys.stderr)
    if arguments.folds:
        found = of_folds(config, overrides, arguments.folds, out, tell)
    else:
        found = of_images(config, overrides, arguments.ckpt, test, allow_trained_images=arguments.allow_trained_images)
    report = issues_of(found)
    report["accuracy"] = accuracy_text(report["correct"], report["images"])
    written = write_issues(report, out)
    if arguments.json:
        print_utf8(json_text(report, indent=2) + "\n")
        return 0
    issues = report["issues"]
    head = f"{count(len(issues), 'probable label error')} in {count(report['images'], 'image')} of {report['source']}"
    lines = [f"{head}; estimated share of wrong labels {100 * report['noise']:.2f} %"]
    lines.append(f"out-of-sample accuracy: {report['accuracy']}")
    if report["not_finite"]:
        lines.append(f"{count(report['not_finite'], 'more image')} left out: the scores are not finite")
    for row in issues[:_SHOWN]:
        lines.append(f"  {row['filename']}: {row['given']} -> {row['suggested']} (self-confidence {row['self_confidence']:.3f})")
    if len(issues) > _SHOWN:
        lines.append(f"  and {len(issues) - _SHOWN:,} more")
    print_tables(*map(Text, lines))
    print("written:", *written, sep="\n  ")
    if issues and report["source"] == "dataset.train":
        print("look at the page, delete the lines of good labels from issues.csv, then write beside meta_file of dataset.train:")
        print(f"  on_bad_label: drop-list\n  drop_list: {yaml_text(out / 'issues.csv')}")
    return 0


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up data issues``."""
    parser = CommandParser("data", "issues", _MORE)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or the YAML file of a run or of pretrained weights")
    parser.add_argument("-c", "--ckpt", type=Path, help="checkpoint (default: the best of the run, an average included)")
    parser.add_argument(
        "--test", type=Path, metavar="DIR_OR_LIST", help="images to check: class folders, or a list (default: dataset.test)"
    )
    what = "check images that the checkpoint was trained on, too, instead of stopping with exit code 2"
    parser.add_argument("--allow-trained-images", action="store_true", help=what)
    parser.add_argument("--folds", type=natural, default=0, metavar="K", help="check the training images instead, with K trainings")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of the report and the folds (default: RUN/issues; issues_NAME)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of text")
    parser.add_overrides(parser.add_argument_group("configuration"))
    arguments: argparse.Namespace = parser.read(words)
    if arguments.folds == 1:
        parser.error("--folds 1: expected 2 or more")
    for flag in ("ckpt", "test", "allow_trained_images"):
        if arguments.folds and getattr(arguments, flag):
            parser.error(f"--{flag.replace('_', '-')} has no effect with --folds, which checks dataset.train by weights of its own")
    return arguments
