"""Samples of a data set in packed arrays: the meta files read, joined and compared with each other."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from up.data.decoding import SUFFIXES
from up.data.folders import classes_of
from up.data.packed import PackedLabels, PackedStrings
from up.data.roots import ImageRoot
from up.errors import UserError
from up.file_kinds import NAMES, kind_of
from up.tasks.cls.data.csv_table import are_numbers, has_labels, labels_in
from up.tasks.cls.data.inference import (
    InferenceConfig,
    ResumeInference,
    already_done,
    inference_meta,
    inference_path,
    inference_root,
)
from up.tasks.cls.data.metas import METAS, UNLABELLED, Columns, MetaSource, SampleTable
from up.text import Verbatim, count, some_of
from up.types import Json

LISTS = {".json": "custom_cls", ".jsonl": "custom_cls", ".txt": "imagenet", ".lst": "imagenet", ".csv": "csv", ".tsv": "csv"}
"""Meta types of lists by the end of the name."""


@dataclass(frozen=True)
class TableSpec:
    """Settings of the samples of a data set; see ``ClsDataset`` for each field."""

    meta_file: str | list[str] | None
    meta_type: str | list[str] = "imagenet"
    image_dir: str | list[str] | None = None
    label_mapping: list[int] | None = None
    num_classes: int | list[int] | None = None
    class_names: str | list[str] | None = None
    multilabel: bool = False
    min_size: float = 40.0
    fraction: float = 1.0
    allow_outside: bool = False
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    columns: Columns = Columns()
    suffixes: tuple[str, ...] = SUFFIXES


def kind_of_list(path: Path, flag: str = "--train") -> str:
    """Return the meta type of a list by its name and first bytes. Raises ``UserError``, which begins with ``flag``."""
    kind = kind_of(path)
    if path.suffix.lower() in LISTS and LISTS[path.suffix.lower()] in METAS:
        is_json = path.suffix.lower() in (".txt", ".lst") and _begins_with_brace(path)
        return "custom_cls" if is_json else LISTS[path.suffix.lower()]
    what = Verbatim(NAMES[kind]) if kind in NAMES else Verbatim(f"a file {path.suffix or 'without a suffix'}")
    fix = f"`up train {path}` trains from a YAML file." if kind == "yaml" else "Name a folder with one folder of images per class."
    endings = some_of(suffix for suffix, meta in LISTS.items() if meta in METAS)
    expected = f"a folder of class folders, or a list of images ({endings})"
    raise UserError(f"{flag} {path}".strip(), got=what, expected=expected, fix=fix)


def _begins_with_brace(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:  # one that cannot be read is reported by its reader
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")
    return False


def class_names_beside(path: Path) -> list[str] | None:
    """Read ``classes.txt`` beside a list of numbered labels; None for other lists, and if there is none. Raises ``UserError``."""
    beside = path.with_name("classes.txt")
    return None if LISTS.get(path.suffix.lower()) == "csv" or not beside.is_file() else _names_in(str(beside))


def expect_same_classes(path: Path, classes: Sequence[str] | None, flag: str) -> None:
    """Raise ``UserError``, which begins with ``flag``, for a list whose ``classes.txt`` differs from ``classes``."""
    names = class_names_beside(path)
    if names is not None and classes is not None and names != [*classes]:
        what = f"{flag} {path}: {path.with_name('classes.txt')} names the classes differently from the training"
        fix = "Number the labels as in the training and correct classes.txt, or remove it."
        raise UserError(what, got=Verbatim(some_of(names, 8)), expected=some_of(classes, 8), fix=fix)


def are_labelled(spec: TableSpec) -> bool:
    """Return whether all meta files have labels; true for those that cannot be read, whose problem is reported elsewhere."""
    kinds = [spec.meta_type] if isinstance(spec.meta_type, str) else spec.meta_type
    if any(kind in UNLABELLED for kind in kinds):
        return False
    with suppress(UserError, OSError):
        return all(kind != "csv" or has_labels(source) for kind, source in zip(*_sources(spec), strict=True))
    return True


def read_table(spec: TableSpec) -> SampleTable:
    """Read all meta files. Raises ``UserError`` with file and line of everything that is wrong."""
    kinds, sources = _sources(spec)
    given = spec.class_names
    class_names = _names_in(given, "class_names") if isinstance(given, str) else given
    if class_names is None:
        class_names = _names_found(kinds, sources)
    expected = spec.num_classes
    if expected is None and class_names is not None:
        expected = len(class_names)
    _expect_as_many(class_names, expected)
    sources = [replace(source, num_classes=expected, class_names=class_names) for source in sources]
    table = _joined([_parser(kind, spec)(source) for source, kind in zip(sources, kinds, strict=True)])
    table = replace(table, num_classes=_num_classes(expected, table.labels), class_names=class_names).fraction(spec.fraction)
    if "test_resume" in spec.inference:
        table = _without_done(table, spec.inference["test_resume"])
    return table


def _names_found(kinds: list[str], sources: list[MetaSource]) -> list[str] | None:
    """List the classes that folders and tables name, sorted; None where labels are numbers."""
    folders = classes_of(source.root for source, kind in zip(sources, kinds, strict=True) if kind == "image_folder")
    written = {source.path: labels_in(source) for source, kind in zip(sources, kinds, strict=True) if kind == "csv"}
    numbered = [path for path, labels in written.items() if labels and are_numbers(labels)]
    named = [path for path, labels in written.items() if not are_numbers(labels)]
    if numbered and named:
        what = f"{numbered[0]} has labels that are numbers, {named[0]} has names, so the classes of the numbers are unknown"
        raise UserError(what, fix="List the names in the order of the numbers, in class_names.", key="class_names")
    return sorted({*folders, *(label for path in named for label in written[path])}) or None


def _without_done(table: SampleTable, config: ResumeInference) -> SampleTable:
    """Leave out the images that earlier results name; none where there are no results yet."""
    done = already_done(config)
    if done is None:
        note = f"inference_cfg.test_resume: there is no folder {config.get('resume_dir')} yet: starting with the first image."
        return replace(table, notes=(*table.notes, note))
    return table.take(np.array([at for at, name in enumerate(table.names) if name not in done], dtype=np.int64))


def _sources(spec: TableSpec) -> tuple[list[str], list[MetaSource]]:
    """List the meta type of every meta file, and the file with its root and label offset."""
    meta_file = spec.meta_file
    if spec.meta_type in UNLABELLED and not isinstance(meta_file, list):
        meta_file = inference_path(meta_file, spec.inference)
    if not meta_file:
        raise UserError(
            "is not set",
            expected="the path of a meta file (or a list of paths)",
            key="meta_file",
            fix="Set it in the file, or with --opts.",
        )
    paths = [meta_file] if isinstance(meta_file, str) else meta_file
    kinds = _one_each("meta_type", spec.meta_type, len(paths))
    if spec.columns != Columns() and "csv" not in kinds:
        expected = "csv, the type with path_column, label_column, delimiter and header"
        raise UserError(got=kinds[0], expected=expected, key="meta_type", fix="Set it, or leave these out.")
    image_dirs = _one_each("image_dir", spec.image_dir, len(paths))
    offsets = _one_each("label_mapping", spec.label_mapping or 0, len(paths))
    folders = [path if kind == "image_folder" else folder for path, kind, folder in zip(paths, kinds, image_dirs, strict=True)]
    sources = []
    for path, kind, folder, offset in zip(paths, kinds, folders, offsets, strict=True):
        if kind == "image_folder" and offset:
            expected = "0 for a meta_file of type image_folder, whose labels follow from the names of its folders"
            raise UserError(got=offset, expected=expected, key="label_mapping")
        root_of = inference_root if kind in UNLABELLED else ImageRoot
        root = root_of(folder, meta_file=path, allow_outside=spec.allow_outside, suffixes=spec.suffixes)
        own = MetaSource(path, root, label_offset=offset, multilabel=spec.multilabel, min_size=spec.min_size, columns=spec.columns)
        sources.append(own)
    return kinds, sources


def _one_each(name: str, given: Json, number: int) -> list[Json]:
    if not isinstance(given, list):
        return [given] * number
    if len(given) != number:
        raise UserError(
            got=Verbatim(f"a list of {len(given)}"), expected=f"one entry for each of {count(number, 'meta file')}", key=name
        )
    return given


def _parser(kind: str, spec: TableSpec) -> Callable[[MetaSource], SampleTable]:
    if kind in UNLABELLED:
        return lambda source: inference_meta(source, spec.inference)
    try:
        found: Callable[[MetaSource], SampleTable] = METAS.get(kind)
    except UserError as error:
        raise UserError(f"{error}", key="meta_type") from None
    return found


def _names_in(path: str, key: str = "") -> list[str]:
    """Read a file with one name a line; an error is of the argument ``key``."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Expected a text file, one name a line.", key=key) from None
    return [name for name in names if name]


def _expect_as_many(class_names: Sequence[str] | None, num_classes: int | list[int] | None) -> None:
    if class_names is None:
        return
    if isinstance(num_classes, list):
        raise UserError("cannot name the classes of several heads", fix="Leave it out.", key="class_names")
    if num_classes != len(class_names):
        what = f"has {count(len(class_names), 'name')}, num_classes is {num_classes}"
        raise UserError(what, key="class_names", fix="Make them agree, or leave num_classes out.")
    if len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if list(class_names).count(name) > 1)
        raise UserError(f"{twice!r} occurs twice. Expected each class once.", key="class_names")


def _joined(tables: list[SampleTable]) -> SampleTable:
    forms = [None if table.labels is None else (table.labels.values.ndim, table.labels.heads) for table in tables]
    for form, table in zip(forms, tables, strict=True):
        if form != forms[0]:
            raise UserError(
                f"{table.paths[0]}: its images have {_form(form)}, those of {tables[0].paths[0]} {_form(forms[0])}. "
                "Expected the same in all meta files of a data set."
            )
    labels = [table.labels for table in tables if table.labels is not None]
    whole = (np.full((len(table), 4), np.nan, np.float32) for table in tables)  # of files without boxes
    boxes = [each if table.boxes is None else table.boxes for table, each in zip(tables, whole, strict=True)]
    return SampleTable(
        names=PackedStrings.join([table.names for table in tables]),
        lines=np.concatenate([table.lines for table in tables]),
        source=np.repeat(np.arange(len(tables), dtype=np.uint16), [len(table) for table in tables]),
        paths=[path for table in tables for path in table.paths],
        roots=[root for table in tables for root in table.roots],
        labels=PackedLabels.join(labels) if labels else None,
        boxes=np.concatenate(boxes) if any(table.boxes is not None for table in tables) else None,
        notes=tuple(note for table in tables for note in table.notes),
    )


def _form(form: tuple[int, int | None] | None) -> str:
    if form is None:
        return "no labels"
    dimensions, heads = form
    if heads is None:
        return "sets of labels"
    return "one label each" if dimensions == 1 else f"lists of {count(heads, 'label')}"


def _num_classes(expected: int | list[int] | None, labels: PackedLabels | None) -> int | list[int] | None:
    if labels is None:
        return expected
    if labels.heads is not None and labels.values.ndim == 2 and isinstance(expected, int):
        raise UserError(
            f"is {expected}, but every image has a list of {labels.heads} labels",
            expected="a list with the classes of each head (or multilabel: true, where a list is a set of labels)",
            key="num_classes",
        )
    if expected is not None:
        return expected
    if labels.values.ndim == 2:
        return [int(largest) + 1 for largest in labels.values.max(axis=0)]
    return int(labels.values.max(initial=0)) + 1
