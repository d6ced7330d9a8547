"""Images of an inference, without those that earlier results have already."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from up.data.decoding import SUFFIXES
from up.data.folders import images_under
from up.data.listing import MetaError
from up.data.roots import ImageRoot
from up.errors import StorageError, UserError
from up.files import make_folder, write_text
from up.tasks.cls.data.metas import MetaSource, SampleTable, inference_only, unlabelled


@with_config(ConfigDict(extra="forbid"))
class ResumeInference(TypedDict, total=False):
    """Continue an interrupted inference: leave out the images in its results.

    ``resume_dir`` holds ``results.txt*``, one file for each rank; ``rank_set`` (a list of ranks, or their number)
    selects some of them, false all; ``indicator`` is the key that names the image in a result, ``filename`` by default.
    """

    resume_dir: str
    rank_set: bool | int | list[int]
    indicator: str


@with_config(ConfigDict(extra="forbid"))
class InferenceConfig(TypedDict, total=False):
    """Images to predict: those that meta_file lists (``inference_from: file``) or that are in it (``folder``).

    Any other ``inference_from`` is a path to use instead of meta_file: of a list, a folder or an image. The list
    of the images found in a folder is written to ``folder_images_save_path``.
    """

    inference_from: str
    folder_images_save_path: str
    test_resume: ResumeInference


def inference_path(meta_file: str | None, config: InferenceConfig) -> str | None:
    """Return the path of the list, folder or image to predict."""
    chosen = config.get("inference_from", "file")
    return meta_file if chosen in ("file", "folder") else chosen


def inference_meta(source: MetaSource, config: InferenceConfig) -> SampleTable:
    """List the images to predict, without labels. Raises ``MetaError`` when there are none."""
    if not os.path.isdir(source.path):
        if config.get("inference_from") == "folder":
            raise MetaError("no such folder (inference_from: folder).", file=source.path)
        if source.path.lower().endswith(source.root.suffixes):
            return unlabelled(source, [os.path.abspath(source.path)])
        return inference_only(source)
    names = images_under(source.root)
    if not names:
        raise MetaError(f"no image in this folder. Expected files ending in {', '.join(source.root.suffixes)}.", file=source.path)
    if saved := config.get("folder_images_save_path"):
        _write_lines(saved, names)
    return unlabelled(source, names)


def inference_root(
    image_dir: str | None, *, meta_file: str, allow_outside: bool, suffixes: tuple[str, ...] = SUFFIXES
) -> ImageRoot:
    """Return the folder itself when a folder is predicted, otherwise the root of a list, or of an image."""
    if os.path.isdir(meta_file):
        image_dir = meta_file
    elif meta_file.lower().endswith(suffixes):
        image_dir = None
    return ImageRoot(image_dir, meta_file=meta_file, allow_outside=allow_outside, suffixes=suffixes)


def already_done(config: ResumeInference) -> set[str] | None:
    """Read the names of images in earlier results; None where their folder does not exist yet, as before the first run.

    The last line of a file may be cut off; any other bad line is an error.
    """
    folder, key = config.get("resume_dir"), config.get("indicator", "filename")
    if folder and not os.path.exists(folder):
        return None
    if not folder or not os.path.isdir(folder):
        raise UserError(f"test_resume.resume_dir: {folder!r} is not a folder. Expected the results_dir of an earlier run.")
    done: set[str] = set()
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "results.txt*"))):
        if _is_of(path, config.get("rank_set")):
            done |= _named_in(path, key)
    return done


def _is_of(path: str, ranks: bool | int | Sequence[int] | None) -> bool:
    number = re.search(r"(\d+)$", path)
    if isinstance(ranks, bool) or ranks is None or number is None:
        return True
    return int(number[1]) in (range(ranks) if isinstance(ranks, int) else ranks)


def _named_in(path: str, key: str) -> set[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # file names need not be UTF-8
        lines = file.read().removesuffix("\n").split("\n")  # splitlines() would cut names at further characters
    done = set()
    for number, line in enumerate(lines, 1):
        try:
            done.add(str(json.loads(line)[key]))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UserError(f"{path}:{number}: expected a JSON object with {key!r}, got {line[:60]!r}") from None
    return done


def _write_lines(path: str, lines: Sequence[str]) -> None:
    try:
        make_folder(Path(path).parent)
        write_text(Path(path), "".join(f"{line}\n" for line in lines))
    except StorageError as error:
        raise StorageError(f"folder_images_save_path: {error}") from None
