"""Write splits of a folder or list as meta files that a YAML file reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from up.data.listing import Rows, json_rows
from up.data.packed import classes_of_heads
from up.data.split import Split, folds_of, split_of
from up.data_report.sources import DataSource, parts_of, sources_of_paths
from up.errors import UserError
from up.files import make_folder, write_text
from up.tasks.cls.data.csv_table import column_in
from up.tasks.cls.data.metas import MetaSource
from up.tasks.cls.data.tables import kind_of_list
from up.text import count, some_of, yaml_text
from up.types import Json, Record


@dataclass(frozen=True)
class Wanted:
    """Parts to draw: shares of validation and test, or a number of folds (0 for none)."""

    share: float = 0.2
    test: float = 0.0
    folds: int = 0
    seed: int = 0
    group_column: str | None = None


@dataclass(frozen=True)
class Splits:
    """Splits of one source, one or one a fold."""

    source: DataSource
    path: Path
    wanted: Wanted
    splits: list[Split]

    @property
    def folders(self) -> list[str]:
        """The folder of each split below that of the result."""
        return [f"fold-{number}" for number in range(len(self.splits))] if self.wanted.folds else [""]

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, those of several heads by their head, or None where they have numbers alone."""
        labels = self.source.labels
        if labels is None or labels.values.ndim == 1:
            return self.source.classes
        return classes_of_heads([int(largest) + 1 for largest in labels.values.max(axis=0, initial=-1)])

    def warnings(self) -> list[str]:
        """Describe probable mistakes in the data, a line each."""
        found, names = self.splits[0].warnings(self.class_names), self.class_names
        lacking = sorted({label for split in self.splits for label in split.not_validated})
        if self.wanted.folds and lacking:
            classes = some_of((str(label) if names is None else names[label] for label in lacking), 5)
            told = f"fewer different images than the {self.wanted.folds} folds, so some folds do not validate the class"
            found.append(f"{classes}: {told}. Use fewer folds, or add images.")
        return found

    def files(self, out: Path) -> dict[Path, str]:
        """Return the text of every file in ``out``: lists of JSON lines, ``split.json``, and the names of classes."""
        found: dict[Path, str] = {}
        for folder, split in zip(self.folders, self.splits, strict=True):
            for name, indices in split.parts.items():
                found[out / folder / f"{name}.jsonl"] = "".join(self._line(index) for index in indices)
            record = {"from": str(self.path), "group_column": self.wanted.group_column, **split.record(self.class_names)}
            found[out / folder / "split.json"] = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        if self.source.classes is not None:
            if odd := [name for name in self.source.classes if name != name.strip() or "\n" in name or "\r" in name]:
                what = f"{self.path}: a list of class names, one a line, cannot hold {odd[0]!r}"
                raise UserError(what, fix="Rename the class: without line breaks, and without spaces at its ends.")
            found[out / "classes.txt"] = "".join(f"{name}\n" for name in self.source.classes)
        return found

    def _line(self, index: int) -> str:
        row: Record = {"filename": self.source.files.names[index]}
        if self.source.labels is not None:
            labels = self.source.labels[index]
            row["label"] = labels[0] if self.source.labels.values.ndim == 1 and self.source.labels.offsets is None else labels
        return json.dumps(row, ensure_ascii=False) + "\n"

    def yaml_lines(self, out: Path) -> Iterator[str]:
        """Yield the lines of the YAML file that read the first split."""
        folder = out / self.folders[0]
        classes = "" if self.source.classes is None else f"class_names: {yaml_text(out / 'classes.txt')}"
        root = yaml_text(self.source.files.roots[0].shown)
        yield "dataset:"
        for part, name in (("train", "train"), ("test", "val")):
            yield f"  {part}:"
            yield "    dataset:"
            yield "      type: cls"
            yield "      kwargs:"
            yield f"        meta_file: {yaml_text(folder / f'{name}.jsonl')}"
            yield f"        meta_type: {'custom_cls' if self.source.labels is not None else 'unlabelled'}"
            yield from [f"        {classes}"] if classes else []
            yield f"        image_reader: {{type: fs_pillow, kwargs: {{image_dir: {root}}}}}"


def drawn(path: Path, wanted: Wanted, image_dir: Path | None = None) -> Splits:
    """Draw the parts of a folder or a list. Raises ``UserError`` for one that is split already, and for mistakes in it."""
    parts = parts_of(path) if path.is_dir() or not path.exists() else {"train": path}
    if len(parts) > 1 or (path.is_dir() and parts["train"] != path):
        what = f"{path}: is split already: it has {some_of(str(each) for each in parts.values())}"
        raise UserError(what, fix=f"Name {parts['train']} to split that folder.")
    found, problems = sources_of_paths(parts, image_dir)
    if problems:
        raise UserError.of(problems)
    source = found[0]
    together = None if wanted.group_column is None else _column(path, source, wanted.group_column)
    names, labels = [*source.files.names], source.labels
    root = Path(source.files.roots[0].folder)
    if wanted.folds:
        splits = folds_of(names, labels, wanted.folds, wanted.seed, root=root, together=together)
    else:
        splits = [split_of(names, labels, wanted.share, wanted.seed, root=root, test=wanted.test, together=together)]
    if len(splits[0].unreadable) == len(names):
        what = f"{path}: none of {count(len(names), 'image')} can be opened, the first is {root / names[0]}"
        relative = "Name the folder that the names are relative to: --image-dir FOLDER."
        raise UserError(what, fix="Copy them again." if path.is_dir() else relative)
    return Splits(source, path, wanted, splits)


def _column(path: Path, source: DataSource, column: str) -> list[str]:
    """Return the text of each image in a column of a table, or under a key of JSON lines."""
    kind = "image_folder" if path.is_dir() else kind_of_list(path, "")
    meta = MetaSource(str(path), source.files.roots[0])
    if kind == "csv":
        cells = column_in(meta, column)
    elif kind == "custom_cls":
        rows = Rows(str(path), meta.root)
        cells = {line: text for texts, lines in json_rows(rows, _reader(column)) for text, line in zip(texts, lines, strict=True)}
    else:
        fix = "List the images in a table or in JSON lines with such a column."
        raise UserError(f"--group-column {column}: {path} has no columns", fix=fix)
    if not any(cells.values()):
        raise UserError(f"--group-column {column}: no line has such a key", file=path, fix="Name a key of the lines.")
    return [cells.get(int(line), "") for line in source.files.lines]


def _reader(column: str) -> Json:
    def text(record: Mapping[str, Json], line: int) -> str:
        return "" if record.get(column) is None else str(record[column])

    return text


def write_splits(splits: Splits, out: Path) -> list[Path]:
    """Write the files of ``splits`` into ``out`` and return them. Raises ``UserError`` where one exists with other content."""
    files = splits.files(out)
    for path, text in files.items():
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise UserError("exists with other content", file=path, fix=f"Name another folder: --out {out}-2.")
    for path, text in files.items():
        make_folder(path.parent)
        write_text(path, text)
    return [*files]
