"""Split a list of images into training and validation: stratified by class, near duplicates on one side.

Copies of an image (re-encoded, resized, brighter or darker) on both sides would make the validation too good: images that
look the same are one group, and a group is on one side. The draw is keyed by the seed and the names of the files, so that it is
the same on every machine, and adding images moves few others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from up.data.duplicates import identical_files, kept_apart, members, near_duplicates
from up.data.image_records import read_records
from up.errors import UserError
from up.files import write_json
from up.seed import key
from up.text import count, some_of
from up.types import Json


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
        }

    def write(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        """Write ``record`` as JSON, beside the meta files. Raises ``StorageError``."""
        write_json(path, self.record(class_names))

    def warnings(self, class_names: Sequence[str] | None = None) -> list[str]:
        """Describe probable mistakes in the data, a line each."""
        found = []
        for group in self.conflicts[:3]:
            shown = [f"{self.files[at]} ({', '.join(_named(self.labels[at], class_names))})" for at in group]
            found.append(f"the same image has two labels: {some_of(shown, 3)}. Correct one of them.")
        if len(self.conflicts) > 3:
            found.append(f"and {count(len(self.conflicts) - 3, 'other image')} with two labels.")
        if self.not_validated:
            classes = some_of(_named(self.not_validated, class_names), 5)
            found.append(f"{classes}: no two different images, so nothing validates the class. Add images.")
        if self.one_view:
            classes = some_of(_named(self.one_view, class_names), 5)
            found.append(f"{classes}: nearly all images look the same, so near duplicates are not kept on one side.")
        return found


def split_of(
    files: Sequence[str],
    labels: Sequence[int] | Sequence[Sequence[int]] | None = None,
    share: float = 0.2,
    seed: int = 0,
    *,
    root: str | Path = "",
) -> Split:
    """Split images into ``train`` and ``validation``, about ``share`` of each class.

    ``files`` are names relative to ``root``; the names decide the draw, the pixels which images are near duplicates. ``labels`` are
    one label an image, or a set of labels; None for unlabelled images. A class with at least two groups of images is on both sides,
    one with a single group is only trained on; with sets of labels that may be impossible for some class, which is then in
    ``not_validated``.

    Raises ``UserError`` for a ``share`` outside of 0 to 1, an empty list and a name that comes twice.
    """
    if not 0 < share < 1:
        raise UserError(got=share, expected="a share above 0 and below 1, such as 0.2", key="share")
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
    groups = members(alike)
    drawn = [key(seed, min(_key_of(names[index]) for index in group)) for group in groups]
    in_order = [groups[at] for at in sorted(range(len(groups)), key=drawn.__getitem__)]
    held_out = _Draw(in_order, sets, share).held_out()
    return Split(
        files=names,
        labels=sets,
        share=share,
        seed=seed,
        train=[index for index in range(len(names)) if index not in held_out],
        validation=sorted(held_out),
        near_duplicates=[group for group in groups if len(group) > 1],
        one_view=one_view,
        unreadable=sorted(records.faults),
    )


def _sets_of(labels: Sequence[int] | Sequence[Sequence[int]] | None, images: int) -> list[tuple[int, ...]]:
    if labels is None:
        return [(0,)] * images
    if len(labels) != images:
        raise UserError(f"{count(len(labels), 'label')} for {count(images, 'image')}. Expected one each.", key="labels")
    return [(int(each),) if isinstance(each, int | np.integer) else tuple(sorted({*map(int, each)})) for each in labels]


def _key_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.replace(os.sep, "/").encode()).digest()[:8], "big")


def _named(labels: Iterable[int], class_names: Sequence[str] | None) -> list[str]:
    return [class_names[label] if class_names is not None else str(label) for label in labels]


# --- the draw ---


class _Draw:
    """Choice of the groups to hold out, class by class from the rarest (Sechidis et al. 2011), in the order drawn."""

    def __init__(self, groups: Sequence[Sequence[int]], sets: Sequence[tuple[int, ...]], share: float) -> None:
        self._groups, self._share = groups, share
        self._labels = [Counter(label for index in group for label in sets[index]) for group in groups]
        self._of_class: dict[int, list[int]] = defaultdict(list)
        for at, labels in enumerate(self._labels):
            for label in labels:
                self._of_class[label].append(at)
        self._trained = {label: len(found) for label, found in self._of_class.items()}  # groups left for training
        self._chosen: set[int] = set()
        self._held: Counter[int] = Counter()  # images of each class in the groups chosen

    def held_out(self) -> set[int]:
        """Return the images for validation."""
        for label in sorted(self._of_class, key=lambda label: (len(self._of_class[label]), label)):
            self._choose(label)
        return {index for at in self._chosen for index in self._groups[at]}

    def _choose(self, label: int) -> None:
        of_class = self._of_class[label]
        wanted = max(1, round(self._share * sum(self._labels[at][label] for at in of_class)))
        for at in of_class:
            if self._held[label] + self._labels[at][label] <= wanted:
                self._take(at)
        for at in sorted(of_class, key=lambda at: self._labels[at][label]):  # every group is larger than the share
            if not self._held[label]:
                self._take(at)

    def _take(self, at: int) -> None:
        """Hold a group out, unless a class would be left without training images."""
        if at not in self._chosen and all(self._trained[label] > 1 for label in self._labels[at]):
            self._chosen.add(at)
            self._held += self._labels[at]
            self._trained.update((label, self._trained[label] - 1) for label in self._labels[at])
