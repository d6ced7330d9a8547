"""Data sets to report on: those of a YAML file, class folders, or lists of images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from up.build.data import Phase, build_dataset, section_of, whole_dataset
from up.build.experiment import missing_files
from up.config.parts import DerivedArguments
from up.config.section import Part
from up.data.dataset import KeyedDataset
from up.data.folders import part_in
from up.data.image_records import Read
from up.data.listing import Listing
from up.data.packed import PackedLabels
from up.data.readers import Reader
from up.data.records import Dataset
from up.errors import Problem, UserError
from up.file_kinds import kind_of
from up.tasks.cls.data.metas import SampleTable
from up.tasks.cls.data.tables import TableSpec, class_names_beside, kind_of_list, read_table
from up.tasks.experiment import Experiment
from up.text import did_you_mean
from up.types import Argument

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_DECLARED = ("num_classes", "class_names")
Limit: TypeAlias = int | Sequence[int] | None


@dataclass(frozen=True)
class DataSource:
    """Files of a data set, unlabelled where ``labels`` is None.

    ``classes`` are the names of its classes, if they have names. Labels are below ``limit``, a number for each head if there are
    several. ``not_read`` are images in its folders whose suffix is not one of images.
    """

    name: str
    files: Listing
    labels: PackedLabels | None
    classes: Sequence[str] | None
    limit: Limit
    boxes: bool = False
    not_read: Sequence[str] = ()
    read: Read | None = None

    @property
    def limits(self) -> NDArray[np.int64] | None:
        """Number of classes that every label stays below (labels,), None where that is not known."""
        if self.labels is None or self.limit is None:
            return None
        return np.broadcast_to(np.asarray(self.limit, np.int64), self.labels.values.shape).ravel()


Found = tuple[list[DataSource], list[Problem]]


def sources_of_paths(given: Mapping[str, Path], image_dir: Path | None = None) -> Found:
    """Read folders of class folders and lists, by the name of the data set; problems of lists do not stop it.

    Raises ``UserError`` for a path that does not exist, and where nothing can be read.
    """
    found: list[DataSource] = []
    problems: list[Problem] = []
    for name, path in given.items():
        _expect_there(path)
        try:
            found.append(_source_of_path(name, path, found[0] if found else None, image_dir))
        except UserError as error:
            problems += error.problems
    if not found:
        raise UserError.of(problems)
    return found, problems


def parts_of(folder: Path) -> dict[str, Path]:
    """Return the data sets in a folder: ``train``, ``val`` and ``test`` below it, else the folder itself as ``train``.

    Raises ``UserError`` for a folder that does not exist, and for several of one data set, such as ``val`` and ``valid``.
    """
    _expect_there(folder)
    if (train := part_in(folder, PARTS["train"])) is None:
        return {"train": folder}
    found = {name: part_in(folder, words) for name, words in PARTS.items() if name != "train"}
    return {"train": train, **{name: path for name, path in found.items() if path is not None}}


def _expect_there(path: Path) -> None:
    if not path.exists():
        near = did_you_mean(path.name, (entry.name for entry in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise UserError(
            f"{path}: no such file or folder", expected="a folder of class folders, or a list of images", fix=near.strip()
        )


def _source_of_path(name: str, path: Path, first: DataSource | None, image_dir: Path | None) -> DataSource:
    kind = "image_folder" if path.is_dir() else kind_of_list(path, "")
    is_numbered = kind not in ("image_folder", "csv")
    names = first.classes if first is not None else class_names_beside(path) if is_numbered else None
    spec = TableSpec(
        str(path), kind, None if image_dir is None else str(image_dir), class_names=None if names is None else [*names]
    )
    try:
        table = read_table(spec)
    except UserError:
        table = read_table(replace(spec, class_names=None))  # raises again unless it was the classes
    if table.labels is not None and table.labels.values.ndim > 1:  # classes of several heads have no names
        return DataSource(name, table, table.labels, None, None if first is None else _fitting(_limit_of(first), table.labels))
    limit: Limit = len(names) if names is not None and is_numbered else None
    if limit is None and first is not None and is_numbered:
        limit = _fitting(_limit_of(first), table.labels)
    classes = names if is_numbered else table.class_names
    return DataSource(name, table, table.labels, classes, limit, table.boxes is not None, [*not_read(table)])


def _limit_of(source: DataSource) -> Limit:
    """Return the limit of a source, or one more than its largest labels."""
    if source.limit or source.labels is None:
        return source.limit
    values = source.labels.values
    return int(values.max(initial=0)) + 1 if values.ndim == 1 else [int(each) + 1 for each in values.max(axis=0, initial=0)]


def _fitting(limit: Limit, labels: PackedLabels | None) -> Limit:
    """Return the limit if it is of labels of this form, otherwise None."""
    heads = 0 if labels is None or labels.values.ndim == 1 else labels.values.shape[1]
    return limit if (len(limit) if isinstance(limit, Sequence) else 0) == heads else None


def sources_of_config(experiment: Experiment) -> Found:
    """Read the data sets of a YAML file; problems of their lists do not stop it.

    Raises ``UserError`` where nothing can be read, and for data sets that name no files.
    """
    experiment.raise_if_any(problem for problem in missing_files(experiment) if "dataset" in problem.key)
    found: list[DataSource] = []
    problems: list[Problem] = []
    derived: DerivedArguments = {}
    phases: tuple[tuple[Phase, str], ...] = (("train", "train"), ("test", "test"))
    for phase, name in phases:
        if getattr(experiment.config.dataset, phase) is None:
            continue
        try:
            dataset, limit = _dataset(experiment, phase, derived)
        except UserError as error:
            problems += error.problems
            continue
        if phase == "train" and isinstance(dataset, KeyedDataset):
            derived = experiment.task.derived_for_evaluation(dataset)
        found.append(_source_of_dataset(name, dataset, limit))
    if not found:
        raise UserError.of(problems) if problems else experiment.error("has no data sets", key="dataset")
    return found, problems


def _dataset(experiment: Experiment, phase: Phase, derived: DerivedArguments) -> tuple[Dataset, Limit]:
    """Build a data set, if need be without its declared classes, and return the number of classes that its labels stay below."""
    part = section_of(experiment, phase).dataset
    limit: Argument
    try:
        dataset = build_dataset(experiment, phase, derived)
        limit = getattr(dataset, "num_classes", None)
    except UserError:
        if not any(part.kwargs.get(key) is not None for key in _DECLARED) and not derived:
            raise
        undeclared = {key: value for key, value in part.kwargs.items() if key not in _DECLARED}
        dataset = whole_dataset(experiment, phase, Part(type=part.type, kwargs=undeclared))
        names = part.kwargs.get("class_names") or derived.get("class_names")
        limit = part.kwargs.get("num_classes") or derived.get("num_classes")
        limit = len(names) if isinstance(names, list) else limit
        if limit is not None and dataset.label_sets is not None and _fitting(limit, dataset.label_sets) is None:
            raise  # labels of another form, not out of range
    return dataset, _least([limit, *(module.kwargs.get("num_classes") for module in experiment.config.net)], dataset.label_sets)


def _least(given: Sequence[Argument], labels: PackedLabels | None) -> Limit:
    """Return the least limit; limits that do not have the form of the labels are left out."""
    if labels is None or labels.values.ndim == 1:
        return min((number for number in given if isinstance(number, int)), default=None)
    fitting = [each for each in given if isinstance(each, list) and _fitting(each, labels) is not None]
    return [min(of_head) for of_head in zip(*fitting, strict=True)] or None


def _source_of_dataset(name: str, dataset: Dataset, limit: Limit) -> DataSource:
    files = dataset.files if isinstance(dataset, KeyedDataset) else None
    if files is None:
        what = f"the data set {type(dataset).__name__} names no files, so that its images cannot be compared"
        raise UserError(what, fix="Set `files` in its constructor (docs/add_a_part.md), or name a folder or a list.")
    boxes = getattr(files, "boxes", None) is not None
    names = getattr(dataset, "class_names", None)
    reader = getattr(dataset, "reader", None)
    unread = [*not_read(files)] if isinstance(files, SampleTable) else []
    read = _levels_by(reader) if reader is not None and getattr(reader, "float_images", False) else None
    return DataSource(name, files, dataset.label_sets, names, limit, boxes, unread, read)


def _levels_by(reader: Reader) -> Read:
    """Return a function that decodes an image by ``reader``: its first three channels, scaled to 8 bits."""

    def levels(path: str) -> NDArray[np.uint8]:
        image = reader(path, path)
        values = np.asarray(image, dtype=np.float64)[:3].transpose(1, 2, 0)
        values = values[..., [0, 0, 0]] if values.shape[2] < 3 else values
        low, high = values.min(), values.max()
        scaled: NDArray[np.uint8] = ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
        return scaled

    return levels


def not_read(files: Listing) -> Iterator[str]:
    """List the images in folders of classes that the data set leaves out because of the end of their names."""
    for path, root in zip(files.paths, files.roots, strict=True):
        if not os.path.isdir(path):
            continue
        for folder, below, names in os.walk(path):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in names:
                whole = os.path.join(folder, name)
                if not name.startswith(".") and not name.lower().endswith(root.suffixes) and kind_of(Path(whole)) == "image":
                    yield os.path.relpath(whole, path)
