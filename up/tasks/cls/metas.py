"""Meta files: what names the images of a data set, and their labels.

Every parser takes a ``MetaSource`` and returns a ``Meta``; all that is wrong with a file is reported at once, as
``file:line: what``. Blank lines, CRLF and a byte order mark do not matter.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from up.data.packed import PackedLabels, PackedStrings, StringPacker
from up.data.roots import ImageRoot
from up.errors import UserError
from up.registry import Registry
from up.text import some_of

METAS = Registry(
    "meta_type",
    {
        "imagenet": "up.tasks.cls.metas:imagenet",
        "custom_cls": "up.tasks.cls.metas:custom_cls",
        "custom_det": "up.tasks.cls.metas:custom_det",
        "inference_only": "up.tasks.cls.metas:inference_only",
        "image_folder": "up.tasks.cls.folders:image_folder",
    },
)

_OF_A_LINE = ("filename", "label")  # custom_cls
_LISTED = 10  # problems shown of one file
_CHUNK = 1 << 15  # lines: few enough to stay small, many enough for the checks of a whole chunk to pay off
_LARGEST = 2**31 - 1
_T = TypeVar("_T")


class MetaError(UserError):
    """A meta file cannot be used; one line for each problem, with file and line."""

    has_place = True


@dataclass(frozen=True)
class MetaSource:
    """One meta file and how it is to be read."""

    path: str
    root: ImageRoot
    num_classes: int | Sequence[int] | None = None  # a list: of each head
    label_offset: int = 0
    multilabel: bool = False
    min_size: float = 40.0  # custom_det: boxes of a smaller area than its square are dropped
    class_names: Sequence[str] | None = None  # image_folder: the order of the classes


@dataclass(frozen=True)
class Meta:
    """The samples of one meta file: names (N), labels (N) unless there are none, lines (N) from 1, boxes (N, 4).

    ``notes`` say, with file and line, what of the file was passed over or read in another way than it is written.
    """

    names: PackedStrings
    labels: PackedLabels | None = None
    lines: NDArray[np.int32] | None = None
    boxes: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()


class Problems:
    """What is wrong with one file, collected."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._found: list[tuple[int, str]] = []
        self._uncounted = 0

    def add(self, line: int, text: str) -> None:
        """``text`` about ``line``."""
        if len(self._found) < 1000:
            self._found.append((line, text))
        else:
            self._uncounted += 1

    def raise_if_any(self) -> None:
        """Raise ``MetaError`` with the first ten problems."""
        if not self._found:
            return
        listed = [f"{self._path}:{line}: {text}" for line, text in sorted(self._found)[:_LISTED]]
        more = len(self._found) - len(listed) + self._uncounted
        raise MetaError("\n".join([*listed, f"{self._path}: and {more:,} more"] if more else listed))


class _Rows:
    """The samples of a file while it is being read."""

    def __init__(self, source: MetaSource) -> None:
        self.source = source
        self.problems = Problems(source.path)
        self._names = StringPacker()
        self._lines = array("i")

    def extend(self, names: list[bytes], lines: list[int]) -> None:
        """Take over names that are still to be checked."""
        self._check(names, lines)
        self._names.extend(names)
        self._lines.extend(lines)

    def _check(self, names: list[bytes], lines: list[int]) -> None:
        together = b"\n".join(names)
        try:
            together.decode()
        except UnicodeDecodeError:
            pass
        else:  # the usual file: nothing in it needs a closer look
            if not (b"\0" in together or b".." in together or together[:1] == b"/" or b"\n/" in together):
                return
        for name, line in zip(names, lines, strict=True):
            try:
                refusal = self.source.root.refusal(name.decode())
            except UnicodeDecodeError:
                refusal = f"{name[:60]!r} is not UTF-8"
            if refusal:
                self.problems.add(line, refusal)

    def meta(self, labels: PackedLabels | None, boxes: NDArray[np.float32] | None = None) -> Meta:
        """All samples; raises ``MetaError`` when anything was wrong, or when there are none."""
        lines = np.array(self._lines, dtype=np.int32)
        if labels is not None:
            labels = PackedLabels(labels.values + self.source.label_offset, labels.offsets)
            self._check_range(labels, lines)
        self.problems.raise_if_any()
        if not len(lines):
            raise MetaError(f"{self.source.path}: it names no image. Expected at least one line.")
        return Meta(self._names.packed(), labels, lines, boxes)

    def _check_range(self, labels: PackedLabels, lines: NDArray[np.int32]) -> None:
        limit = self.source.num_classes
        if isinstance(limit, Sequence) and labels.values.ndim == 1 and len(labels.values):
            raise MetaError(
                f"{self.source.path}: one label for each image, but num_classes is for {len(limit)} heads. Expected "
                "meta_type custom_cls with a list of labels on each line, or one number of classes."
            )
        limits = np.full(labels.values.shape, _LARGEST if limit is None else limit).ravel()
        values = labels.values.ravel()
        wrong = np.flatnonzero((values < 0) | (values >= limits))
        owners = labels.owners() if len(wrong) else wrong
        for at in wrong.tolist():
            got = f"label {values[at] - self.source.label_offset}"
            mapped = f" (after label_mapping {values[at]})" if self.source.label_offset else ""
            expected = f"an integer from 0 to {limits[at] - 1}" if limit is not None else "a label from 0 on"
            self.problems.add(int(lines[owners[at]]), f"{got}{mapped}. Expected {expected}.")


def imagenet(source: MetaSource) -> Meta:
    """``path label`` on each line, parted at the last blank, so that paths may contain blanks."""
    rows, labels = _Rows(source), array("q")
    for start, chunk in _chunks(source.path):
        names, texts, lines = [], [], []
        for line, raw in enumerate(chunk, start):
            parts = raw.rsplit(None, 1)
            if len(parts) == 2:
                names.append(parts[0])
                texts.append(parts[1])
                lines.append(line)
            elif parts:
                rows.problems.add(line, f"expected 'path label', got {_shown(raw)}.{_hint(raw)}")
        rows.extend(names, lines)
        if b"".join(texts).isdigit() and max(map(len, texts)) <= 9:
            labels.extend(map(int, texts))
        else:
            labels.extend(map(_checked_label, names, texts, lines, itertools.repeat(rows.problems)))
    return rows.meta(PackedLabels(np.array(labels, dtype=np.int64)))


def custom_cls(source: MetaSource) -> Meta:
    """JSON ``{"filename": …, "label": …}`` on each line; a list of labels is one a head, or a set if ``multilabel``.

    Other keys are ignored and a label in quotes is read as a number, each with one note for the file.
    """
    rows = _Rows(source)
    labels: list[Any] = []
    read = _LabelledLine(source)
    for found, lines in _json_lines(rows, read):
        rows.extend([name for name, _ in found], lines)
        labels += [label for _, label in found]
    packed = PackedLabels.of_sets(labels) if source.multilabel else PackedLabels(np.array(labels, dtype=np.int64))
    return replace(rows.meta(packed), notes=tuple(read.notes()))


def custom_det(source: MetaSource) -> Meta:
    """JSON lines of a detection data set: every instance is a sample, the crop of its box, with label - 1.

    ``{"filename": …, "instances": [{"bbox": [x1, y1, x2, y2], "label": from 1 on, "is_ignored": …}]}`` in pixels;
    ignored instances and small boxes are dropped, other keys do not matter.
    """
    rows = _Rows(source)
    labels: list[int] = []
    boxes: list[list[float]] = []
    for found, lines in _json_lines(rows, lambda record, _: (_filename(record), _instances(record, source.min_size))):
        counts = [len(instances) for _, instances in found]
        rows.extend(_each(counts, [name for name, _ in found]), _each(counts, lines))
        boxes += [box for _, instances in found for box, _ in instances]
        labels += [label for _, instances in found for _, label in instances]
    return rows.meta(PackedLabels(np.array(labels, dtype=np.int64)), np.array(boxes, dtype=np.float32).reshape(-1, 4))


def inference_only(source: MetaSource) -> Meta:
    """One path on each line, without a label."""
    rows = _Rows(source)
    for start, chunk in _chunks(source.path):
        named = [(raw.strip(), line) for line, raw in enumerate(chunk, start) if raw and not raw.isspace()]
        rows.extend([name for name, _ in named], [line for _, line in named])
    return rows.meta(None)


class _Wrong(ValueError):
    """One line cannot be used."""


class _LabelledLine:
    """Reads a line of ``custom_cls``; all lines of a file have the same number of labels unless they are sets."""

    def __init__(self, source: MetaSource) -> None:
        self._path = source.path
        self._ignored: dict[str, int] = {}  # keys, each with the first line that has it
        self._quoted: tuple[int, str] | None = None  # the first line with a label in quotes, and the label
        self._multilabel = source.multilabel
        self._arity = len(source.num_classes) if isinstance(source.num_classes, Sequence) else None

    def __call__(self, record: dict[str, Any], line: int) -> tuple[bytes, Any]:
        _expect_keys(record, required=_OF_A_LINE)
        if len(record) > len(_OF_A_LINE):
            for key in record:
                if key not in _OF_A_LINE:
                    self._ignored.setdefault(key, line)
        name, label = _filename(record), self._unquoted(record["label"], line)
        if not self._multilabel:
            self._arity = _expect_arity(label, self._arity)
        for value in label if isinstance(label, list) else [label]:
            if type(value) is not int or not 0 <= value <= _LARGEST:  # bool is an int to Python
                raise _Wrong(f"label {json.dumps(value)[:60]}. Expected an integer from 0 on.")
        return name, [label] if self._multilabel and isinstance(label, int) else label

    def notes(self) -> Iterator[str]:
        """What was ignored and what was read as a number, a line each."""
        if self._ignored:
            keys = some_of([repr(key) for key in self._ignored], 5)
            yield f"{self._path}:{min(self._ignored.values())}: custom_cls reads filename and label; ignored: {keys}."
        if self._quoted is not None:
            line, label = self._quoted
            yield f"{self._path}:{line}: the label {label} is in quotes and was read as a number, here and below."

    def _unquoted(self, label: Any, line: int) -> Any:
        """``"3"`` as 3, alone or in a list; anything else as it is."""
        if isinstance(label, list):
            return [self._unquoted(each, line) for each in label]
        if not (isinstance(label, str) and label.isascii() and label.isdigit() and len(label) <= 10):
            return label
        self._quoted = self._quoted or (line, json.dumps(label))
        return int(label)


def _each(counts: list[int], values: list[_T]) -> list[_T]:
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]


def _json_lines(rows: _Rows, read: Callable[[dict[str, Any], int], _T]) -> Iterator[tuple[list[_T], list[int]]]:
    """What ``read`` makes of each record and the number of its line, a chunk at a time, with these numbers; wrong lines are noted
    and left out."""
    for start, chunk in _chunks(rows.source.path):
        found, lines = [], []
        for line, raw in enumerate(chunk, start):
            if raw.isspace():
                continue
            try:
                found.append(read(_record(raw), line))
            except _Wrong as wrong:
                rows.problems.add(line, str(wrong))
            else:
                lines.append(line)
        yield found, lines


def _chunks(path: str) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a file in chunks, each with the number of its first line."""
    if os.path.isdir(path):
        raise MetaError(f"{path}: a folder. Expected a meta file; meta_type image_folder reads folders of classes.")
    try:
        with open(path, "rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            first = 1
            while chunk := list(itertools.islice(file, _CHUNK)):
                yield first, chunk
                first += len(chunk)
    except FileNotFoundError:
        raise MetaError(f"{path}: no such meta file.") from None
    except OSError as error:
        raise MetaError(f"{path}: cannot be read ({error.strerror}).") from None


def _shown(raw: bytes) -> str:
    text = raw.strip().decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _hint(raw: bytes) -> str:
    return " It looks like JSON: meta_type custom_cls?" if raw.lstrip()[:1] == b"{" else ""


def _checked_label(name: bytes, text: bytes, line: int, problems: Problems) -> int:
    if text.isdigit() and len(text) <= 9:
        return int(text)
    problems.add(line, f"label {_shown(text)}. Expected an integer from 0 on.{_hint(name)}")
    return 0


def _record(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except _Wrong:
        raise
    except RecursionError:
        raise _Wrong("JSON nested too deeply") from None
    except UnicodeDecodeError:
        raise _Wrong(f"{_shown(raw)} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _Wrong(f"not JSON: {error.msg} at column {error.colno}, got {_shown(raw)}") from None
    except ValueError:  # Python's limit of 4300 digits
        raise _Wrong("a number has too many digits") from None
    if not isinstance(record, dict):
        raise _Wrong(f"expected a JSON object, got {_shown(raw)}")
    return record


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Wrong(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return record


def _refuse_constant(text: str) -> NoReturn:
    raise _Wrong(f"{text} is not a number that JSON has")


def _expect_keys(record: dict[str, Any], required: tuple[str, ...]) -> None:
    missing = [key for key in required if key not in record]
    if missing:
        others = [key for key in record if key not in required]
        found = f", got {some_of([repr(key) for key in others], 3)} instead" if others else ""
        raise _Wrong(f"missing key {missing[0]!r}{found}. Expected {some_of(required)}.")


def _filename(record: dict[str, Any]) -> bytes:
    name = record.get("filename")
    if not isinstance(name, str) or not name:
        raise _Wrong(f"filename {json.dumps(name)}. Expected a path.")
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise _Wrong(f"filename {name!r} contains half a surrogate pair") from None


def _expect_arity(label: Any, expected: int | None) -> int:
    """How many labels a line has (0: one that is no list); all lines have the same number."""
    found = len(label) if isinstance(label, list) else 0
    if expected is not None and found != expected:
        wanted = f"a list of {expected}, one for each head" if expected else "one integer, as in the lines before"
        raise _Wrong(f"label {json.dumps(label)[:60]}. Expected {wanted}. (A set of labels needs multilabel: true.)")
    if found == 0 and isinstance(label, list):
        raise _Wrong("label []. Expected at least one label.")
    return found


def _instances(record: dict[str, Any], min_size: float) -> list[tuple[list[float], int]]:
    """The boxes that count, each with its label."""
    instances = record.get("instances", [])
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise _Wrong("instances: expected a list of objects")
    found = []
    for instance in instances:
        if instance.get("is_ignored"):
            continue
        box, label = instance.get("bbox"), instance.get("label")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
            raise _Wrong(f"bbox {json.dumps(box)[:60]}. Expected [x1, y1, x2, y2] in pixels.")
        if type(label) is not int or not 1 <= label <= _LARGEST:
            raise _Wrong(f"label {json.dumps(label)[:60]}. Expected an integer from 1 on (0 is the background).")
        width, height = box[2] - box[0], box[3] - box[1]
        if width > 0 and height > 0 and width * height >= min_size**2:
            found.append((box, label - 1))
    return found


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
