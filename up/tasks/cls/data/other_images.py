"""Replace the meta files of a data set by a folder of class folders or a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from up.config.section import Part
from up.errors import UserError
from up.tasks.cls.data.files import DATASETS, block_at, expect_images
from up.tasks.cls.data.tables import expect_same_classes, kind_of_list
from up.types import Kwargs

_OF_OWN_IMAGES = (
    *("label_mapping", "fraction", "path_column", "label_column", "delimiter", "header", "parser_info", "inference_cfg"),
    *("on_bad_label", "drop_list", "cache"),
)


def with_images(dataset: Part, path: Path, class_names: Sequence[str] | None, flag: str = "--test") -> Part:
    """Return ``dataset`` with the labelled images at ``path``: a folder of class folders, or a list with names relative to it.

    Transforms, reader and evaluator stay; settings for its own meta files are dropped. The classes are those
    that the data set names, else ``class_names`` of the net. Raises ``UserError``, which begins with ``flag``, for a missing path,
    a file that is not a list, a folder where classes have no names, and a data set of a plug-in.
    """
    if dataset.type not in DATASETS:
        what = f"{flag} {path}: dataset.test has type {dataset.type}, a data set of a plug-in"
        raise UserError(what, fix="Override them: -o dataset.test.dataset.kwargs.KEY=VALUE.")
    expect_images(path, flag)
    kind = "image_folder" if path.is_dir() else kind_of_list(path, flag)
    names = dataset.kwargs.get("class_names") or class_names
    if kind == "image_folder" and not names:
        what = f"{flag} {path}: got a folder of classes, but the classes of the net have only numbers"
        raise UserError(what, fix="Name a list of images whose labels are these numbers.")
    known = class_names if isinstance(names, str) else names  # a file of names
    if path.is_file() and known:
        expect_same_classes(path, known, flag)
    reader = block_at(dataset.kwargs, "image_reader")
    anywhere = {name: value for name, value in block_at(reader, "kwargs").items() if name != "image_dir"}
    kept: Kwargs = {name: value for name, value in dataset.kwargs.items() if name not in _OF_OWN_IMAGES}
    own = {"meta_file": str(path), "meta_type": kind, "image_reader": {**reader, "kwargs": anywhere}}
    return Part(type=dataset.type, kwargs={**kept, **own, **({"class_names": names} if names else {})})
