"""Files that a data set's arguments name, so that a missing one is reported with its key before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from up.errors import UserError
from up.text import did_you_mean
from up.types import Kwargs

DATASETS = ("cls", "rank_cls")  # the types whose arguments these are
NamedPath = tuple[str, str | None]  # key below ``kwargs``, and the path written there, None where nothing is


def named_paths(kwargs: Kwargs) -> Iterator[NamedPath]:
    """List meta files, image folders, drop lists and files of class names, as written; an unset meta file is reported too."""
    if block_at(kwargs, "inference_cfg").get("inference_from", "file") in ("file", "folder"):
        yield from _each("meta_file", kwargs.get("meta_file"))
    image_dir = block_at(block_at(kwargs, "image_reader"), "kwargs").get("image_dir")
    if image_dir:
        yield from _each("image_reader.kwargs.image_dir", image_dir)
    if isinstance(kwargs.get("drop_list"), str) and kwargs.get("on_bad_label") == "drop-list":
        yield "drop_list", kwargs["drop_list"]
    if isinstance(kwargs.get("class_names"), str):
        yield "class_names", kwargs["class_names"]


def expect_images(path: Path, flag: str) -> None:
    """Raise ``UserError`` with a near name unless the folder or list that follows ``flag`` exists."""
    if not path.exists():
        near = did_you_mean(path.name, (entry.name for entry in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise UserError(f"{flag} {path}: no such file or folder.{near} Expected a folder of class folders, or a list of images.")


def block_at(owner: Kwargs, key: str) -> Kwargs:
    """Return the block at ``key``; an empty one for anything else, which is reported with the type of the argument."""
    block = owner.get(key)
    return block if isinstance(block, Mapping) else {}


def _each(key: str, value: object) -> Iterator[NamedPath]:
    if isinstance(value, list):
        yield from ((f"{key}.{index}", path) for index, path in enumerate(value) if isinstance(path, str))
    elif value is None or isinstance(value, str):
        yield key, value or None
