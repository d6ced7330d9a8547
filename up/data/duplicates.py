"""Duplicate images: identical files by sha256, and images that look the same by dHash and a thumbnail.

dHash alone has false alarms where images are mostly background, as scans and digits are: of 1,797 handwritten digits thousands of
pairs differ in at most 4 of 64 bits. Images are near duplicates if dHash differs in at most 4 bits, along rows or along
columns, and the colours of their thumbnails correlate by at least .995. Re-encoded, resized, brighter and darker copies reach
.999; another crop, a rotation or a shift as of augmented images stays below, and so do digits of one class.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from up.data.image_records import SIDE, ImageRecords

Groups = NDArray[np.int64]  # (N,): the first image of the group of each image
MAX_DISTANCE = 4  # bits of 64
_ALIKE = 0.995  # correlation of the thumbnails
_SAME_PATTERN = 0.98  # the same, each colour channel with mean 0
_SAME_VIEW, _MANY = 0.8, 10  # a class of at least 10 images, of which one group holds 80 %, is all of one view
_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


def identical_files(records: ImageRecords) -> Groups:
    """Group the files of the same content; a file that cannot be opened is alone."""
    first: dict[bytes, int] = {}
    digests = enumerate(digest.tobytes() for digest in records.sha256)
    return np.array([first.setdefault(digest, index) if any(digest) else index for index, digest in digests], np.int64)


def near_duplicates(records: ImageRecords, exact: Groups, max_distance: int = MAX_DISTANCE) -> Groups:
    """Group the images that look the same, also by way of others; ``exact`` are the groups of identical files."""
    group = exact.copy()
    thumbnails = records.thumbnails
    lengths = np.sqrt(np.einsum("np,np->n", thumbnails, thumbnails, dtype=np.float32).astype(np.float64))
    compared = np.flatnonzero((exact == np.arange(len(exact))) & (lengths > 0))
    for left, right in _close(records.hashes[compared], max_distance):
        first, second = compared[left], compared[right]
        apart = group[first] != group[second]
        first, second = first[apart], second[apart]
        products = np.einsum("np,np->n", thumbnails[first], thumbnails[second], dtype=np.float32) if len(first) else first
        alike = products >= _ALIKE * lengths[first] * lengths[second]
        alike[alike] = _same_pattern(thumbnails[first[alike]], thumbnails[second[alike]])
        for one, other in zip(first[alike].tolist(), second[alike].tolist(), strict=True):
            found = sorted((int(group[one]), int(group[other])))
            if found[0] != found[1]:
                group[group == found[1]] = found[0]
    return group


def _same_pattern(one: NDArray[np.int8], other: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Compare thumbnails (N, 432) without their mean colours: of nearly flat images these are most of the correlation."""
    pixels = [each.reshape(len(each), SIDE * SIDE, 3).astype(np.float32) for each in (one, other)]
    left, right = ((each - each.mean(axis=1, keepdims=True)).reshape(len(each), 3 * SIDE * SIDE) for each in pixels)
    found: NDArray[np.bool_] = (left * right).sum(axis=1) >= _SAME_PATTERN * np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return found


def _close(hashes: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[Groups, Groups]]:
    """Yield pairs of images whose hashes differ in at most ``max_distance`` bits, in either direction.

    Of ``max_distance`` + 1 parts of the bits one is equal in such a pair (pigeonhole principle), so that only images that share
    a part are compared. A part has bits of the whole image: neighbouring bits are too often the same.
    """
    parts = max_distance + 1
    for column in hashes.T:
        bits = np.unpackbits(column.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(np.uint64)
        for part in range(parts):
            chosen = bits[:, part::parts]
            value = chosen @ (np.uint64(1) << np.arange(chosen.shape[1], dtype=np.uint64))
            order = np.argsort(value, kind="stable")
            value, hashed = value[order], column[order]
            left = np.arange(len(value))
            for step in count(1):
                left = left[left < len(value) - step]
                left = left[value[left] == value[left + step]]
                if not len(left):
                    break
                close = left[distances(hashed[left], hashed[left + step]) <= max_distance]
                if len(close):
                    yield order[close], order[close + step]


def distances(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits in which hashes (N,) differ."""
    differing = np.atleast_1d(one ^ other)
    counted: NDArray[np.int64] = _ONES[differing.view(np.uint16)].reshape(-1, 4).sum(axis=1, dtype=np.int64)
    return counted


def members(group: Groups) -> list[list[int]]:
    """List the images of each group, by the first image."""
    found: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(group.tolist()):
        found[number].append(index)
    return list(found.values())


def joined(group: Groups, texts: Sequence[str]) -> Groups:
    """Join the groups of images with the same text (N,); an empty text joins nothing."""
    numbers, joined_to = group.tolist(), list(range(len(group)))  # each group to one with a lower number

    def lowest(number: int) -> int:
        while joined_to[number] != number:
            joined_to[number] = number = joined_to[joined_to[number]]
        return number

    first: dict[str, int] = {}
    for number, text in zip(numbers, texts, strict=True):
        if text:
            low, high = sorted((lowest(number), lowest(first.setdefault(text, number))))
            joined_to[high] = low
    return np.array([lowest(number) for number in numbers], np.int64)


def kept_apart(near: Groups, exact: Groups, sets: Sequence[tuple[int, ...]]) -> tuple[Groups, list[int]]:
    """Dissolve groups that hold nearly a whole class into those of identical files; also return these classes.

    All images of a fixed camera look the same: they are not copies of one image.
    """
    totals = Counter(label for labels in sets for label in labels)
    dissolved, one_view = near.copy(), set()
    for group in members(near):
        held = Counter(label for index in group for label in sets[index])
        of_one_view = {label for label, images in held.items() if totals[label] >= _MANY and images > _SAME_VIEW * totals[label]}
        if of_one_view:
            one_view |= of_one_view
            dissolved[group] = exact[group]
    return dissolved, sorted(one_view)
