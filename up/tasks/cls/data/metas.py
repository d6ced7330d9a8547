"""Meta files: what names the images of a data set, and their labels.

Every parser takes a ``MetaSource`` and returns a ``Meta``; all that is wrong with a file is reported at once, as
``file:line: what``. Blank lines, CRLF and a byte order mark do not matter.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from up.data.packed import PackedLabels, PackedStrings, StringPacker
from up.data.roots import ImageRoot
from up.errors import Problem, UserError
from up.registry import Registry

METAS = Registry(
    "meta_type",
    {
        "imagenet": "up.tasks.cls.data.metas:imagenet",
        "custom_cls": "up.tasks.cls.data.json_lines:custom_cls",
        "custom_det": "up.tasks.cls.data.json_lines:custom_det",
        "inference_only": "up.tasks.cls.data.metas:inference_only",
        "image_folder": "up.tasks.cls.data.folders:image_folder",
    },
)

_LISTED = 10  # problems shown of one file
_CHUNK = 1 << 15  # lines: few enough to stay small, many enough for the checks of a whole chunk to pay off
LARGEST = 2**31 - 1


class MetaError(UserError):
    """A meta file cannot be used; one line for each problem, with file and line."""


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
        listed = [Problem(text, file=self._path, line=line) for line, text in sorted(self._found)[:_LISTED]]
        more = len(self._found) - len(listed) + self._uncounted
        raise MetaError.of([*listed, Problem(f"and {more:,} more", file=self._path)] if more else listed)


class Rows:
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
                refusal = f"{name[:60]!r} is not UTF-8: save the file as UTF-8"
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
            raise MetaError("it names no image. Expected at least one line.", file=self.source.path)
        return Meta(self._names.packed(), labels, lines, boxes)

    def _check_range(self, labels: PackedLabels, lines: NDArray[np.int32]) -> None:
        limit = self.source.num_classes
        if isinstance(limit, Sequence) and labels.values.ndim == 1 and len(labels.values):
            raise MetaError(
                f"one label for each image, but num_classes is for {len(limit)} heads. Expected "
                "meta_type custom_cls with a list of labels on each line, or one number of classes.",
                file=self.source.path,
            )
        limits = np.full(labels.values.shape, LARGEST if limit is None else limit).ravel()
        values = labels.values.ravel()
        wrong = np.flatnonzero((values < 0) | (values >= limits))
        owners = labels.owners() if len(wrong) else wrong
        counts_from_1 = len(wrong) and not self.source.label_offset and values.min() == 1 and values.max() == limits[0]
        hint = " Labels count from 0: subtract 1, or set label_mapping: [-1]." if counts_from_1 else ""
        for at in wrong.tolist():
            got = f"label {values[at] - self.source.label_offset}"
            mapped = f" (after label_mapping {values[at]})" if self.source.label_offset else ""
            expected = f"an integer from 0 to {limits[at] - 1}" if limit is not None else "a label from 0 on"
            self.problems.add(int(lines[owners[at]]), f"{got}{mapped}. Expected {expected}.{hint}")


def imagenet(source: MetaSource) -> Meta:
    """``path label`` on each line, parted at the last blank, so that paths may contain blanks."""
    rows, labels = Rows(source), array("q")
    for start, chunk in chunks(source.path):
        names, texts, lines = [], [], []
        for line, raw in enumerate(chunk, start):
            parts = raw.rsplit(None, 1)
            if len(parts) == 2:
                names.append(parts[0])
                texts.append(parts[1])
                lines.append(line)
            elif parts:
                rows.problems.add(line, f"expected 'path label', got {shown(raw)}.{_hint(raw)}")
        if b"\r" in b"".join(names):
            rows.problems.add(start, f"expected 'path label', got {shown(chunk[0])}.{_hint(chunk[0])}")
        rows.extend(names, lines)
        if b"".join(texts).isdigit() and max(map(len, texts)) <= 9:
            labels.extend(map(int, texts))
        else:
            labels.extend(map(_checked_label, names, texts, lines, itertools.repeat(rows.problems)))
    return rows.meta(PackedLabels(np.array(labels, dtype=np.int64)))


def inference_only(source: MetaSource) -> Meta:
    """One path on each line, without a label."""
    rows = Rows(source)
    for start, chunk in chunks(source.path):
        named = [(raw.strip(), line) for line, raw in enumerate(chunk, start) if raw and not raw.isspace()]
        rows.extend([name for name, _ in named], [line for _, line in named])
    return rows.meta(None)


def chunks(path: str) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a file in chunks, each with the number of its first line."""
    if os.path.isdir(path):
        raise MetaError("a folder. Expected a meta file; meta_type image_folder reads folders of classes.", file=path)
    try:
        with open(path, "rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            first = 1
            while chunk := list(itertools.islice(file, _CHUNK)):
                yield first, chunk
                first += len(chunk)
    except FileNotFoundError:
        raise MetaError("no such meta file.", file=path) from None
    except OSError as error:
        raise MetaError(f"cannot be read ({error.strerror}).", file=path) from None


def shown(raw: bytes) -> str:
    text = raw.strip().decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _hint(raw: bytes) -> str:
    """What the author of a line probably meant."""
    if raw.lstrip()[:1] == b"{":
        return " It looks like JSON: meta_type custom_cls?"
    if b"\r" in raw.strip():
        return " Lines end in a carriage return alone: save the file with line feeds."
    for separator, name in ((b",", "commas"), (b";", "semicolons"), (b"|", "bars")):
        if raw.rsplit(separator, 1)[-1].strip().isdigit() and separator in raw:
            return f" Replace the {name} by blanks or tabs."
    return ""


def _checked_label(name: bytes, text: bytes, line: int, problems: Problems) -> int:
    if text.isdigit() and len(text) <= 9:
        return int(text)
    problems.add(line, f"label {shown(text)}. Expected an integer from 0 on.{_hint(name)}")
    return 0
