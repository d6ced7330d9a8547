"""``up data issues``: find probable label errors by the out-of-sample probabilities of a run."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.text import Text

from up.commands.arguments import natural
from up.commands.inputs import expect_writable
from up.commands.parser import CommandParser
from up.commands.tables import print_tables
from up.intervals import accuracy_text
from up.json_text import json_text
from up.text import count, yaml_text
from up.tracking.console import print_utf8

_SHOWN = 10
_MORE = """\
Without --folds, the validation images are checked: the run was not trained on them. With --folds K, the training images are
checked: K trainings, one after another, in --out, each predict the K-th part that it is not trained on. A rerun continues after
an interruption.

Confident learning (Northcutt, Jiang and Chuang 2021). Written: issues.html, issues.json, and issues.csv, which
`on_bad_label: drop-list` with `drop_list: issues.csv` leaves out of training."""


def main(words: list[str]) -> int:
    """Find label errors, write the report, and return the exit code."""
    arguments = parsed(words[2:])
    run, out = arguments.run, arguments.out or arguments.run / "issues"
    from up.data_report.issues import issues_of, write_issues
    from up.data_report.out_of_sample import config_of, of_folds, of_validation

    config_of(run)
    expect_writable(out)
    tell = partial(print, file=sys.stderr)
    found = of_folds(run, arguments.folds, out, tell) if arguments.folds else of_validation(run)
    report = issues_of(found)
    report["accuracy"] = accuracy_text(report["correct"], report["images"])
    written = write_issues(report, out)
    if arguments.json:
        print_utf8(json_text(report, indent=2) + "\n")
        return 0
    issues = report["issues"]
    head = f"{count(len(issues), 'probable label error')} in {count(report['images'], 'image')} of dataset.{report['source']}"
    lines = [f"{head}; estimated share of wrong labels {100 * report['noise']:.2f} %"]
    lines.append(f"out-of-sample accuracy: {report['accuracy']}")
    for row in issues[:_SHOWN]:
        lines.append(f"  {row['filename']}: {row['given']} -> {row['suggested']} (self-confidence {row['self_confidence']:.3f})")
    if len(issues) > _SHOWN:
        lines.append(f"  and {len(issues) - _SHOWN:,} more")
    print_tables(*map(Text, lines))
    print("written:", *written, sep="\n  ")
    if issues and report["source"] == "train":
        print("look at the page, delete the lines of good labels from issues.csv, then write beside meta_file of dataset.train:")
        print(f"  on_bad_label: drop-list\n  drop_list: {yaml_text(out / 'issues.csv')}")
    return 0


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up data issues``."""
    parser = CommandParser("data", "issues", _MORE)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--folds", type=natural, default=0, metavar="K", help="check the training images instead, with K trainings")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the report and the folds (default: RUN/issues)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of text")
    arguments: argparse.Namespace = parser.read(words)
    if arguments.folds == 1:
        parser.error("--folds 1: expected 2 or more")
    return arguments
