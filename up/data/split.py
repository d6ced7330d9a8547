"""Split a list of images into training, validation and test, or folds: stratified by class, near duplicates on one side.

Copies of an image (re-encoded, resized, brighter or darker) on both sides would make the validation too good: images that
look the same are one group, and a group is on one side; so are images of one patient, place or video, if that is known. The draw is
keyed by the seed and the names of the files, so that it is the same on every machine, and adding images moves few others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from up.data.duplicates import identical_files, joined, kept_apart, members, near_duplicates
from up.data.image_records import read_records
from up.data.packed import PackedLabels
from up.data.stratify import IterativeStratification
from up.errors import UserError
from up.files import write_json
from up.seed import key
from up.text import count, some_of
from up.types import Json

_UNLABELLED = -1  # images without a label are drawn as those of one more class

Labels: TypeAlias = "Sequence[int] | Sequence[Sequence[int]] | PackedLabels | None"


@dataclass(frozen=True)
class Split:
    """Result of ``split_of``: indices into ``files`` and ``labels``, sorted.

    ``near_duplicates`` are the groups of at least two images that look the same. The images of the classes ``one_view`` all look
    the same, as those of a fixed camera do: only identical files are grouped there. ``unreadable`` images are groups of their own.
    """

    files: Sequence[str]
    labels: Sequence[tuple[int, ...]]
    share: float
    seed: int
    train: list[int]
    validation: list[int]
    near_duplicates: list[list[int]]
    one_view: list[int]
    unreadable: list[int]
    test: list[int] = field(default_factory=list)
    folds: int = 0  # of which ``validation`` is one

    @property
    def parts(self) -> dict[str, list[int]]:
        """The images of each part: train, val and, if there is one, test."""
        return {"train": self.train, "val": self.validation, **({"test": self.test} if self.test else {})}

    @property
    def conflicts(self) -> list[list[int]]:
        """Groups of near duplicates whose images have different labels: probably mistakes."""
        return [group for group in self.near_duplicates if len({self.labels[index] for index in group}) > 1]

    @property
    def not_validated(self) -> list[int]:
        """Classes without an image for validation: those of one image, or whose images are all near duplicates."""
        validated = {label for index in self.validation for label in self.labels[index]}
        return sorted({label for labels in self.labels for label in labels} - validated)

    def hash_of(self, indices: Iterable[int]) -> str:
        """Hash the names and labels of ``indices`` (sha256)."""
        listed = [(self.files[index], self.labels[index]) for index in indices]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def record(self, class_names: Sequence[str] | None = None) -> dict[str, Json]:
        """Return what repeats and explains the split, for a JSON file."""
        return {
            "seed": self.seed,
            "share": self.share,
            "train": {"images": len(self.train), "sha256": self.hash_of(self.train)},
            "validation": {"images": len(self.validation), "sha256": self.hash_of(self.validation)},
            "near_duplicates": [[self.files[index] for index in group] for group in self.near_duplicates],
            "same_image_other_label": [
                {self.files[index]: _named(self.labels[index], class_names) for index in group} for group in self.conflicts
            ],
            "not_validated": _named(self.not_validated, class_names),
            "one_view": _named(self.one_view, class_names),
            "unreadable": [self.files[index] for index in self.unreadable],
            **({"test": {"images": len(self.test), "sha256": self.hash_of(self.test)}} if self.test else {}),
        }

    def write(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        """Write ``record`` as JSON, beside the meta files. Raises ``StorageError``."""
        write_json(path, self.record(class_names))

    def warnings(self, class_names: Sequence[str] | None = None) -> list[str]:
        """Describe probable mistakes in the data, a line each; with folds, those that all folds have in common."""
        found = []
        for group in self.conflicts[:3]:
            shown = [f"{self.files[at]} ({', '.join(_named(self.labels[at], class_names))})" for at in group]
            found.append(f"the same image has two labels: {some_of(shown, 3)}. Correct one of them.")
        if len(self.conflicts) > 3:
            found.append(f"and {count(len(self.conflicts) - 3, 'other image')} with two labels.")
        if self.unreadable:
            number, names = count(len(self.unreadable), "image"), some_of([self.files[at] for at in self.unreadable], 3)
            what = f"{number} cannot be opened ({names}): near duplicates of such images are not found"
            found.append(f"{what}. Repair the files, or remove them.")
        if self.not_validated and not self.folds:
            classes = some_of(_named(self.not_validated, class_names), 5)
            found.append(f"{classes}: no two different images, so nothing validates the class. Add images.")
        if self.one_view:
            classes = some_of(_named(self.one_view, class_names), 5)
            found.append(f"{classes}: nearly all images look the same, so near duplicates are not kept on one side.")
        return found


def split_of(
    files: Sequence[str],
    labels: Labels = None,
    share: float = 0.2,
    seed: int = 0,
    *,
    root: str | Path = "",
    test: float = 0.0,
    together: Sequence[str] | None = None,
) -> Split:
    """Split images into ``train``, ``validation`` and ``test``, about ``share`` and ``test`` of each class in the last two.

    ``files`` are names relative to ``root``; the names decide the draw, the pixels which images are near duplicates. ``labels`` are
    one label an image, or a set of labels; None for unlabelled images. ``PackedLabels`` of several heads are split by the classes
    of each head, numbered as their ``by_head`` does. Images with the same text in ``together`` stay on one side, too, unless it is
    empty. A class of at least two groups of images is on both sides, one of a single group is only trained on; with sets of labels
    that may be impossible for some class, which is then in ``not_validated``.

    Raises ``UserError`` for shares outside of 0 to 1, an empty list and a name that comes twice.
    """
    if not 0 < share < 1:
        raise UserError(got=share, expected="a share above 0 and below 1, such as 0.2", key="share")
    if not 0 <= test < 1 - share:
        raise UserError(got=test, expected=f"a share from 0 to below {1 - share:g}", key="test")
    grouped = _grouped(files, labels, seed, root, together)
    held_out = _held_out(grouped.groups, grouped.split.labels, share)
    rest = [group for group in grouped.groups if group[0] not in held_out]
    tested = _held_out(rest, grouped.split.labels, test / (1 - share)) if test else set()
    trained = [index for index in range(len(files)) if index not in held_out and index not in tested]
    return replace(grouped.split, share=share, train=trained, validation=sorted(held_out), test=sorted(tested))


def folds_of(
    files: Sequence[str],
    labels: Labels = None,
    folds: int = 5,
    seed: int = 0,
    *,
    root: str | Path = "",
    together: Sequence[str] | None = None,
) -> list[Split]:
    """Split images into ``folds`` parts of about the same number of each class; each is ``validation`` of one split.

    Arguments and errors are those of ``split_of``. Raises ``UserError`` for fewer than 2 folds, and for fewer groups than folds.
    """
    if folds < 2:
        raise UserError(got=folds, expected="2 folds or more", key="folds")
    grouped = _grouped(files, labels, seed, root, together)
    if len(grouped.groups) < folds:
        what = f"{count(len(grouped.groups), 'group')} of images that stay together"
        raise UserError(what, expected=f"at least {folds}, one a fold", fix="Use fewer folds, or add images.", key="folds")
    fold = _folded(grouped.groups, grouped.split.labels, folds)
    return [
        replace(
            grouped.split,
            share=1 / folds,
            folds=folds,
            train=np.flatnonzero(fold != number).tolist(),
            validation=np.flatnonzero(fold == number).tolist(),
        )
        for number in range(folds)
    ]


@dataclass(frozen=True)
class _Grouped:
    """A split whose parts are not drawn yet, and the groups of images that stay on one side, in the order drawn."""

    split: Split
    groups: list[list[int]]


def _grouped(files: Sequence[str], labels: Labels, seed: int, root: str | Path, together: Sequence[str] | None) -> _Grouped:
    names = list(files)
    if not names:
        raise UserError("no image to split. Expected a list of image files.")
    if len(set(names)) < len(names):
        raise UserError(
            f"{next(name for name, times in Counter(names).items() if times > 1)} is listed twice. Remove one of the lines."
        )
    sets = _sets_of(labels, len(names))
    records = read_records([os.path.join(root, name) for name in names])
    exact = identical_files(records)
    alike, one_view = kept_apart(near_duplicates(records, exact), exact, sets)
    near = [group for group in members(alike) if len(group) > 1]
    groups = members(alike if together is None else joined(alike, together))
    drawn = [key(seed, min(_key_of(names[index]) for index in group)) for group in groups]
    in_order = [groups[at] for at in sorted(range(len(groups)), key=drawn.__getitem__)]
    return _Grouped(Split(names, sets, 0.0, seed, [], [], near, one_view, sorted(records.faults)), in_order)


def _held_out(groups: Sequence[Sequence[int]], sets: Sequence[tuple[int, ...]], share: float) -> set[int]:
    labels = [Counter(label for index in group for label in sets[index] or (_UNLABELLED,)) for group in groups]
    images = sum(labels, Counter[int]())
    wanted = {label: max(1, round(share * number)) for label, number in images.items()}
    return {index for at in IterativeStratification(labels, wanted).held_out() for index in groups[at]}


def _folded(groups: Sequence[Sequence[int]], sets: Sequence[tuple[int, ...]], folds: int) -> NDArray[np.int64]:
    """Give each group a fold, class by class from the rarest: the one with the fewest images of the class, then of all."""
    fold = np.full(len(sets), -1, np.int64)
    held = [Counter[int]() for _ in range(folds)]
    sizes = [0] * folds
    of_class: dict[int, list[Sequence[int]]] = defaultdict(list)
    for group in groups:
        for label in {label for index in group for label in sets[index]} or {_UNLABELLED}:
            of_class[label].append(group)
    for label in sorted(of_class, key=lambda label: (len(of_class[label]), label)):
        for group in sorted(of_class[label], key=len, reverse=True):
            if fold[group[0]] < 0:
                chosen = min(range(folds), key=lambda number: (held[number][label], sizes[number], number))
                fold[list(group)] = chosen
                held[chosen].update(each for index in group for each in sets[index])
                sizes[chosen] += len(group)
    return fold


def _sets_of(labels: Labels, images: int) -> list[tuple[int, ...]]:
    if labels is None:
        return [(0,)] * images
    if len(labels) != images:
        raise UserError(f"{count(len(labels), 'label')} for {count(images, 'image')}. Expected one each.", key="labels")
    if isinstance(labels, PackedLabels):
        numbered = labels.by_head()
        return [tuple(sorted({*numbered[index]})) for index in range(images)]
    return [(int(each),) if isinstance(each, int | np.integer) else tuple(sorted({*map(int, each)})) for each in labels]


def _key_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.replace(os.sep, "/").encode()).digest()[:8], "big")


def _named(labels: Iterable[int], class_names: Sequence[str] | None) -> list[str]:
    return [class_names[label] if class_names is not None else str(label) for label in labels]
