"""Classes of several data sets in one list, each label by its number there; the classes of each head are apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from up.data.packed import classes_of_heads
from up.data_report.sources import DataSource

_LISTED = 1 << 20  # classes without a name


@dataclass(frozen=True)
class ClassNumbering:
    """Classes by their number in ``names``.

    ``head`` (N,) is the head of each class, 0 without several heads, ``is_known`` (N,) whether the sources allow its label, and
    ``sizes`` the number of classes of each head; it is empty without several heads.
    """

    names: Sequence[str]
    head: NDArray[np.int64]
    is_known: NDArray[np.bool_]
    sizes: Sequence[int] = ()

    def numbers_of(self, source: DataSource) -> NDArray[np.int64]:
        """Return the number of every label of a source (labels,), -1 for a label below 0."""
        if source.labels is None:
            return np.zeros(0, np.int64)
        values = source.labels.values
        if self.sizes:  # a source with one label an image: of the first head
            first = np.cumsum([0, *self.sizes[:-1]])
            return np.where(values < 0, -1, values + (first[: values.shape[1]] if values.ndim > 1 else 0)).ravel()
        numbers = np.arange(int(values.max(initial=0)) + 1)
        if source.classes:
            place = {name: at for at, name in enumerate(self.names)}
            known = np.array([place[name] for name in source.classes[: len(numbers)]], np.int64)
            numbers[: len(known)] = known
        return np.where(values < 0, -1, numbers[np.maximum(values, 0)]).ravel()

    def by_head(self) -> Iterator[NDArray[np.int64]]:
        """Yield the numbers of the classes of each head."""
        yield from (np.flatnonzero(self.head == head) for head in range(len(self.sizes) or 1))


def classes_of(sources: Sequence[DataSource]) -> ClassNumbering:
    """List all classes, those of the first source first, by name where they have one."""
    if any(each.labels is not None and each.labels.values.ndim > 1 for each in sources):
        return _of_heads(sources)
    largest = max((int(each.labels.values.max(initial=-1)) for each in sources if each.labels is not None), default=-1)
    limits = [each.limit for each in sources if isinstance(each.limit, int)]
    names = list(dict.fromkeys(name for each in sources if each.labels is not None for name in each.classes or ()))
    names += [str(label) for label in range(len(names), min(max([largest + 1, *limits]), _LISTED))]
    return ClassNumbering(names, np.zeros(len(names), np.int64), np.arange(len(names)) < min(limits, default=len(names)))


def _of_heads(sources: Sequence[DataSource]) -> ClassNumbering:
    labels = [each.labels.values for each in sources if each.labels is not None]
    columns = [values if values.ndim > 1 else values[:, None] for values in labels]
    sizes, limits = [], []
    for head in range(max(each.shape[1] for each in columns)):
        largest = max(int(each[:, head].max(initial=-1)) for each in columns if head < each.shape[1])
        declared = [each.limit[head] for each in sources if isinstance(each.limit, Sequence) and head < len(each.limit)]
        limits.append(min(declared, default=min(largest + 1, _LISTED)))
        sizes.append(min(max(largest + 1, limits[-1]), _LISTED))
    is_known = [label < limit for size, limit in zip(sizes, limits, strict=True) for label in range(size)]
    return ClassNumbering(classes_of_heads(sizes), np.repeat(np.arange(len(sizes)), sizes), np.array(is_known, bool), sizes)
