"""Images of a user: a folder of class folders, a folder with ``train`` and ``val``, or a list; and their size."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from up.data.decoding import FORMATS, QUIET
from up.data.folders import classes_of, images_under, part_in
from up.data.listing import MetaError
from up.data.roots import ImageRoot
from up.data.split import Split, split_of
from up.errors import Problem, UserError
from up.tasks.cls.data.files import expect_images
from up.tasks.cls.data.metas import SampleTable
from up.tasks.cls.data.tables import TableSpec, class_names_beside, expect_same_classes, kind_of_list, read_table
from up.text import count, did_you_mean, some_of

SHARE = 0.1  # of every class, for validation: with few images, those that train are worth more
UNREADABLE = 0.05  # share of the images that may be
_TRAIN, _VALIDATE, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
_SURVEYED = 2000  # images whose header is read
_LISTED = 10


@dataclass(frozen=True)
class ImageList:
    """Labelled images: a folder of class folders (``meta_type`` image_folder) or a list, whose names are relative to ``root``."""

    path: Path
    meta_type: str
    root: Path
    names: Sequence[str]
    labels: Sequence[int]


@dataclass(frozen=True)
class Images:
    """Training images, those for validation if they are given, and the classes; ``is_named``: classes have more than numbers."""

    given: Path
    train: ImageList
    validation: ImageList | None
    classes: Sequence[str]
    is_named: bool

    @cached_property
    def split(self) -> Split | None:
        """The split of the training images; None if images for validation are given."""
        if self.validation is not None:
            return None
        return split_of(self.train.names, self.train.labels, SHARE, root=self.train.root)

    @property
    def trained(self) -> int:
        """Number of images that are trained on."""
        return len(self.train.names) if self.split is None else len(self.split.train)

    @property
    def counts(self) -> dict[str, int]:
        """Number of training images of each class, before a split."""
        numbers = [0] * len(self.classes)
        for label in self.train.labels:
            numbers[label] += 1
        return dict(zip(self.classes, numbers, strict=True))

    @cached_property
    def side(self) -> float:
        """Median of the shorter sides of training images, in pixels. Raises ``UserError`` if too many cannot be opened."""
        return _side(self.train)


def look_into(train: Path, validation: Path | None = None) -> Images:
    """Find the images at ``train`` and ``validation``. Raises ``UserError`` for fewer than two classes and missing files."""
    expect_images(train, "--train")
    images = _of_list(train) if train.is_file() else _of_folder(train)
    if validation is not None:
        expect_images(validation, "--val")
        if validation.resolve() in (train.resolve(), images.train.path.resolve()):
            what = f"--val {validation}: holds the training images, so it would not measure generalization"
            raise UserError(what, fix="Name other images, or leave --val out for a split.")
        images = Images(train, images.train, _validation(validation, images), images.classes, images.is_named)
    _expect_enough(images)
    return images


def _expect_enough(images: Images) -> None:
    """Raise ``UserError`` for unreadable images, fewer than two classes, and a split without images for validation."""
    numbers = some_of((f"{name} {number}" for name, number in images.counts.items()), 8)
    if len({*images.train.labels}) < 2:
        raise UserError(f"{images.given}: got one class ({numbers}), expected at least two", fix="Add images of another class.")
    assert images.side  # raises
    if images.split is not None and not images.split.validation:
        what = f"{images.given}: no class has two different images ({numbers}), so none can be held back for validation"
        raise UserError(what, expected="at least two a class", fix="Add images, or name images for validation with --val.")


def _of_folder(folder: Path) -> Images:
    train = part_in(folder, _TRAIN)
    held_out = None if train is None else part_in(folder, _VALIDATE) or part_in(folder, _TEST)
    classes = _classes(train or folder)
    if len(classes) < 2:
        raise UserError(_too_few(folder, train or folder, classes), fix=_instead(train or folder, classes))
    images = Images(folder, _listed(train or folder, classes), None, classes, True)
    return images if held_out is None else Images(folder, images.train, _validation(held_out, images), classes, True)


def _too_few(folder: Path, root: Path, classes: Sequence[str]) -> str:
    found = f"one class folder ({classes[0]})" if classes else "no class folder with images"
    loose = [entry.name for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    if loose and not classes:
        found = f"no class folder, but {count(len(loose), 'file')} beside each other ({some_of(sorted(loose), 3)})"
    return f"{folder}: got a folder, expected a YAML file or a folder of at least two class folders; it has {found}"


def _instead(root: Path, classes: Sequence[str]) -> str:
    inner = root / classes[0] if classes else None
    below = _classes(inner) if inner is not None else []
    if inner is not None and len(below) >= 2:
        return f"Did you mean {inner}, which has {len(below)} class folders?"
    return f"Put the images into {root}/CLASS/, one folder per class."


def _validation(path: Path, images: Images) -> ImageList:
    """List the images for validation. Raises ``UserError`` for classes that are not trained on."""
    if path.is_file():
        names = images.classes if images.is_named else None
        expect_same_classes(path, names, "--val")
        listed = _read_list(path, len(images.classes), names)[0]
    else:
        if not images.is_named:
            raise UserError(
                f"--val {path}: got a folder of classes, but {images.given} has numbers", fix="Name a list with the same numbers."
            )
        found = _classes(path)
        other = [name for name in found if name not in images.classes]
        if other or not found:
            near = did_you_mean(other[0], images.classes) if other else ""
            got = (
                f"has classes that are not trained on: {some_of(other, 5)}.{near}" if other else "has no class folder with images."
            )
            raise UserError(f"--val {path}: {got}", expected=f"folders named {some_of(images.classes, 8)}")
        listed = _listed(path, images.classes)
    return listed


def _listed(folder: Path, classes: Sequence[str]) -> ImageList:
    """List the images in the class folders of ``folder``."""
    found = {name: images_under(_root(folder), name) if (folder / name).is_dir() else [] for name in classes}
    names = [name for images in found.values() for name in images]
    labels = [label for label, images in enumerate(found.values()) for _ in images]
    return ImageList(folder, "image_folder", folder, names, labels)


def _of_list(path: Path) -> Images:
    names = class_names_beside(path)
    listed, table = _read_list(path, None if names is None else len(names), names)
    if not isinstance(table.num_classes, int):
        raise UserError("has no single label for each image", file=path, fix="Write a YAML file for several heads: docs/config.md.")
    classes = table.class_names or [str(label) for label in range(table.num_classes)]
    return Images(path, listed, None, classes, table.class_names is not None)


def _read_list(path: Path, classes: int | None, names: Sequence[str] | None) -> tuple[ImageList, SampleTable]:
    kind = kind_of_list(path)
    named = None if names is None else [*names]
    table = read_table(TableSpec(str(path), kind, num_classes=classes, class_names=named))
    missing = [index for index in range(len(table)) if not Path(table.path_of(index)).is_file()]
    if missing:
        problems = [
            Problem(f"{table.names[index]}: no such image in {table.roots[0].shown}", file=str(path), line=int(table.lines[index]))
            for index in missing[:_LISTED]
        ]
        if len(missing) > _LISTED:
            problems.append(Problem(f"and {len(missing) - _LISTED:,} more", file=str(path)))
        raise MetaError.of([*problems[:-1], _with_fix(problems[-1])])
    if table.labels is None or table.labels.values.ndim > 1:
        raise UserError("got no single label for each image", expected="one", file=path, fix="Write a YAML file: docs/config.md.")
    labels = table.labels.values.tolist()
    return ImageList(path, kind, Path(table.roots[0].shown), [*table.names], labels), table


def _with_fix(problem: Problem) -> Problem:
    return Problem(problem.what, file=problem.file, line=problem.line, fix="Names are relative to the folder of the list.")


def _side(listed: ImageList) -> float:
    names = listed.names[:: max(1, len(listed.names) // _SURVEYED)]
    sizes = [*_sizes(listed.root, names)]
    sides = [min(size) for size in sizes if size is not None]
    unreadable = [name for name, size in zip(names, sizes, strict=True) if size is None]
    first = listed.root / unreadable[0] if unreadable else None
    if not sides:
        raise UserError(f"{listed.path}: none of {len(names)} images can be opened, the first is {first}.")
    if len(unreadable) > max(1, UNREADABLE * len(names)):
        what = f"{listed.path}: {len(unreadable)} of {count(len(names), 'image')} cannot be opened ({some_of(unreadable, 3)})"
        raise UserError(what, expected=f"at most {100 * UNREADABLE:.0f} %", fix="Remove them, or copy them again.")
    return statistics.median(sides)


def _sizes(root: Path, names: Sequence[str]) -> Iterator[tuple[int, int] | None]:
    """Yield the size of each image by its header, None for one that cannot be opened."""
    with QUIET:
        for name in names:
            try:
                with Image.open(root / name, formats=FORMATS) as image:
                    yield image.size
            except (OSError, ValueError, Image.DecompressionBombError):
                yield None


def _classes(folder: Path) -> list[str]:
    return classes_of([_root(folder)]) if folder.is_dir() else []


def _root(folder: Path) -> ImageRoot:
    return ImageRoot(str(folder), meta_file=str(folder))
