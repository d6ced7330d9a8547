"""Findings about the images of data sets, the most serious first: what is wrong, which images, and what to do."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from up.data.duplicates import members
from up.data_report.images import CheckedImages
from up.data_report.sources import DataSource
from up.errors import Problem
from up.text import count, some_of
from up.types import Record

Severity = Literal["error", "warning", "note"]

LISTED = 200  # groups of images of a finding; the rest is counted
_TOGETHER = 12  # images listed of a group
_FEW = 5  # images of a class, below which it is hardly learned
_IMBALANCE = 10.0  # images of the largest class over those of the smallest
_ENOUGH = 20  # images by which outliers are told
_RARE = 0.01  # largest share of the images that are outliers: a property of more images is usual
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
    "JPEG2000": (".jp2",),
}


class Kind(NamedTuple):
    """A kind of finding: its severity, its title, and what to do."""

    severity: Severity
    title: str
    fix: str


KINDS = {
    "problem": Kind("error", "lists that cannot be read", "Correct the line: training stops there."),
    "missing": Kind("error", "files that do not exist", "Copy them, or remove their lines."),
    "empty": Kind("error", "empty files", "Copy them again, or remove them."),
    "truncated": Kind("error", "truncated images", "Copy them again, or remove them."),
    "unreadable": Kind("error", "files that are not readable images", "Repair, convert or remove them."),
    "label_range": Kind("error", "labels out of range", "Correct the labels, or num_classes."),
    "unknown_class": Kind("error", "classes that are not trained on", "Rename or remove them: training stops there."),
    "leak_identical": Kind("error", "identical files in two data sets", "Remove them from one: the result would be too good."),
    "leak_similar": Kind("error", "near duplicates in two data sets", "Keep them in one: `up data split` does."),
    "two_labels": Kind("warning", "the same image with different labels", "Correct one of the labels."),
    "identical": Kind("warning", "identical files in one data set", "Remove the copies: they count twice."),
    "similar": Kind("warning", "near duplicates in one data set", "Look at them; `up data split` keeps them on one side."),
    "listed_twice": Kind("warning", "files listed twice", "Remove one of the lines."),
    "similar_names": Kind("warning", "names that differ by case or spaces only", "Rename one: some systems take them as one."),
    "wrong_suffix": Kind("warning", "files whose name does not fit their content", "Rename or convert them."),
    "not_read": Kind("warning", "images left out because of their name", "Rename them, so that they are read."),
    "missing_class": Kind("warning", "classes without an image in a data set", "Add images of each class."),
    "few_images": Kind("warning", f"classes of fewer than {_FEW} training images", "Add images, or sample them more often."),
    "imbalance": Kind("warning", "imbalanced classes", "See docs/imbalance.md."),
    "size": Kind("note", "images of an unusual size", "Look at them."),
    "shape": Kind("note", "images of an unusual aspect ratio", "Look at them: a square crop shows a small part."),
    "mode": Kind("note", "images of an unusual colour mode", "Look at them; readers convert them to RGB."),
    "file_size": Kind("note", "files of an unusual size", "Look at them: nearly empty, or not compressed?"),
    "one_view": Kind("note", "classes whose images look nearly all the same", "Near duplicates are not listed for them."),
}


class Group(NamedTuple):
    """Images that one fault is about, or none, with a text."""

    images: Sequence[int] = ()
    text: str = ""
    details: Sequence[str] = ()


def findings(images: CheckedImages, problems: Sequence[Problem]) -> list[Record]:
    """List all findings, one record a kind, in the order of ``KINDS``."""
    found: dict[str, list[Group]] = defaultdict(list)
    found["problem"] += [Group(text=str(problem)) for problem in problems]
    for kind, group in (*_unreadable(images), *_duplicates(images), *_names(images), *_labels(images), *_outliers(images)):
        found[kind].append(group)
    return [_record(kind, found[kind], images) for kind in KINDS if found[kind]]


def _record(kind: str, groups: Sequence[Group], images: CheckedImages) -> Record:
    listed = [
        {
            "text": group.text,
            "images": [
                images.describe(index, group.details[at] if at < len(group.details) else "")
                for at, index in enumerate(group.images[:_TOGETHER])
            ],
            "images_left_out": max(0, len(group.images) - _TOGETHER),
        }
        for group in groups[:LISTED]
    ]
    number = len(groups)
    return {"kind": kind, **KINDS[kind]._asdict(), "count": number, "groups": listed, "groups_left_out": number - len(listed)}


Found = Iterator[tuple[str, Group]]


def _unreadable(images: CheckedImages) -> Found:
    for index, (fault, reason) in sorted(images.records.faults.items()):
        yield fault, Group([index], f"{images.where(index)}: {reason}")
    for index, kind in enumerate(images.records.formats):
        suffix = os.path.splitext(images.name(index))[1].lower()
        if kind in _SUFFIXES and suffix not in _SUFFIXES[kind] and index not in images.records.faults:
            yield (
                "wrong_suffix",
                Group([index], f"{images.where(index)}: content is {kind}, the name ends in {suffix or 'nothing'}"),
            )
    for source in images.sources:
        yield from (("not_read", Group(text=f"{source.name}: {name}")) for name in source.not_read)


def _duplicates(images: CheckedImages) -> Found:
    for group in members(images.near):
        if len(group) < 2:
            continue
        firsts = sorted({*images.exact[group].tolist()})
        copies = [[index for index in group if images.exact[index] == first] for first in firsts]
        for same in copies:
            if len(same) > 1:
                leaks = len({int(images.source[index]) for index in same}) > 1
                yield "leak_identical" if leaks else "identical", Group(same, _equals(images, same, "identical to"))
        if len(copies) > 1:
            sides = [{int(images.source[index]) for index in same} for same in copies]
            leaks = any(one | other != one & other for at, one in enumerate(sides) for other in sides[at + 1 :])
            firsts = [same[0] for same in copies]
            firsts += [index for same in copies for index in same if leaks and images.source[index] != images.source[same[0]]]
            details = [f"{count(images.bits_from(firsts[0], index), 'bit')} of dHash differ" for index in firsts]
            text = _equals(images, firsts, "looks like")
            yield "leak_similar" if leaks else "similar", Group(firsts, text, ["", *details[1:]])
        if len({images.labels[index] for index in group if images.labels[index]}) > 1:
            yield "two_labels", Group(group, some_of((_labelled(images, index) for index in group), 4))
    if images.one_view:
        yield "one_view", Group(text=some_of(images.named(images.one_view), 8))


def _equals(images: CheckedImages, group: Sequence[int], relation: str) -> str:
    others = some_of((f"{images.split(index)}: {images.name(index)}" for index in group[1:]), 3)
    return f"{images.split(group[0])}: {images.name(group[0])} {relation} {others}"


def _labelled(images: CheckedImages, index: int) -> str:
    return f"{images.split(index)}: {images.name(index)} ({', '.join(images.named(images.labels[index])) or 'no label'})"


def _names(images: CheckedImages) -> Found:
    for number, source in enumerate(images.sources):
        alike: dict[str, list[int]] = defaultdict(list)
        for index in np.flatnonzero(images.source == number).tolist():
            alike["".join(images.path(index).split()).casefold()].append(index)
            if images.times[index] > 1 and not source.boxes:
                yield "listed_twice", Group([index], f"{images.where(index)}: listed {images.times[index]} times")
        for group in alike.values():
            if len(group) > 1:
                yield "similar_names", Group(group, f"{source.name}: {some_of((repr(images.name(index)) for index in group), 4)}")
    classes: dict[str, list[str]] = defaultdict(list)
    for name in images.classes.names:
        classes["".join(name.split()).casefold()].append(name)
    for names in classes.values():
        if len(names) > 1:
            yield "similar_names", Group(text=f"classes {some_of(map(repr, names), 4)}")


def _labels(images: CheckedImages) -> Found:
    counts = images.counts
    is_known = images.classes.is_known
    trained = {*(images.sources[0].classes or ())}
    for source in images.sources:
        yield from _out_of_range(images, source, trained)
    for number, source in enumerate(images.sources):
        if source.labels is None:
            continue
        for label, name in enumerate(images.classes.names):
            if counts[number][label] and trained and name not in trained:
                if is_known[label] or name in (source.classes or ()):
                    yield "unknown_class", Group(text=f"{source.name}: {name} ({count(int(counts[number][label]), 'image')})")
            elif is_known[label] and counts[number][label] == 0 and (number or not trained or name in trained):
                yield "missing_class", Group(text=f"{source.name}: {name}")
    yield from _balance(images, np.where(is_known, counts, 0))


def _out_of_range(images: CheckedImages, source: DataSource, trained: Collection[str]) -> Found:
    """Report labels that are not a class; labels of a named class that is not ``trained`` are reported by its name elsewhere."""
    limits = source.limits
    if source.labels is None or limits is None:
        return
    values, names, heads = source.labels.values.ravel(), source.classes or (), source.labels.heads
    has_heads = source.labels.values.ndim > 1
    classes = images.classes.numbers_of(source)  # by name: sources number their own
    wrong = np.flatnonzero((classes < 0) | ((values if has_heads else classes) >= limits))
    owners = source.labels.owners() if len(wrong) else wrong
    for at in wrong.tolist():
        label = int(values[at])
        if 0 <= label < len(names) and trained and names[label] not in trained:
            continue
        where = source.files.where(int(owners[at]))
        which = f"head{at % heads}: " if has_heads and heads else ""
        yield "label_range", Group(text=f"{where}: {which}label {label}, expected 0 to {limits[at] - 1}")


def _balance(images: CheckedImages, counts: NDArray[np.int64]) -> Found:
    trained = next((at for at, source in enumerate(images.sources) if source.name == "train" and source.labels is not None), None)
    if trained is None:
        return
    for classes in images.classes.by_head():
        filled = [label for label in classes.tolist() if counts[trained][label]]
        if filled:
            yield from _balance_of(images, counts[trained], sorted(filled, key=lambda label: int(counts[trained][label])))


def _balance_of(images: CheckedImages, counts: NDArray[np.int64], ordered: Sequence[int]) -> Found:
    """Compare the classes of one head, the rarest first."""
    for label in ordered:
        if counts[label] < _FEW:
            yield "few_images", Group(text=f"train: {images.named([label])[0]} has {count(int(counts[label]), 'image')}")
    least, most = ordered[0], ordered[-1]
    ratio = counts[most] / counts[least]
    if ratio >= _IMBALANCE:
        names = images.named([most, least])
        sizes = [f"{counts[label]:,}" for label in (most, least)]
        yield "imbalance", Group(text=f"train: {names[0]} has {sizes[0]} images, {names[1]} {sizes[1]}: {ratio:.0f} times as many")


def _outliers(images: CheckedImages) -> Found:
    """Report images far from the median, in robust standard deviations and as a factor, where few images are."""
    records = images.records
    readable = np.array([index for index in range(len(images)) if index not in records.faults], np.int64)
    if len(readable) < _ENOUGH:
        return
    width, height = (values[readable].astype(np.float64) for values in (records.width, records.height))
    long, short = np.maximum(width, height), np.minimum(width, height)
    measures = {
        "size": (np.log(width * height), 16.0),
        "shape": (np.log(long / short), 3.0),
        "file_size": (np.log(records.bytes[readable]), 20.0),
    }
    for kind, (values, factor) in measures.items():
        for at in _far(readable, values, factor):
            shown = f"{records.width[at]} x {records.height[at]} pixels, {records.bytes[at]:,} bytes"
            yield kind, Group([at], f"{images.where(at)}: {shown}")
    modes = Counter(records.modes[index] for index in readable.tolist())
    rare = {mode for mode, number in modes.items() if number <= _at_most(len(readable))}
    usual = modes.most_common(1)[0][0]
    for index in readable.tolist():
        if records.modes[index] in rare:
            yield "mode", Group([index], f"{images.where(index)}: mode {records.modes[index]}, usual is {usual}")


def _at_most(images: int) -> int:
    return max(1, int(_RARE * images))


def _far(indices: NDArray[np.int64], values: NDArray[np.float64], factor: float) -> Iterable[int]:
    """Return the images whose value, a logarithm, is a ``factor`` and six robust standard deviations from the median."""
    away = np.abs(values - np.median(values))
    limit = max(np.log(factor), 6 * 1.4826 * float(np.median(away)))
    found: list[int] = indices[away > limit].tolist()
    return found if len(found) <= _at_most(len(indices)) else ()
