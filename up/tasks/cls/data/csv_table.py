"""Meta files of type ``csv``: a table with a column of paths and a column of labels, which are numbers or names."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from up.data.listing import MetaError, Rows, chunks
from up.data.packed import PackedLabels
from up.tasks.cls.data.metas import Column, MetaSource, SampleTable, labelled
from up.text import count, did_you_mean, some_of

_PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "name")
_LABELS = ("label", "class", "class_name", "category", "target", "class_id", "labels", "tags")
_LARGEST_DIGITS = 9  # of a label number


class _Row(NamedTuple):
    line: int
    path: str
    label: str


def csv_table(source: MetaSource) -> SampleTable:
    """Read a table with a column of paths and a column of labels, separated by commas, tabs or semicolons.

    ``path_column`` and ``label_column`` name the columns, or give their positions from 0. By default they are ``path``, ``file``,
    ``image`` and the like, and ``label``, ``class``, ``category`` and the like, or the first two. The first line is a header if
    it has such a name, and none if it names an image; otherwise the lines below decide, and it is an error if they do not. If all
    labels are numbers, they are label numbers, otherwise they are class names, sorted unless ``class_names`` gives their order.
    With ``multilabel`` a cell holds a set of labels, separated by ``|``, ``;`` or spaces.
    A table with a single column has no labels.
    """
    rows, table = Rows(source.path, source.root), _Table(source)
    found = list(table.rows(rows))
    rows.extend([row.path.encode() for row in found], [row.line for row in found])
    return labelled(rows, source, None if table.label is None else _labels(found, rows, source))


def has_labels(source: MetaSource) -> bool:
    """Return whether a table has a column of labels."""
    return _Table(source).label is not None


def column_in(source: MetaSource, column: Column) -> dict[int, str]:
    """Return the cells of a column by the line of their row. Raises ``MetaError`` where there is no such column."""
    table = _Table(replace(source, columns=replace(source.columns, label=column)))
    return {row.line: row.label for row in table.rows(Rows(source.path, source.root))}


def labels_in(source: MetaSource) -> set[str]:
    """Return the labels of a table as they are written; mistakes in its lines are reported when the images are listed."""
    cells = {row.label for row in _Table(source).rows(Rows(source.path, source.root))}
    split = _splitter(cells, source)
    return {label for cell in cells for label in split(cell)} - {""}


def are_numbers(labels: Iterable[str]) -> bool:
    """Whether all labels, as they are written, are label numbers rather than names."""
    return all(label.isascii() and label.isdigit() and len(label) <= _LARGEST_DIGITS for label in labels)


def _labels(found: Sequence[_Row], rows: Rows, source: MetaSource) -> PackedLabels:
    split = _splitter((row.label for row in found), source)
    written = {label for cell in {row.label for row in found} for label in split(cell)}
    names = source.class_names
    if names is not None and are_numbers(written - {""}) and not written & {*names}:
        names = None
    known = {name: number for number, name in enumerate(names)} if names is not None else None
    sets = []
    for row in found:
        numbers = [_number(label, known) for label in split(row.label)]
        if None in numbers:
            rows.problem(row.line, _label_problem(split(row.label)[numbers.index(None)], names))
        sets.append([number or 0 for number in numbers])
    return PackedLabels.of_sets(sets) if source.multilabel else PackedLabels(np.array(sets, dtype=np.int64).reshape(-1))


def _number(label: str, known: Mapping[str, int] | None) -> int | None:
    """Return the number of a label; None for one that has none."""
    if known is not None:
        return known.get(label)
    return int(label) if label and are_numbers([label]) else None


def _label_problem(label: str, names: Sequence[str] | None) -> str:
    if not label:
        return "the cell of the label is empty. Expected a label, or remove the line."
    if names is None:
        return f"label {label[:60]!r}. Expected an integer from 0 on, as in other lines."
    return f"label {label[:60]!r} is not a class of the training data.{did_you_mean(label, names)} Expected {some_of(names)}."


def _splitter(cells: Iterable[str], source: MetaSource) -> Callable[[str], list[str]]:
    """Return the function from a cell to its labels: one, or with ``multilabel`` any number."""
    if not source.multilabel:
        return lambda cell: [cell]
    listed = [*cells]
    mark = next((mark for mark in "|;" if any(mark in cell for cell in listed)), None)
    return lambda cell: [label for each in cell.split(mark) if (label := each.strip())]


class _Table:
    """Reader of the rows of a table, whose first line gives delimiter, header and columns. Raises ``MetaError``."""

    def __init__(self, source: MetaSource) -> None:
        self._path, wanted = source.path, source.columns
        first = next((line for line in self._lines() if line.strip()), "")
        self._delimiter = wanted.delimiter or ("," if "," in first else next((mark for mark in "\t;" if mark in first), ","))
        cells = next((cells for _, cells in self._split(self._lines())), [])
        self._width = len(cells)
        is_named = isinstance(wanted.path, str) or isinstance(wanted.label, str)
        names_an_image = any(cell.lower().endswith(source.root.suffixes) for cell in cells)
        if wanted.header is not None or names_an_image:
            self._has_header = bool(wanted.header)
        else:
            self._has_header = is_named or self._is_header(cells, source)
        if is_named and not self._has_header:
            raise self._error(f"got no header, but {some_of(map(repr, cells), 4)}", "Give the columns as numbers, from 0.")
        names = cells if self._has_header else []
        self._paths = self._position("path_column", wanted.path, names)
        self.label = self._position("label_column", wanted.label, names) if self._width > 1 else None

    def _is_header(self, cells: Sequence[str], source: MetaSource) -> bool:
        """Whether the first line is a header. Raises ``MetaError`` if neither its names nor the other rows decide."""
        if not cells or {cell.lower() for cell in cells} & {*_PATHS, *_LABELS}:
            return True
        wanted = source.columns
        path, label = wanted.path if isinstance(wanted.path, int) else 0, wanted.label if isinstance(wanted.label, int) else 1
        if path >= len(cells) or (len(cells) > 2 and wanted.path is None):
            return True  # _position reports it
        rows = [row for _, row in self._split(self._lines()) if len(row) == len(cells)][1:]
        labels = {row[label] for row in rows} if label < len(cells) else set()
        is_label = label < len(cells) and (cells[label] in labels or are_numbers([cells[label]]))
        if is_label or "/" in cells[path] or os.path.isfile(source.root.path_of(cells[path])):
            return False
        if any(row[path].lower().endswith(source.root.suffixes) for row in rows):
            return True
        what = f"got {some_of(map(repr, cells), 4)}, which may be a header or an image"
        raise self._error(
            what, "Name the columns path and label, or set header: true or header: false of a data set in a YAML file."
        )

    def rows(self, problems: Rows) -> Iterator[_Row]:
        """Read the rows below the header; those with mistakes are reported to ``problems`` and left out."""
        for at, (line, cells) in enumerate(self._split(self._lines())):
            if at == 0 and self._has_header:
                continue
            if len(cells) != self._width:
                fix = "Quote a cell that contains the delimiter." if len(cells) > self._width else "Add what is missing."
                problems.problem(line, f"got {count(len(cells), 'cell')}, expected {self._width} as in the first line. {fix}")
            elif not cells[self._paths]:
                problems.problem(line, "the cell of the path is empty. Expected the path of an image, or remove the line.")
            else:
                yield _Row(line, cells[self._paths], "" if self.label is None else cells[self.label])

    def _lines(self) -> Iterator[str]:
        for start, chunk in chunks(self._path):
            for line, raw in enumerate(chunk, start):
                try:
                    yield raw.decode()
                except UnicodeDecodeError:
                    what = f"{raw[:60]!r} is not UTF-8."
                    raise MetaError(what, file=self._path, line=line, fix="Save the file as UTF-8.") from None

    def _split(self, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Split lines into cells, each row with its line (of several the last); blank lines are left out."""
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        try:
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield reader.line_num, stripped
        except csv.Error as error:
            raise MetaError(f"no table: {error}.", file=self._path, line=reader.line_num, fix="Correct the quotes.") from None

    def _position(self, key: str, wanted: Column | None, names: Sequence[str]) -> int:
        """Return the position of a column."""
        if isinstance(wanted, int):
            if wanted >= self._width:
                raise self._error(f"{key}: got {wanted}, expected a number from 0 to {self._width - 1}, as the table has columns")
            return wanted
        if wanted is not None:
            if names.count(wanted) != 1:
                has = "no column" if wanted not in names else "several columns"
                raise self._error(f"{key}: {has} {wanted!r}, only {some_of(names)}", did_you_mean(wanted, names))
            return names.index(wanted)
        usual, first = (_PATHS, 0) if key == "path_column" else (_LABELS, 1)
        lowered = [name.lower() for name in names]
        known = next((lowered.index(name) for name in usual if name in lowered), None)
        if known is None and self._width > 2:
            found = f"none of {some_of(names)} is a usual name" if names else f"{self._width} columns and no header"
            raise self._error(
                f"{key} is not set: {found}",
                f"Name the column {usual[0]!r} in the table, or set {key} of a data set in a YAML file.",
            )
        return min(first, self._width - 1) if known is None else known

    def _error(self, what: str, fix: str = "") -> MetaError:
        return MetaError(what, file=self._path, line=1, fix=fix.strip())
