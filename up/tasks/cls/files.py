"""The files that a data set's arguments name, so that a missing one is told of with its key before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NamedPath = tuple[str, str | None]  # key below ``kwargs``, and the path written there, None where nothing is


def named_paths(kwargs: Mapping[str, Any]) -> Iterator[NamedPath]:
    """Meta files, image folders and lists of class names, as written; an unset meta file is told of too."""
    inference = kwargs.get("inference_cfg") or {}
    if inference.get("inference_from", "file") in ("file", "folder"):
        yield from _each("meta_file", kwargs.get("meta_file"))
    reader = kwargs.get("image_reader") or {}
    image_dir = (reader.get("kwargs") or {}).get("image_dir") if isinstance(reader, Mapping) else None
    if image_dir:
        yield from _each("image_reader.kwargs.image_dir", image_dir)
    if isinstance(kwargs.get("class_names"), str):
        yield "class_names", kwargs["class_names"]


def _each(key: str, value: Any) -> Iterator[NamedPath]:
    if isinstance(value, list):
        yield from ((f"{key}.{index}", path) for index, path in enumerate(value))
    else:
        yield key, value or None

