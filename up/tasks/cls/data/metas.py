"""Meta files: lists of the images of a data set, and of their labels.

Every parser takes a ``MetaSource`` and returns a ``SampleTable``; all problems of a file are reported at once, as
``file:line: problem``. Blank lines, CRLF and a byte order mark do not matter.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from up.data.folders import folders_in, images_under
from up.data.listing import Listing, MetaError, Rows, blocks, chunks, lines_of, shown
from up.data.packed import PackedLabels, PackedStrings
from up.data.plain_lines import PATH_LABEL, plain_lines
from up.data.roots import ImageRoot
from up.registry import Registry
from up.text import did_you_mean, some_of

METAS = Registry(
    "meta_type",
    {
        "imagenet": "up.tasks.cls.data.metas:imagenet",
        "custom_cls": "up.tasks.cls.data.json_lines:custom_cls",
        "custom_det": "up.tasks.cls.data.json_lines:custom_det",
        "inference_only": "up.tasks.cls.data.metas:inference_only",
        "unlabelled": "up.tasks.cls.data.metas:inference_only",
        "image_folder": "up.tasks.cls.data.metas:image_folder",
        "csv": "up.tasks.cls.data.csv_table:csv_table",
    },
)

UNLABELLED = ("inference_only", "unlabelled")
"""Meta types without labels: a list of images, a folder with images at any depth, or an image."""
LARGEST = 2**31 - 1
Column: TypeAlias = Annotated[int, Field(ge=0)] | str  # its position from 0, or its name in the header


@dataclass(frozen=True)
class Columns:
    """Settings of the table of a ``csv`` meta file; None is found by its first line."""

    path: Column | None = None
    label: Column | None = None
    delimiter: str | None = None
    header: bool | None = None


@dataclass(frozen=True)
class MetaSource:
    """A meta file and the settings to read it with."""

    path: str
    root: ImageRoot
    num_classes: int | Sequence[int] | None = None  # a list: of each head
    label_offset: int = 0
    multilabel: bool = False
    min_size: float = 40.0  # custom_det: boxes of a smaller area than its square are dropped
    class_names: Sequence[str] | None = None  # image_folder and csv: the order of the classes
    columns: Columns = Columns()  # csv


@dataclass(frozen=True)
class SampleTable(Listing):
    """N samples: a list of files with ``labels`` (N) unless there are none, ``boxes`` (N, 4) in pixels for crops.

    ``num_classes`` is a list for several heads, and None where neither names nor labels are known. ``notes`` report what was
    ignored or converted when the files were read.
    """

    labels: PackedLabels | None = None
    boxes: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()
    num_classes: int | list[int] | None = None
    class_names: list[str] | None = None

    def take(self, kept: NDArray[np.int64]) -> SampleTable:
        """Select the samples at the indices ``kept``."""
        labels = None if self.labels is None else self.labels.take(kept)
        return replace(super().take(kept), labels=labels, boxes=None if self.boxes is None else self.boxes[kept])

    def arrays(self) -> list[NDArray[np.generic] | None]:
        """Return names, labels and boxes in their order, for hashing; not the pixels."""
        labels = [] if self.labels is None else [self.labels.values, self.labels.offsets]
        return [*super().arrays(), self.boxes, *labels]

    def fingerprint(self) -> str:
        """Hash ``arrays`` (sha256)."""
        digest = hashlib.sha256()
        for values in self.arrays():
            digest.update(b"-" if values is None else str(values.shape).encode())
            digest.update(b"" if values is None else np.ascontiguousarray(values).data)
        return digest.hexdigest()


def unlabelled(source: MetaSource, names: Iterable[str]) -> SampleTable:
    """Return the files ``names`` of a folder, which have no line in a list."""
    packed = PackedStrings(names)
    lines, index = np.zeros(len(packed), np.int32), np.zeros(len(packed), np.uint16)
    return SampleTable(packed, lines, index, [source.path], [source.root])


def labelled(
    rows: Rows, source: MetaSource, labels: PackedLabels | None, boxes: NDArray[np.float32] | None = None, notes: Iterable[str] = ()
) -> SampleTable:
    """Return all samples of ``rows``. Raises ``MetaError`` when anything was wrong, or when there are none."""
    if labels is not None:
        labels = PackedLabels(labels.values + source.label_offset, labels.offsets) if source.label_offset else labels
        _check_range(labels, rows, source)
    return SampleTable(**vars(rows.listing()), labels=labels, boxes=boxes, notes=tuple(notes))


def _check_range(labels: PackedLabels, rows: Rows, source: MetaSource) -> None:
    limit = source.num_classes
    if not len(labels.values):  # each line has a problem already
        return
    if isinstance(limit, Sequence) and labels.values.ndim == 1:
        raise MetaError(
            f"one label for each image, but num_classes is for {len(limit)} heads. Expected "
            "meta_type custom_cls with a list of labels on each line, or one number of classes.",
            file=source.path,
        )
    limits = np.broadcast_to(LARGEST if limit is None else limit, labels.values.shape).reshape(-1)
    values = labels.values.ravel()
    wrong = np.flatnonzero((values < 0) | (values >= limits))
    owners = labels.owners() if len(wrong) else wrong
    counts_from_1 = len(wrong) and not source.label_offset and values.min() == 1 and values.max() == limits[0]
    hint = " Labels count from 0: subtract 1, or set label_mapping: [-1]." if counts_from_1 else ""
    for at in wrong.tolist():
        got = f"label {values[at] - source.label_offset}"
        mapped = f" (after label_mapping {values[at]})" if source.label_offset else ""
        expected = f"an integer from 0 to {limits[at] - 1}" if limit is not None else "a label from 0 on"
        rows.problem(int(rows.lines[owners[at]]), f"{got}{mapped}. Expected {expected}.{hint}")


def imagenet(source: MetaSource) -> SampleTable:
    """Read ``path label`` on each line, split at the last space, so that paths may contain spaces."""
    rows, labels = Rows(source.path, source.root), array("q")
    for start, block in blocks(source.path):
        plain = plain_lines(block, PATH_LABEL)
        if plain is not None:
            rows.extend_plain(plain, start)
            labels.frombytes(plain.labels.tobytes())
            continue
        chunk = lines_of(block)
        names, texts, lines = [], [], []
        for line, raw in enumerate(chunk, start):
            parts = raw.rsplit(None, 1)
            if len(parts) == 2:
                names.append(parts[0])
                texts.append(parts[1])
                lines.append(line)
            elif parts:
                rows.problem(line, f"expected 'path label', got {shown(raw)}.{_hint(raw)}")
        if b"\r" in b"".join(names):
            rows.problem(start, f"expected 'path label', got {shown(chunk[0])}.{_hint(chunk[0])}")
        rows.extend(names, lines)
        if b"".join(texts).isdigit() and max(map(len, texts)) <= 9:
            labels.extend(map(int, texts))
        else:
            labels.extend(map(_checked_label, names, texts, lines, itertools.repeat(rows)))
    return labelled(rows, source, PackedLabels(np.frombuffer(labels, dtype=np.int64)))


def inference_only(source: MetaSource) -> SampleTable:
    """Read a path on each line, without a label."""
    rows = Rows(source.path, source.root)
    for start, chunk in chunks(source.path):
        named = [(raw.strip(), line) for line, raw in enumerate(chunk, start) if raw and not raw.isspace()]
        rows.extend([name for name, _ in named], [line for _, line in named])
    return labelled(rows, source, None)


def _hint(raw: bytes) -> str:
    """Guess the mistake in a line."""
    if raw.lstrip()[:1] == b"{":
        return " It looks like JSON: meta_type custom_cls?"
    if b"\r" in raw.strip():
        return " Lines end in a carriage return alone: save the file with line feeds."
    for separator, name in ((b",", "commas"), (b";", "semicolons"), (b"|", "bars")):
        if raw.rsplit(separator, 1)[-1].strip().isdigit() and separator in raw:
            return f" Replace the {name} by spaces or tabs."
    return ""


def _checked_label(name: bytes, text: bytes, line: int, rows: Rows) -> int:
    if text.isdigit() and len(text) <= 9:
        return int(text)
    rows.problem(line, f"label {shown(text)}. Expected an integer from 0 on.{_hint(name)}")
    return 0


def image_folder(source: MetaSource) -> SampleTable:
    """Read a folder with one folder for each class: ``cat/1.jpg``. Hidden folders and those without an image are not classes.

    ``source.class_names`` gives the labels their order (by default the sorted folder names); a folder that is not among
    them is an error, one that is missing is not. ``source.root`` is the folder itself.
    """
    found = {folder: images_under(source.root, folder) for folder in folders_in(source.path)}
    filled = [folder for folder, images in found.items() if images]
    if not filled:
        raise MetaError(f"no class folders with images. Expected {source.path}/CLASS/IMAGE.jpg.", file=source.path)
    known = list(source.class_names) if source.class_names is not None else filled
    label_of = {name: label for label, name in enumerate(known)}
    unknown = [folder for folder in filled if folder not in label_of]
    if unknown:
        raise MetaError(
            f"the training data have no class called {some_of(map(repr, unknown))}."
            f"{did_you_mean(unknown[0], known)} Expected folders named {some_of(known)}.",
            file=source.path,
        )
    labels = np.repeat([label_of[folder] for folder in filled], [len(found[folder]) for folder in filled])
    table = unlabelled(source, (name for folder in filled for name in found[folder]))
    return replace(table, labels=PackedLabels(labels.astype(np.int64)))
