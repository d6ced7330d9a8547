"""``up data cache``: store the images of a data set resized in one file that is read without decoding."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from up.commands.arguments import pixels, threads
from up.commands.check import with_progress
from up.commands.inputs import load_checked
from up.commands.parser import CommandParser
from up.errors import UserError
from up.json_text import json_text
from up.processors import available_processors
from up.text import count, size_text, yaml_text
from up.tracking.console import print_utf8

if TYPE_CHECKING:
    from up.build.data import Phase
    from up.build.image_cache import CacheSettings, OnInvalid
    from up.data.readers import Reader
    from up.tasks.experiment import Experiment
    from up.types import Record

KINDS = {".json": "custom_cls", ".jsonl": "custom_cls", ".csv": "csv", ".tsv": "csv"}
_QUALITY, _READER = 95, "fs_pillow"  # defaults
_MORE = """\
forms:
  rgb       pixels as they are: the fastest, 262 kB for 256 x 341
  yuv420    chroma at half the resolution: half the bytes, small losses
  jpeg      resized images as JPEG, the others as the original files: the smallest; decoded as usual

A complete cache with the same images and settings is kept. The line `cache: FOLDER` beside `meta_file` reads it (docs/data.md)."""


def main(words: list[str]) -> int:
    """Build image caches; returns the exit code."""
    arguments = parsed(words[2:])
    reports = list(from_config(arguments) if arguments.config is not None else [from_images(arguments)])
    if arguments.json:
        print_utf8(json_text(reports, indent=2) + "\n")
        return 0
    for report in reports:
        split = f"{report['split']}: " if report["split"] else ""
        bad = f", {report['bad']:,} cannot be read" if report["bad"] else ""
        what = f"{count(report['images'], 'image')} ({report['resized']:,} resized{bad}), {size_text(report['bytes'])}"
        did = f"built in {report['seconds']:.1f} s" if report["built"] else "already complete"
        print(f"{split}{report['folder']}: {what}, {report['form']}; {did}")
    for report in reports:
        if not report["used"]:
            place = f"dataset.{report['split'] or 'train'}.dataset.kwargs"
            print(f"to read it, write beside meta_file in {place}:  cache: {yaml_text(report['folder'])}")
    return 0


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of ``up data cache``."""
    parser = CommandParser("data", "cache", _MORE)
    parser.add_argument("images", nargs="*", metavar="FILE.yaml | FOLDER | LIST", help="YAML file, folder of images, or meta file")
    parser.add_argument("--split", choices=("train", "test"), help="only this data set of the YAML file (default: both)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the cache (default: `cache` of the data set)")
    parser.add_argument("--form", choices=("rgb", "yuv420", "jpeg"), default="rgb", help="how images are stored")
    what = "shorter side of larger images in pixels (default: what the transforms need, else 256)"
    parser.add_argument("--short-side", type=pixels, metavar="N", help=what)
    what = f"quality of jpeg (default: {_QUALITY})"
    parser.add_argument("--quality", type=int, choices=range(95, 101), metavar="95..100", help=what)
    what = "raise: stop at an image that cannot be read; skip: leave it to on_bad_image (default: as on_bad_image)"
    parser.add_argument("--on-invalid", choices=("raise", "skip"), help=what)
    parser.add_argument("--workers", type=threads, metavar="N", help="processes that read images (default: one a processor)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    group = parser.add_argument_group("images without a YAML file")
    group.add_argument("--image-dir", metavar="FOLDER", help="folder that the names of a list are relative to")
    what = f"type of image_reader that will read the cache (default: {_READER})"
    group.add_argument("--reader", metavar="TYPE", help=what)
    parser.add_config(required=False, among="images")
    arguments: argparse.Namespace = parser.read(words)
    if bool(arguments.images) == (arguments.config is not None) or len(arguments.images) > 1:
        parser.error("expected one YAML file, folder or list")
    if arguments.images and (arguments.out is None or arguments.split):
        parser.error("a folder or a list needs --out FOLDER" if arguments.out is None else "--split needs a YAML file")
    if arguments.config is not None and (arguments.image_dir or arguments.reader):
        parser.error("--image-dir and --reader are for a folder or a list; a YAML file sets them in its image_reader")
    if arguments.quality is not None and arguments.form != "jpeg":
        parser.error("--quality needs --form jpeg")
    return arguments


def from_config(arguments: argparse.Namespace) -> Iterator[Record]:
    """Build the caches of a YAML file, each in ``cache`` of its data set or below ``--out``, and yield a report of each."""
    experiment = load_checked(arguments.config, arguments.opts)
    from up.build.data import PHASES, section_of

    sections = experiment.config.dataset
    present = [split for split in PHASES if getattr(sections, split) is not None]
    for split in [arguments.split] if arguments.split else present:
        named = section_of(experiment, split).dataset.kwargs.get("cache")
        folder = named if arguments.out is None else str(arguments.out / split)
        folder = folder or str(Path("cache") / arguments.config.stem / split)
        yield {"split": split, **cache_of(experiment, split, Path(folder), arguments), "used": folder == named}


def cache_of(experiment: Experiment, split: Phase, folder: Path, arguments: argparse.Namespace) -> Record:
    """Build the cache of a data set of an experiment."""
    from up.build.image_cache import build_cache, data_to_cache, side_needed

    dataset, files, reader = data_to_cache(experiment, split)
    on_bad: OnInvalid = "skip" if dataset.on_bad_image == "skip" else "raise"
    settings = settings_of(arguments, side_needed(dataset.transforms), on_bad, dataset.max_bad)
    with experiment.placing(f"dataset.{split}.dataset.kwargs"):
        return build_cache(files, reader, folder, settings, with_progress)


def from_images(arguments: argparse.Namespace) -> Record:
    """Build the cache of a folder or a list."""
    path = Path(arguments.images[0])
    if not path.exists():
        raise UserError(f"{path}: no such file or folder", expected="a YAML file, a folder of images or a list of images")
    from up.build.image_cache import build_cache
    from up.config.parts import build_part
    from up.data.readers import READERS
    from up.tasks.cls.data.tables import TableSpec, read_table

    kind = "unlabelled" if path.is_dir() else KINDS.get(path.suffix.lower(), "imagenet")
    part = {"type": arguments.reader or _READER, "kwargs": {"image_dir": arguments.image_dir}}
    reader: Reader = build_part(part, "image_reader", {"image_reader": READERS}, path="image_reader")
    files = read_table(TableSpec(str(path), kind, arguments.image_dir))
    settings = settings_of(arguments, None, "raise", max_bad=len(files))
    return {"split": "", **build_cache(files, reader, arguments.out, settings, with_progress), "used": False}


def settings_of(arguments: argparse.Namespace, side: int | None, on_bad: OnInvalid, max_bad: float) -> CacheSettings:
    """Return the settings of a cache; ``side`` is the shorter side that its transforms need."""
    from up.build.image_cache import SHORT_SIDE, CacheSettings

    return CacheSettings(
        arguments.form,
        arguments.short_side or side or SHORT_SIDE,
        arguments.quality or _QUALITY,
        arguments.on_invalid or on_bad,
        max_bad,
        arguments.workers or available_processors(),
    )
