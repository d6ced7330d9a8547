"""``up data check``: find faults of the images of data sets, with a page and JSON."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from up.commands.arguments import threads
from up.commands.check import with_progress
from up.commands.inputs import expect_writable, load_checked
from up.commands.parser import CommandParser
from up.commands.tables import print_tables
from up.errors import UserError
from up.json_text import json_text
from up.text import count, size_text
from up.tracking.console import print_utf8

if TYPE_CHECKING:
    from up.data_report.sources import Found
    from up.types import Record

_SHOWN = 3  # examples of a finding on the terminal
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_MORE = """\
exit codes:
  0   no error was found; warnings and notes are listed
  2   errors: a file is missing, empty, truncated or no image, an image is in two data sets (identical, or a near duplicate),
      a label is out of range or of a class that is not trained on, or a list cannot be read

Near duplicates: dHash of 64 bits differs in at most --max-distance bits, and the colours of thumbnails correlate by .995.
Re-encoded, resized, brighter and darker copies are found; other crops and rotations are not. All findings: docs/seeing.md."""


def main(words: list[str]) -> int:
    """Check data sets, write the report, and return the exit code."""
    arguments = parsed(words[2:])
    began = time.time()
    expect_writable(arguments.out)
    found, problems = sources_of(arguments)
    from up.data_report.check import report_of
    from up.data_report.images import read_images
    from up.data_report.page import write_report

    images = read_images(found, arguments.workers, with_progress, arguments.max_distance)
    report = report_of(images, problems, began)
    written = write_report(report, arguments.out)
    if arguments.json:
        print_utf8(json_text(report, indent=2) + "\n")
    else:
        print_tables(*splits_text(report), *findings_text(report))
        print("written:", *written, sep="\n  ")
    return int(report["exit_code"])


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up data check``."""
    parser = CommandParser("data", "check", _MORE)
    what = "folder of class folders, or with train, val and test in it; a list of images; or the YAML file"
    parser.add_argument("images", nargs="*", metavar="FOLDER | LIST | FILE.yaml", help=what)
    for name, use in (("train", "training"), ("val", "validation"), ("test", "testing")):
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"folder or list of the images for {use}")
    parser.add_argument("--image-dir", type=Path, metavar="FOLDER", help="folder that names in lists are relative to")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="folder of data_report.html and .json (default: .)"
    )
    parser.add_argument("--max-distance", type=int, choices=range(13), default=4, metavar="BITS", help="of 64 bits, 0 to 12")
    parser.add_argument("--workers", type=threads, metavar="N", help="processes that read images (default: one a processor)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of text")
    parser.add_config(required=False, among="images")
    arguments: argparse.Namespace = parser.read(words)
    given = [arguments.config, *arguments.images, arguments.train]
    if len([each for each in given if each is not None]) != 1:
        parser.error("expected one of FOLDER, LIST, FILE.yaml and --train PATH")
    if arguments.train is None and (arguments.val or arguments.test):
        parser.error("--val and --test need --train PATH")
    if arguments.config is not None and arguments.image_dir is not None:
        parser.error("--image-dir is for lists; a YAML file sets it in its image_reader")
    return arguments


def sources_of(arguments: argparse.Namespace) -> Found:
    """Read the data sets that the command line names."""
    if arguments.config is not None:
        experiment = load_checked(arguments.config, arguments.opts)
        from up.data_report.sources import sources_of_config

        with experiment.plugin_errors():
            return sources_of_config(experiment)
    if arguments.opts:
        raise UserError("-o changes a YAML file, and none is given")
    from up.data_report.sources import parts_of, sources_of_paths

    if arguments.images:
        path = Path(arguments.images[0])
        return sources_of_paths(parts_of(path) if path.is_dir() or not path.exists() else {"train": path}, arguments.image_dir)
    named = {name: getattr(arguments, name) for name in ("train", "val", "test")}
    return sources_of_paths({name: path for name, path in named.items() if path is not None}, arguments.image_dir)


def splits_text(report: Record) -> Iterator[Text]:
    """Yield a line for each data set."""
    for split in report["splits"]:
        sizes = f" ({split['smallest_class']:,} to {split['largest_class']:,} images)" if split["classes"] else ""
        classes = f"{count(split['classes'], 'class')}{sizes}" if split["labelled"] else "no labels"
        told = [count(split["images"], "image"), classes, f"{split['pixels']} pixels", split["kinds"], size_text(split["bytes"])]
        yield Text(f"{split['name']}: {'; '.join(told)}")


def findings_text(report: Record) -> Iterator[Text]:
    """Yield the findings, the first of each with a few examples, and the verdict."""
    for finding in report["findings"]:
        line = Text(f"{finding['severity']}: ", style=_COLOURS[finding["severity"]])
        yield line.append(f"{finding['title']}: {finding['count']:,}", style="default not bold")
        for group in finding["groups"][:_SHOWN]:
            yield Text(f"  {group['text']}")
        more = finding["count"] - _SHOWN
        yield Text(f"  {f'and {more:,} more. ' if more > 0 else ''}{finding['fix']}", style="dim")
    kinds = {severity: report[f"{severity}s"] for severity in _COLOURS}
    told = ", ".join(count(number, severity) for severity, number in kinds.items() if number) or "no faults"
    verdict = "OK" if report["exit_code"] == 0 else "errors"
    yield Text(f"{verdict}: {told} in {count(report['images'], 'image')} ({report['seconds']:.1f} s)")
