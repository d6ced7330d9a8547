"""Samples of a data set in packed arrays: the meta files read, joined and compared with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from up.data.folders import classes_of
from up.data.listing import Listing
from up.data.packed import PackedLabels, PackedStrings
from up.data.roots import ImageRoot
from up.errors import UserError
from up.tasks.cls.data.inference import (
    InferenceConfig,
    ResumeInference,
    already_done,
    inference_meta,
    inference_path,
    inference_root,
)
from up.tasks.cls.data.metas import METAS, Meta, MetaSource
from up.text import Verbatim, count
from up.types import Json


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


@dataclass(frozen=True)
class SampleTable(Listing):
    """N samples: a list of files with ``labels`` (N) unless there are none, ``boxes`` (N, 4) in pixels for crops.

    ``num_classes`` is a list for several heads, and None where neither names nor labels tell. ``notes`` report what was ignored
    or converted when the files were read.
    """

    labels: PackedLabels | None
    boxes: NDArray[np.float32] | None
    num_classes: int | list[int] | None
    class_names: list[str] | None
    notes: tuple[str, ...] = ()

    def take(self, kept: NDArray[np.int64]) -> SampleTable:
        """Select the samples at the indices ``kept``."""
        labels = None if self.labels is None else self.labels.take(kept)
        return replace(super().take(kept), labels=labels, boxes=None if self.boxes is None else self.boxes[kept])

    def fingerprint(self) -> str:
        """Hash the names, labels and boxes in their order (sha256); not the pixels."""
        digest = hashlib.sha256()
        arrays = [*self.names.arrays, self.boxes]
        if self.labels is not None:
            arrays += [self.labels.values, self.labels.offsets]
        for values in arrays:
            digest.update(b"-" if values is None else str(values.shape).encode())
            digest.update(b"" if values is None else np.ascontiguousarray(values).data)
        return digest.hexdigest()


def read_table(spec: TableSpec) -> SampleTable:
    """Read all meta files. Raises ``UserError`` with file and line of everything that is wrong."""
    kinds, sources = _sources(spec)
    class_names = _class_names(spec.class_names)
    folders = [source.root for source, kind in zip(sources, kinds, strict=True) if kind == "image_folder"]
    if class_names is None and folders:
        class_names = classes_of(folders)
    expected = spec.num_classes
    if expected is None and class_names is not None:
        expected = len(class_names)
    _expect_as_many(class_names, expected)
    sources = [replace(source, num_classes=expected, class_names=class_names) for source in sources]
    metas = [_parser(kind, spec)(source) for source, kind in zip(sources, kinds, strict=True)]
    table = _joined(metas, sources, expected, class_names).fraction(spec.fraction)
    if "test_resume" in spec.inference:
        table = _without_done(table, spec.inference["test_resume"])
    return table


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
    if spec.meta_type == "inference_only" and not isinstance(meta_file, list):
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
    image_dirs = _one_each("image_dir", spec.image_dir, len(paths))
    offsets = _one_each("label_mapping", spec.label_mapping or 0, len(paths))
    folders = [path if kind == "image_folder" else folder for path, kind, folder in zip(paths, kinds, image_dirs, strict=True)]
    sources = []
    for path, kind, folder, offset in zip(paths, kinds, folders, offsets, strict=True):
        root_of = inference_root if kind == "inference_only" else ImageRoot
        root = root_of(folder, meta_file=path, allow_outside=spec.allow_outside)
        sources.append(MetaSource(path, root, label_offset=offset, multilabel=spec.multilabel, min_size=spec.min_size))
    return kinds, sources


def _one_each(name: str, given: Json, number: int) -> list[Json]:
    if not isinstance(given, list):
        return [given] * number
    if len(given) != number:
        raise UserError(
            got=Verbatim(f"a list of {len(given)}"), expected=f"one entry for each of {count(number, 'meta file')}", key=name
        )
    return given


def _parser(kind: str, spec: TableSpec) -> Callable[[MetaSource], Meta]:
    if kind == "inference_only":
        return lambda source: inference_meta(source, spec.inference)
    try:
        found: Callable[[MetaSource], Meta] = METAS.get(kind)
    except UserError as error:
        raise UserError(f"{error}", key="meta_type") from None
    return found


def _class_names(given: str | list[str] | None) -> list[str] | None:
    if not isinstance(given, str):
        return given
    try:
        with open(given, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{given}: cannot be read ({error}). Expected a text file, one name a line.", key="class_names") from None
    return [name for name in names if name]


def _expect_as_many(class_names: Sequence[str] | None, num_classes: int | list[int] | None) -> None:
    if class_names is None:
        return
    if isinstance(num_classes, list):
        raise UserError("cannot name the classes of several heads", fix="Leave it out.", key="class_names")
    if num_classes != len(class_names):
        raise UserError(f"has {count(len(class_names), 'name')}, num_classes is {num_classes}.", key="class_names")
    if len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if list(class_names).count(name) > 1)
        raise UserError(f"{twice!r} occurs twice. Expected each class once.", key="class_names")


def _joined(
    metas: list[Meta], sources: list[MetaSource], expected: int | list[int] | None, class_names: list[str] | None
) -> SampleTable:
    sizes = [len(meta.names) for meta in metas]
    labels = _joined_labels(metas, sources)
    whole = (np.full((size, 4), np.nan, np.float32) for size in sizes)  # of files without boxes
    boxes = [each if meta.boxes is None else meta.boxes for meta, each in zip(metas, whole, strict=True)]
    return SampleTable(
        names=PackedStrings.join([meta.names for meta in metas]),
        labels=labels,
        boxes=np.concatenate(boxes) if any(meta.boxes is not None for meta in metas) else None,
        lines=np.concatenate([np.zeros(len(m.names), np.int32) if m.lines is None else m.lines for m in metas]),
        source=np.repeat(np.arange(len(metas), dtype=np.uint16), sizes),
        paths=[source.path for source in sources],
        roots=[source.root for source in sources],
        num_classes=_num_classes(expected, labels),
        class_names=class_names,
        notes=tuple(note for meta in metas for note in meta.notes),
    )


def _joined_labels(metas: list[Meta], sources: list[MetaSource]) -> PackedLabels | None:
    forms = [None if meta.labels is None else (meta.labels.values.ndim, meta.labels.heads) for meta in metas]
    for form, source in zip(forms, sources, strict=True):
        if form != forms[0]:
            raise UserError(
                f"{source.path}: its images have {_form(form)}, those of {sources[0].path} {_form(forms[0])}. "
                "Expected the same in all meta files of a data set."
            )
    labels = [meta.labels for meta in metas if meta.labels is not None]
    return PackedLabels.join(labels) if labels else None


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
