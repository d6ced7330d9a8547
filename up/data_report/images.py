"""Images of data sets: every file read once and compared with all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from up.data.duplicates import MAX_DISTANCE, Groups, distances, identical_files, kept_apart, near_duplicates
from up.data.image_records import ImageRecords, Read, Track, read_records
from up.data_report.sources import DataSource
from up.types import Record


@dataclass(frozen=True)
class CheckedImages:
    """All images of the sources: each file once a source, however often the source lists it.

    ``labels`` are the numbers in ``classes`` of all samples of the file, empty without labels; ``times`` (N,) counts its samples.
    """

    sources: Sequence[DataSource]
    classes: Sequence[str]
    source: NDArray[np.int32]  # (N,) position in ``sources``
    sample: NDArray[np.int64]  # (N,) first sample in the source
    times: NDArray[np.int64]
    labels: Sequence[tuple[int, ...]]
    records: ImageRecords
    exact: Groups
    near: Groups
    one_view: Sequence[int]
    max_distance: int

    def __len__(self) -> int:
        return len(self.source)

    def of(self, index: int) -> DataSource:
        """Return the source of an image."""
        return self.sources[int(self.source[index])]

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return self.of(index).files.path_of(int(self.sample[index]))

    def name(self, index: int) -> str:
        """Return the name of an image in its data set."""
        return self.of(index).files.names[int(self.sample[index])]

    def where(self, index: int) -> str:
        """Return the name of an image, after the file and line that list it."""
        return str(self.of(index).files.where(int(self.sample[index])))

    def split(self, index: int) -> str:
        """Return the name of the data set of an image."""
        return self.of(index).name

    def named(self, labels: Sequence[int]) -> list[str]:
        """Return the names of classes."""
        return [self.classes[label] if label < len(self.classes) else str(label) for label in labels]

    def describe(self, index: int, detail: str = "") -> Record:
        """Describe an image for a report."""
        return {
            "split": self.split(index),
            "name": self.name(index),
            "path": self.path(index),
            "labels": self.named(self.labels[index]),
            "detail": detail,
            "figure": None,
        }

    def bits_from(self, first: int, index: int) -> int:
        """Count the bits in which dHash of two images differs, in the direction where they are fewer."""
        return int(distances(self.records.hashes[first], self.records.hashes[index]).min())

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each class in each source (sources, classes)."""
        counted = np.zeros((len(self.sources), len(self.classes)), np.int64)
        for row, source in zip(counted, self.sources, strict=True):
            if source.labels is not None:
                numbers = self.numbers_of(source)
                found = numbers[source.labels.values.ravel()]
                row += np.bincount(found[found < len(row)], minlength=len(row))
        return counted

    def numbers_of(self, source: DataSource) -> NDArray[np.int64]:
        """Return the position in ``classes`` of each label of a source."""
        return _positions(source, self.classes)


def read_images(
    sources: Sequence[DataSource], workers: int | None = None, track: Track | None = None, max_distance: int = MAX_DISTANCE
) -> CheckedImages:
    """Read the records of all files of ``sources`` and group duplicates."""
    classes = _classes_of(sources)
    rows = [_files_of(source) for source in sources]
    source = np.repeat(np.arange(len(sources), dtype=np.int32), [len(first) for first, _, _ in rows])
    sample = np.concatenate([first for first, _, _ in rows])
    times = np.concatenate([number for _, number, _ in rows])
    labels = [
        tuple(sorted({int(position[label]) for label in each}))
        for found, (_, _, sets) in zip(sources, rows, strict=True)
        for position in [_positions(found, classes)]
        for each in sets
    ]
    paths = [sources[int(at)].files.path_of(int(index)) for at, index in zip(source, sample, strict=True)]
    read: Read | None = next((each.read for each in sources if each.read is not None), None)
    records = read_records(paths, workers, track, read)
    exact = identical_files(records)
    near, one_view = kept_apart(near_duplicates(records, exact, max_distance), exact, labels)
    return CheckedImages(sources, classes, source, sample, times, labels, records, exact, near, one_view, max_distance)


def _files_of(source: DataSource) -> tuple[NDArray[np.int64], NDArray[np.int64], list[set[int]]]:
    """Return the first sample of each file, the number of its samples, and the set of their labels."""
    first: dict[str, int] = {}
    owner = [first.setdefault(source.files.path_of(index), index) for index in range(len(source.files))]
    place = {index: at for at, index in enumerate(first.values())}
    sets: list[set[int]] = [set() for _ in place]
    times = np.zeros(len(place), np.int64)
    for index, original in enumerate(owner):
        times[place[original]] += 1
        if source.labels is not None:
            sets[place[original]].update(source.labels[index])
    return np.array(list(place), np.int64), times, sets


def _classes_of(sources: Sequence[DataSource]) -> list[str]:
    """List the names of all classes, those of the first source first; numbers where classes have no names."""
    largest = max((int(each.labels.values.max(initial=-1)) for each in sources if each.labels is not None), default=-1)
    limit = max([largest + 1, *(each.limit or 0 for each in sources)])
    names = list(dict.fromkeys(name for each in sources if each.labels is not None for name in each.classes or ()))
    return names + [str(label) for label in range(len(names), min(limit, 1 << 20))]


def _positions(source: DataSource, classes: Sequence[str]) -> NDArray[np.int64]:
    largest = 0 if source.labels is None else int(source.labels.values.max(initial=0))
    numbers = np.arange(largest + 1)
    if source.classes:
        place = {name: at for at, name in enumerate(classes)}
        known = np.array([place[name] for name in source.classes[: largest + 1]], np.int64)
        numbers[: len(known)] = known
    return numbers
