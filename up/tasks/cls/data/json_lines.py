"""Meta files of JSON lines: ``custom_cls`` and ``custom_det``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from up.data.keyed_lines import KeyedLines, keyed_lines
from up.data.listing import LineError, Rows, blocks, json_chunk, json_rows, lines_of
from up.data.packed import PackedLabels
from up.data.plain_lines import JSON_LABEL, PlainLines, plain_lines
from up.tasks.cls.data.metas import LARGEST, MetaSource, SampleTable, labelled
from up.text import some_of
from up.types import Json, Record

_OF_A_LINE = ("filename", "label")  # custom_cls
_T = TypeVar("_T")


def custom_cls(source: MetaSource) -> SampleTable:
    """Read JSON ``{"filename": …, "label": …}`` on each line; a list of labels is one a head, or a set if ``multilabel``.

    Other keys are ignored and a label in quotes is read as a number, each with one note for the file.
    """
    rows = Rows(source.path, source.root)
    labels: list[Json] = []
    arrays: list[NDArray[np.int64]] = []
    read = _LabelledLine(source)
    for first, block in blocks(source.path):
        plain = read.plain(block)
        if plain is not None:
            rows.extend_plain(plain, first)
            arrays.append(plain.labels)
            continue
        keyed = read.keyed(block, first)
        if keyed is not None:
            rows.extend(keyed.names, range(first, first + len(keyed.names)))
            arrays.append(keyed.labels)
            continue
        found, lines = json_chunk(rows, first, lines_of(block), read)
        rows.extend([name for name, _ in found], lines)
        if source.multilabel:
            labels += [label for _, label in found]
        elif found:
            arrays.append(np.array([label for _, label in found], dtype=np.int64))
    joined = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
    packed = PackedLabels.of_sets(labels) if source.multilabel else PackedLabels(joined)
    return labelled(rows, source, packed, notes=read.notes())


def custom_det(source: MetaSource) -> SampleTable:
    """Read JSON lines of a detection data set: every instance is a sample, the crop of its box, with label - 1.

    ``{"filename": …, "instances": [{"bbox": [x1, y1, x2, y2], "label": from 1 on, "is_ignored": …}]}`` in pixels;
    ignored instances and small boxes are dropped, other keys do not matter.
    """
    rows = Rows(source.path, source.root)
    labels: list[int] = []
    boxes: list[list[float]] = []
    for found, lines in json_rows(rows, lambda record, _: (_filename(record), _instances(record, source.min_size))):
        counts = [len(instances) for _, instances in found]
        rows.extend(_each(counts, [name for name, _ in found]), _each(counts, lines))
        boxes += [box for _, instances in found for box, _ in instances]
        labels += [label for _, instances in found for _, label in instances]
    packed = PackedLabels(np.array(labels, dtype=np.int64))
    return labelled(rows, source, packed, np.array(boxes, dtype=np.float32).reshape(-1, 4))


class _LabelledLine:
    """Reads a line of ``custom_cls``; all lines of a file have the same number of labels unless they are sets."""

    def __init__(self, source: MetaSource) -> None:
        self._path = source.path
        self._ignored: dict[str, int] = {}  # keys, each with the first line that has it
        self._quoted: tuple[int, str] | None = None  # the first line with a label in quotes, and the label
        self._multilabel = source.multilabel
        self._arity = len(source.num_classes) if isinstance(source.num_classes, Sequence) else None

    def __call__(self, record: Record, line: int) -> tuple[bytes, Json]:
        _expect_keys(record, required=_OF_A_LINE)
        if len(record) > len(_OF_A_LINE):
            self._note_ignored(record, line)
        name, label = _filename(record), self._unquoted(record["label"], line)
        if not self._multilabel:
            self._arity = _expect_arity(label, self._arity)
        for value in label if isinstance(label, list) else [label]:
            if type(value) is not int or not 0 <= value <= LARGEST:  # bool is an int to Python
                raise LineError(f"label {json.dumps(value)[:60]}. Expected an integer from 0 on.")
        return name, [label] if self._multilabel and isinstance(label, int) else label

    def plain(self, block: bytes) -> PlainLines | None:
        """Read a block of lines with one label each and nothing else; None for any other."""
        if self._multilabel or self._arity:
            return None
        found = next((plain for form in JSON_LABEL if (plain := plain_lines(block, form)) is not None), None)
        self._arity = self._arity if found is None else 0
        return found

    def keyed(self, block: bytes, first: int) -> KeyedLines | None:
        """Read a block of lines from line ``first`` on, each with one label and the same keys; None for any other."""
        found = None if self._multilabel or self._arity else keyed_lines(block)
        if found is not None:
            self._arity = 0
            self._note_ignored(found.keys, first)
        return found

    def _note_ignored(self, keys: Iterable[str], line: int) -> None:
        for key in keys:
            if key not in _OF_A_LINE:
                self._ignored.setdefault(key, line)

    def notes(self) -> Iterator[str]:
        """Report ignored keys and converted labels, a line each."""
        if self._ignored:
            keys = some_of([repr(key) for key in self._ignored], 5)
            yield f"{self._path}:{min(self._ignored.values())}: custom_cls reads filename and label; ignored: {keys}."
        if self._quoted is not None:
            line, label = self._quoted
            yield f"{self._path}:{line}: the label {label} is in quotes and was read as a number, here and below."

    def _unquoted(self, label: Json, line: int) -> Json:
        """Convert ``"3"`` to 3, alone or in a list; anything else stays unchanged."""
        if isinstance(label, list):
            return [self._unquoted(each, line) for each in label]
        if not (isinstance(label, str) and label.isascii() and label.isdigit() and len(label) <= 10):
            return label
        self._quoted = self._quoted or (line, json.dumps(label))
        return int(label)


def _each(counts: list[int], values: list[_T]) -> list[_T]:
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]


def _expect_keys(record: Record, required: tuple[str, ...]) -> None:
    missing = [key for key in required if key not in record]
    if missing:
        others = [key for key in record if key not in required]
        found = f", got {some_of([repr(key) for key in others], 3)} instead" if others else ""
        raise LineError(f"missing key {missing[0]!r}{found}. Expected {some_of(required)}.")


def _filename(record: Record) -> bytes:
    name = record.get("filename")
    if not isinstance(name, str) or not name:
        raise LineError(f"filename {json.dumps(name)}. Expected a path.")
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise LineError(f"filename {name!r} contains half a surrogate pair") from None


def _expect_arity(label: Json, expected: int | None) -> int:
    """Count the labels of a line (0: a label that is not a list). Raises ``LineError`` where other lines have another number."""
    found = len(label) if isinstance(label, list) else 0
    if expected is not None and found != expected:
        wanted = f"a list of {expected}, one for each head" if expected else "one integer, as in the lines before"
        raise LineError(f"label {json.dumps(label)[:60]}. Expected {wanted}. (A set of labels needs multilabel: true.)")
    if found == 0 and isinstance(label, list):
        raise LineError("label []. Expected at least one label.")
    return found


def _instances(record: Record, min_size: float) -> list[tuple[list[float], int]]:
    """List the boxes to use, each with its label."""
    instances = record.get("instances", [])
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise LineError("instances: expected a list of objects")
    found = []
    for instance in instances:
        if instance.get("is_ignored"):
            continue
        box, label = instance.get("bbox"), instance.get("label")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
            raise LineError(f"bbox {json.dumps(box)[:60]}. Expected [x1, y1, x2, y2] in pixels.")
        if type(label) is not int or not 1 <= label <= LARGEST:
            raise LineError(f"label {json.dumps(label)[:60]}. Expected an integer from 1 on (0 is the background).")
        width, height = box[2] - box[0], box[3] - box[1]
        if width > 0 and height > 0 and width * height >= min_size**2:
            found.append((box, label - 1))
    return found


def _is_finite(value: Json) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
