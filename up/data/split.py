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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.data.bad_images import BadImage
from up.data.decoding import MAX_PIXELS, QUIET, open_image, upright_rgb
from up.errors import UserError
from up.files import write_json
from up.seed import key
from up.text import count, some_of
from up.types import Json

_SIDE = 12  # pixels of the thumbnails that are compared
_ALIKE = 0.995  # correlation of the thumbnails of near duplicates: re-encoded copies of photos reach .999, others stay below
_FLAT = 2.0  # levels: an image with a smaller standard deviation shows nothing that could be compared
_STEPS = 24  # of a standard deviation; dot products of such integers are exact in float32, in any order of the sum
_BLOCK = 128  # images compared with all others at a time: 30 MB for 20,000 images
_READ_AT = 64  # pixels that a JPEG is decoded to at least, which is much quicker than in full
_WORKERS = 8
_SAME_VIEW, _MANY = 0.8, 10  # a class of at least 10 images, of which one group holds 80 %, is all of one view


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
    digests, thumbnails, unreadable = _read_all([os.path.join(root, name) for name in names])
    exact = _same(digests)
    alike, one_view = _kept_apart(_near(thumbnails, exact), exact, sets)
    groups = _members(alike)
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
        unreadable=unreadable,
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


# --- near duplicates ---


def _read_all(paths: Sequence[str]) -> tuple[list[bytes], NDArray[np.int8], list[int]]:
    """Return the hash of each file, the thumbnails (N, 432) and the images that cannot be read."""
    with QUIET, ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:  # Pillow and hashlib release the GIL
        read = list(pool.map(_read, paths))
    blank = np.zeros(3 * _SIDE * _SIDE, np.int8)
    thumbnails = np.stack([blank if thumbnail is None else thumbnail for _, thumbnail in read])
    return [digest for digest, _ in read], thumbnails, [index for index, (_, found) in enumerate(read) if found is None]


def _read(path: str) -> tuple[bytes, NDArray[np.int8] | None]:
    encoded = b""
    try:
        encoded, opened = open_image(path, None, MAX_PIXELS)
        opened.draft("RGB", (_READ_AT, _READ_AT))
        digest = hashlib.sha256(encoded).digest()
        return digest, _standardized(upright_rgb(opened))
    except BadImage:
        return path.encode(), None
    except MemoryError:
        raise
    except Exception:  # Pillow's decoders raise many kinds of errors; reported when the image is read for training
        return hashlib.sha256(encoded).digest(), None


def _standardized(image: Image.Image) -> NDArray[np.int8]:
    """Reduce to 12 x 12 pixels with mean 0 and a standard deviation of 24, so that brightness and contrast do not matter."""
    levels = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float64).ravel()
    centred = levels - levels.mean()
    deviation = np.sqrt((centred * centred).mean())
    if deviation < _FLAT:
        return np.zeros(len(levels), np.int8)
    scaled: NDArray[np.int8] = np.rint(centred * (_STEPS / deviation)).clip(-127, 127).astype(np.int8)
    return scaled


def _same(digests: Sequence[bytes]) -> NDArray[np.int64]:
    """Number the groups of identical files, each by its first file (N,)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(digest, index) for index, digest in enumerate(digests)])


def _near(thumbnails: NDArray[np.int8], exact: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the groups of images that look the same, also by way of others, each by its first image (N,)."""
    group = exact.copy()
    vectors = thumbnails.astype(np.float32)
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        products = vectors[rows] @ vectors[start:].T
        near = (products >= _ALIKE * lengths[rows, None] * lengths[None, start:]) & (products > 0)
        for row in np.flatnonzero(near.sum(axis=1) > 1):
            found = np.unique(group[start + np.flatnonzero(near[row])])
            if len(found) > 1:
                group[np.isin(group, found)] = found[0]
    return group


def _members(group: NDArray[np.int64]) -> list[list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(group.tolist()):
        members[number].append(index)
    return list(members.values())


def _kept_apart(
    near: NDArray[np.int64], exact: NDArray[np.int64], sets: Sequence[tuple[int, ...]]
) -> tuple[NDArray[np.int64], list[int]]:
    """Dissolve groups that hold nearly a whole class into those of identical files; also return these classes."""
    totals = Counter(label for labels in sets for label in labels)
    dissolved, one_view = near.copy(), set()
    for group in _members(near):
        held = Counter(label for index in group for label in sets[index])
        of_one_view = {label for label, images in held.items() if totals[label] >= _MANY and images > _SAME_VIEW * totals[label]}
        if of_one_view:
            one_view |= of_one_view
            dissolved[group] = exact[group]
    return dissolved, sorted(one_view)


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
