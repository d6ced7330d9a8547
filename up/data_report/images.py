"""Images of data sets: every file read once and compared with all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from up.data.duplicates import MAX_DISTANCE, Groups, distances, identical_files, kept_apart, near_duplicates
from up.data.image_records import ImageRecords, Read, Track, read_records
from up.data_report.classes import ClassNumbering, classes_of
from up.data_report.sources import DataSource
from up.types import Record


@dataclass(frozen=True)
class CheckedImages:
    """All images of the sources: each file once a source, however often the source lists it.

    ``labels`` are the numbers in ``classes`` of all samples of the file, empty without labels; ``times`` (N,) counts its samples.
    """

    sources: Sequence[DataSource]
    classes: ClassNumbering
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
        names = self.classes.names
        return [names[label] if label < len(names) else str(label) for label in labels]

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
        counted = np.zeros((len(self.sources), len(self.classes.names)), np.int64)
        for row, source in zip(counted, self.sources, strict=True):
            found = self.classes.numbers_of(source)
            row += np.bincount(found[(found >= 0) & (found < len(row))], minlength=len(row))
        return counted


def read_images(
    sources: Sequence[DataSource], workers: int | None = None, track: Track | None = None, max_distance: int = MAX_DISTANCE
) -> CheckedImages:
    """Read the records of all files of ``sources`` and group duplicates."""
    classes = classes_of(sources)
    rows = [_files_of(source, classes.numbers_of(source)) for source in sources]
    source = np.repeat(np.arange(len(sources), dtype=np.int32), [len(first) for first, _, _ in rows])
    sample = np.concatenate([first for first, _, _ in rows])
    times = np.concatenate([number for _, number, _ in rows])
    labels = [tuple(sorted(each)) for _, _, sets in rows for each in sets]
    paths = [sources[int(at)].files.path_of(int(index)) for at, index in zip(source, sample, strict=True)]
    read: Read | None = next((each.read for each in sources if each.read is not None), None)
    records = read_records(paths, workers, track, read)
    exact = identical_files(records)
    near, one_view = kept_apart(near_duplicates(records, exact, max_distance), exact, labels)
    return CheckedImages(sources, classes, source, sample, times, labels, records, exact, near, one_view, max_distance)


def _files_of(source: DataSource, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[set[int]]]:
    """Return the first sample of each file, the number of its samples, and the set of the ``numbers`` of their labels."""
    place: dict[str, int] = {}
    file_of = [place.setdefault(source.files.path_of(index), len(place)) for index in range(len(source.files))]
    _, first, times = np.unique(file_of, return_index=True, return_counts=True)
    sets: list[set[int]] = [set() for _ in place]
    owners = () if source.labels is None else source.labels.owners().tolist()
    for owner, number in zip(owners, numbers.tolist(), strict=True):
        if number >= 0:
            sets[file_of[owner]].add(number)
    return first.astype(np.int64), times.astype(np.int64), sets
