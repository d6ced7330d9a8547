"""Report of the data sets of a run: the classes, and probable mistakes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from up.data.decoding import header_of
from up.data.folders import empty_classes
from up.data.sampler import permutation
from up.errors import Problem
from up.tasks.cls.data.datasets import ClsDataset
from up.tasks.cls.data.image_dataset import ImageDataset
from up.tasks.cls.model.heads import Names
from up.tasks.task import DataReport
from up.text import count, some_of

_FEW = 5  # images of a class, below which it is hardly learned
_SHOWN = 8  # classes in a line
_SAMPLED = 200  # headers read: a second at most, also from a network disk
_HEADERS = 0x616C7068  # the key that the sample is drawn with


def data_report(train: ImageDataset, test: ImageDataset | None) -> DataReport:
    """Count the images of each class and warn of probable mistakes. Reads at most 200 headers a data set."""
    lines = list(_class_line("train", train))
    warnings = list(_class_warnings(train))
    if test is not None:
        lines += _class_line("test", test)
        warnings += _unseen_in_validation(train, test)
    for source, dataset in (("train", train), ("test", test)):
        if isinstance(dataset, ClsDataset):
            found, dropped = _of_headers(source, dataset)
            lines += found
            warnings += dropped
    if isinstance(train, ClsDataset) and isinstance(test, ClsDataset):
        warnings += _other_background(train, test)
    return DataReport(lines, warnings)


def _names(dataset: ImageDataset) -> Sequence[str] | None:
    names: Names | None = dataset.class_names or getattr(dataset.evaluator, "class_names", None)
    return [str(name) for name in names] if names and isinstance(names[0], str) else None


def _name(dataset: ImageDataset, label: int) -> str:
    names = _names(dataset)
    return names[label] if names is not None and label < len(names) else str(label)


def _class_line(source: str, dataset: ImageDataset) -> Iterator[str]:
    counts = dataset.class_counts()
    if counts is None:
        if isinstance(dataset, ClsDataset) and dataset.gt_kind == "none":
            effect = ", so no evaluation has metrics and no checkpoint is the best" if source == "test" else ""
            yield f"{source}: images without labels{effect}"
        return
    commonest_first = sorted(range(len(counts)), key=lambda label: -counts[label])
    shown = [f"{_name(dataset, label)} {counts[label]:,}" for label in commonest_first]
    listed = ", ".join(shown) if len(shown) <= _SHOWN else f"{', '.join(shown[: _SHOWN - 1])}, … {shown[-1]}"
    yield f"{source}: {count(len(counts), 'class')}; images of each: {listed}"


def _class_warnings(train: ImageDataset) -> Iterator[Problem]:
    counts = train.class_counts()
    place = "dataset.train.dataset.kwargs.meta_file"
    if isinstance(train, ClsDataset):
        yield from (Problem(what, key=place) for what in _empty_folders(train))
    if counts is None:
        return
    filled = [label for label, images in enumerate(counts) if images]
    missing = [_name(train, label) for label, images in enumerate(counts) if not images]
    few = [f"{_name(train, label)} {images}" for label, images in enumerate(counts) if 0 < images < _FEW]
    if len(filled) == 1 and not train.multilabel:
        what = f"all images are of the class {_name(train, filled[0])}: there is nothing to tell apart. Add other classes."
        yield Problem(what, key=place)
    elif counts[0] == 0 and all(counts[1:]) and not _is_of_folders(train):
        what = "no image has the label 0, the labels start at 1: one class of the net would never be used"
        yield Problem(f"{what}. Number the classes from 0, or subtract 1 with label_mapping: [-1].", key=place)
    elif missing:
        yield Problem(f"{count(len(missing), 'class')} without a training image: {some_of(missing, _SHOWN)}.", key=place)
    if few:
        classes = f"{count(len(few), 'class')} with fewer than {_FEW} training images"
        yield Problem(f"{classes}: {some_of(few, _SHOWN)}. Add images, or sample them more often (repeat_factor).", key=place)


def _is_of_folders(dataset: ImageDataset) -> bool:
    return isinstance(dataset, ClsDataset) and any(map(os.path.isdir, dataset.table.paths))


def _empty_folders(train: ClsDataset) -> Iterator[str]:
    for path, root in zip(train.table.paths, train.table.roots, strict=True):
        empty = empty_classes(root) if os.path.isdir(path) and train.labels is not None else []
        if empty:
            yield f"{path}: folders without an image are not classes: {some_of(empty, _SHOWN)}. Fill or remove them."


def _unseen_in_validation(train: ImageDataset, test: ImageDataset) -> Iterator[Problem]:
    learned, tested = train.class_counts(), test.class_counts()
    if learned is None or tested is None:
        return
    tested = [*tested, *[0] * (len(learned) - len(tested))]
    unseen = [_name(train, label) for label, images in enumerate(learned) if images and not tested[label]]
    if unseen:
        what = f"{count(len(unseen), 'class')} without a validation image: {some_of(unseen, _SHOWN)}. Add images of each"
        yield Problem(f"{what}: the accuracy of these is not measured.", key="dataset.test.dataset.kwargs.meta_file")


def _of_headers(source: str, dataset: ClsDataset) -> tuple[list[str], list[Problem]]:
    """Report what the reader drops of some images: lines for what is meant, a warning for an alpha channel."""
    if not hasattr(dataset.reader, "background"):
        return [], []
    sampled = np.sort(permutation(len(dataset), _HEADERS)[:_SAMPLED]).tolist()
    headers = [header_of(dataset.path_of(index)) for index in sampled]
    transparent, deep = (sum(column) for column in zip(*headers, strict=True))
    lines, warnings = [], []
    if deep:
        found = _share(deep, len(sampled), "more than 8 bits a channel")
        lines.append(f"{source}: {found}; the low ones are dropped. To keep them: image_reader fs_multichannel")
    if transparent:
        found, background = _share(transparent, len(sampled), "an alpha channel"), dataset.reader.background
        what = (
            f"{found}, which is dropped: transparent pixels keep the colour that the file stores for them. "
            "To composite over white, set background: white in its kwargs."
        )
        if background is not None:
            lines.append(f"{source}: {found}, composited over the background {list(background)}")
        else:
            warnings.append(Problem(what, key=f"dataset.{source}.dataset.kwargs.image_reader"))
    return lines, warnings


def _share(number: int, sampled: int, what: str) -> str:
    return f"{number} of {count(sampled, 'sampled image')} {'has' if number == 1 else 'have'} {what}"


def _other_background(train: ClsDataset, test: ClsDataset) -> Iterator[Problem]:
    ours, theirs = (getattr(each.reader, "background", None) for each in (train, test))
    if ours != theirs:
        shown = ["drop" if each is None else str(list(each)) for each in (theirs, ours)]
        what = f"background: got {shown[0]}, but dataset.train has {shown[1]}: the net sees other images than in training."
        yield Problem(f"{what} Write the same in both.", key="dataset.test.dataset.kwargs.image_reader")
