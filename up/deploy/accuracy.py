"""What a package is worth on a list of images: top-1, or mAP where it tells sets of labels. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from up.bundle.manifest import Head
from up.bundle.package import Package
from up.bundle.predictor import BundlePredictor
from up.bundle.session import Floats, Session
from up.data.packed import PackedLabels
from up.data.roots import ImageRoot
from up.errors import UserError
from up.tasks.cls.data.metas import METAS, Meta, MetaSource
from up.tasks.cls.evaluate.scoring import average_precision
from up.text import count


def accuracy(
    package: Package, meta_file: Path, image_dir: str | None, meta_type: str, *, provider: str = "cpu", threads: int = 2
) -> list[str]:
    """In percent of the images that a meta file lists, for each head; a line each.

    Raises ``UserError`` for a list without labels for every head, or with an image that cannot be read.
    """
    heads = package.manifest.heads
    classes = [len(head.labels) for head in heads]
    sets = any(head.type == "multilabel" for head in heads)
    if sets and len(heads) > 1:
        raise UserError(f"--meta: {package.label} has {len(heads)} heads that tell sets of labels, and no list has such labels.")
    folder = str(meta_file) if meta_type == "image_folder" else image_dir
    source = MetaSource(
        str(meta_file),
        ImageRoot(folder, meta_file=str(meta_file)),
        class_names=heads[0].labels,
        num_classes=classes[0] if len(heads) == 1 else classes,
        multilabel=sets,
    )
    meta = METAS.get(meta_type)(source)
    if meta.labels is None or meta.boxes is not None:
        what = "has no labels" if meta.labels is None else "lists parts of images"
        raise UserError(f"{meta_file}: {what} (meta_type {meta_type}), expected images with a label for each head.")
    predictor = BundlePredictor(package, Session(package.model, package.label, provider=provider))
    paths = [Path(source.root.path_of(name)) for name in meta.names]
    scores = _scores(predictor, paths, meta, meta_file, threads)
    judged = _sets_of(heads[0], scores, meta.labels) if sets else _top1_of(heads, scores, meta.labels)
    return [f"{line} % on {count(len(paths), 'image')} of {meta_file}" for line in judged]


def _scores(predictor: BundlePredictor, paths: Sequence[Path], meta: Meta, meta_file: Path, threads: int) -> Iterator[list[Floats]]:
    for index, (path, found) in enumerate(predictor.scored(paths, threads=threads)):
        if isinstance(found, str):
            line = "" if meta.lines is None else f"{meta.lines[index]}:"
            raise UserError(f"{meta_file}:{line} {path}: {found}.")
        yield found


def _top1_of(heads: Sequence[Head], scores: Iterator[list[Floats]], labels: PackedLabels) -> list[str]:
    right = np.zeros(len(heads), dtype=np.int64)
    for index, found in enumerate(scores):
        right += [own.argmax() == label for own, label in zip(found, labels[index], strict=True)]
    return [f"top-1 of {head.name}: {100 * hits / len(labels):.2f}" for head, hits in zip(heads, right, strict=True)]


def _sets_of(head: Head, scores: Iterator[list[Floats]], labels: PackedLabels) -> list[str]:
    found = np.array([own for (own,) in scores])
    there = np.zeros(found.shape, dtype=bool)
    for index in range(len(labels)):
        there[index, labels[index]] = True
    precisions = [average_precision(found[:, c], there[:, c]) for c in range(found.shape[1]) if there[:, c].any()]
    return [f"mAP of {head.name}: {100 * float(np.mean(precisions or [0.0])):.2f}"]
